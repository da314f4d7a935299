"""The worked examples keep what their pages say: each page shows the file, and each file does what it promises.

`python tests/test_examples.py` copies the files into their pages.
"""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_importers

from foregate.errors import ModelError, SourceError
from foregate.predictors import PREDICTORS
from foregate.traces.importers import IMPORTERS
from foregate.traces.schema import check
from foregate.traces.storage import read_trace, write_trace

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TINY = ROOT / "models" / "tiny"
PAGES = {
    "how-to-predictor.md": "add_predictor.py",
    "how-to-eviction.md": "add_eviction.patch",
    "how-to-importer.md": "add_importer.py",
    "how-to-model-adapter.md": "add_adapter.py",
}
MOST_LINES = 40
PATCHED = "with the patch"  # title of the block that runs in a copy of foregate


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an example registers is gone after the test; so is the example, which the next test imports anew."""
    from foregate.adapters import ADAPTERS

    kept = [(registry, dict(registry)) for registry in (PREDICTORS, IMPORTERS, ADAPTERS)]
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)  # type: ignore[attr-defined]
    for name in [n for n in sys.modules if n.startswith("add_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short trace of the embedded model: thirty prompts, four tokens written after each."""
    torch = pytest.importorskip("torch")
    if not (TINY / "config.json").is_file():
        pytest.skip("models/tiny is not here")
    from foregate.cli.demo import PROMPTS
    from foregate.models import load
    from foregate.traces.prompts import read_prompts
    from foregate.traces.record_transformers import Options, record

    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("recorded") / "trace.parquet"
    model, tokenizer = load(str(TINY))
    record(model, tokenizer, read_prompts(str(PROMPTS), 30), path, Options(max_new_tokens=4, batch_size=10))
    return path


@pytest.fixture
def work(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages take for granted: trace.parquet, models/tiny and examples lie there."""
    shutil.copy(recorded, tmp_path / "trace.parquet")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(TINY)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, title and text of each fenced block of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    return [(language, title, code) for language, title, code in found]


def example(name: str) -> Any:
    """The module of an example file."""
    return importlib.import_module(name)


# The pages.


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_very_file_that_is_tested(page: str) -> None:
    shown = [code for _, title, code in blocks(page) if title == f"examples/{PAGES[page]}"]
    assert shown == [(EXAMPLES / PAGES[page]).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", PAGES.values())
def test_an_example_has_at_most_forty_lines_of_code(name: str) -> None:
    lines = (EXAMPLES / name).read_text(encoding="utf-8").splitlines()
    assert sum(bool(line.strip()) for line in lines) <= MOST_LINES


@pytest.mark.parametrize("page", [page for page in PAGES if page != "how-to-eviction.md"])
def test_what_a_page_says_to_try_runs(page: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tried = [code for language, title, code in blocks(page) if language == "python" and not title]
    assert tried
    for code in tried:
        exec(compile(code, page, "exec"), {"__name__": page})
    out = capsys.readouterr().out
    if page == "how-to-predictor.md":
        assert re.search(r"^echo +\d+\.\d% \[.*answers \d+% of the rows$", out, re.MULTILINE)
    if page == "how-to-importer.md":
        assert "taken as decode" in out
        assert read_trace("poem.parquet").experts.tolist() == [[[3, 7], [0, 2]], [[3, 1], [5, 2]]]
    if page == "how-to-model-adapter.md":
        assert read_trace("soft.parquet").provenance.self_check == 1


# A predictor.


def test_the_example_predictor_keeps_the_promises_of_all_predictors() -> None:
    """By the page's own command, in a process of its own: it registers before tests are collected."""
    page = (ROOT / "docs" / "how-to-predictor.md").read_text(encoding="utf-8")
    command = next(line.split() for line in page.splitlines() if "-m pytest" in line)
    assert command[:2] == ["PYTHONPATH=examples", "python"]
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command[2:], "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout
    assert passed is not None
    assert int(passed[1]) >= 8


def test_echo_expects_what_the_token_used_last() -> None:
    from conftest import make_trace

    from foregate.history import Replay

    echo = example("add_predictor").Echo(trust=1.0)
    trace = make_trace(prompts=1, tokens=3, layers=2, experts=4, k=1)
    routed = np.array([[[0], [1]], [[2], [3]], [[2], [0]]], dtype=np.int8)
    vars(trace).update(experts=routed, token_id=np.array([5, 6, 5], dtype=np.int32))
    query = Replay(trace, as_decode=True).query(0, 1)
    assert echo.fit(trace).covers(query).tolist() == [False, False, True]
    assert echo.predict(query)[2].tolist() == [0, 1, 0, 0]


# An importer.


def rows(folder: Path) -> list[Path]:
    """Two prompts in the example's format."""
    return [
        test_importers.put(folder / "a.rows", "17\t3,7\t0,2\n4\t3,1\t5,2\n"),
        test_importers.put(folder / "b.rows", "9\t0,1\t1,0\n"),
    ]


def promises() -> list[Callable[..., None]]:
    """What tests/test_importers.py asks of every format."""
    found = [f for name, f in vars(test_importers).items() if name.startswith("test_")]
    chosen = [
        f for f in found if set(inspect.signature(f).parameters) in ({"form", "tmp_path"}, {"form", "pack", "tmp_path"})
    ]
    assert len(chosen) >= 2
    return chosen


@pytest.mark.parametrize("pack", ["gz", "tar.xz", "zip", "folder"])
@pytest.mark.parametrize("promise", promises(), ids=lambda f: f.__name__)
def test_the_example_importer_keeps_the_promises_of_all_importers(
    promise: Callable[..., None], pack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example("add_importer")
    monkeypatch.setattr(test_importers, "good", lambda folder: {"rows": rows(folder)})
    given = {"form": "rows", "pack": pack, "tmp_path": tmp_path}
    promise(**{name: given[name] for name in inspect.signature(promise).parameters})


def test_an_imported_trace_is_sound_and_survives_its_file(tmp_path: Path) -> None:
    trace = example("add_importer").read(rows(tmp_path), model="mine", layers=(1, 3))
    check(trace, "rows")
    assert (trace.spec.layer_ids, trace.spec.num_experts, len(trace)) == ((1, 3), 8, 3)
    assert [p.name for p in trace.prompts] == ["a", "b"]
    assert any("largest id + 1" in note for note in trace.provenance.notes)
    write_trace(trace, tmp_path / "t.parquet")
    assert read_trace(tmp_path / "t.parquet").equals(trace)


@pytest.mark.parametrize("line", ["x\t1,2\t3,4", "1\t1,2", "1\t1,2\t3", "1\t1,2\t3,9", "1"])
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    source = test_importers.put(tmp_path / "a.rows", f"17\t3,7\t0,2\n{line}\n")
    with pytest.raises(SourceError, match=r"a\.rows, line 2: "):
        example("add_importer").read([source], experts=8)


# A model adapter.


def soft_model(adapter: Any) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return adapter.SoftModel(transformers.PreTrainedConfig(vocab_size=128, hidden_size=16)).eval()


def test_the_adapter_records_what_a_calculation_by_hand_finds() -> None:
    torch = pytest.importorskip("torch")
    import tiny_models

    from foregate.traces.prompts import PromptText
    from foregate.traces.record_transformers import Options, batches

    model = soft_model(example("add_adapter"))
    prompts = [PromptText(f"p/{n}", "p", " ".join(f"w{7 * i + n}" for i in range(n))) for n in (3, 8, 5)]
    (batch,) = batches(model, tiny_models.tokenizer(), prompts, Options(max_new_tokens=0, batch_size=3))
    trace = batch.traces["decoder"]
    assert batch.checks["decoder"].share == 1
    assert trace.provenance.format == "recorded"
    assert trace.spec.num_layers == 3
    with torch.no_grad():
        state = model.embed(torch.from_numpy(trace.token_id.astype(np.int64)))
        for layer, block in enumerate(model.layers):
            best = block.router(state).softmax(-1).topk(2)
            np.testing.assert_array_equal(trace.experts[:, layer], best.indices.numpy())
            np.testing.assert_allclose(trace.weights[:, layer], best.values.numpy(), rtol=1e-3)
            parts = best.values[..., None] * torch.einsum("td,tkdf->tkf", state, block.experts.maps[best.indices])
            state = state + parts.sum(dim=1)


def test_without_its_adapter_the_family_is_refused_and_not_misread() -> None:
    from foregate.adapters import ADAPTERS
    from foregate.traces.prompts import PromptText
    from foregate.traces.record_transformers import Options, batches

    adapter = example("add_adapter")
    del ADAPTERS["SoftExperts"]
    import tiny_models

    with pytest.raises(ModelError, match="foregate cannot read that"):
        list(
            batches(
                soft_model(adapter), tiny_models.tokenizer(), [PromptText("p", "p", "w1")], Options(max_new_tokens=0)
            )
        )


# An eviction.

BY_HAND = """
import sys
from pathlib import Path
import numpy as np
import foregate
from foregate.memory.eviction import EVICTION
from foregate.memory.replay import replay, stream_of

assert Path(foregate.__file__).is_relative_to(sys.argv[1]), foregate.__file__
kind, by = EVICTION["lru-2"], {}
assert kind().code not in {other.code for name, other in EVICTION.items() if name != "lru-2"}

# By hand, three slots of one layer: 0 and 1 twice, then 2, 3 once. LRU would let 0 go for 3; LRU-2 lets 2 go.
sets = [[0], [1], [0], [1], [2], [3], [0], [1]]
experts = np.array(sets, np.int16)[:, None]
stream = stream_of(experts, np.arange(8, dtype=np.int32), np.zeros(8, np.int32))
assert int(replay(stream, 1, 4, 3, "lru-2").resident_hits.sum()) == 4
assert int(replay(stream, 1, 4, 3, "lru").resident_hits.sum()) == 2
"""


SAME = """
import torch, transformers
whole = transformers.AutoModelForCausalLM.from_pretrained("models/tiny", experts_implementation="eager").eval()
given = engine.tokenizer("def add(a, b):", return_tensors="pt", return_token_type_ids=False)
assert torch.equal(tokens, whole.generate(**given, max_new_tokens=12, do_sample=False)), "the model wrote other tokens"
"""


def patched(work: Path, *, compiled: bool) -> str:
    """Apply the example to a copy of foregate, and run the page's block on it; what it prints."""
    copy = work / f"copy-{compiled}"
    shutil.copytree(ROOT / "foregate", copy / "foregate", ignore=shutil.ignore_patterns("__pycache__"))
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(work)}
    subprocess.run(["git", "apply", str(EXAMPLES / PAGES["how-to-eviction.md"])], cwd=copy, env=alone, check=True)
    (tried,) = (code for _, title, code in blocks("how-to-eviction.md") if title == PATCHED)
    done = subprocess.run(
        [sys.executable, "-c", BY_HAND + tried + SAME, str(copy)],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(copy), "NUMBA_DISABLE_JIT": str(int(not compiled))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def hit_rates(printed: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^([\w-]+): ([\d.]+)%", printed, re.MULTILINE)}


def test_the_example_eviction_is_replayed_and_runs_a_model(work: Path) -> None:
    """With the planner's functions as plain Python, which spares compiling them."""
    rates = hit_rates(patched(work, compiled=False))
    assert 0 < rates["lru-2"] < rates["belady"]
    assert rates["lru-2"] != rates["lru"]


@pytest.mark.slow
def test_the_example_eviction_compiled_decides_as_in_python(work: Path) -> None:
    assert patched(work, compiled=True) == patched(work, compiled=False)


def write_pages() -> None:
    """Copy every example into its page."""
    for page, name in PAGES.items():
        path = ROOT / "docs" / page
        (shown,) = (code for _, title, code in blocks(page) if title == f"examples/{name}")
        text = path.read_text(encoding="utf-8").replace(shown, (EXAMPLES / name).read_text(encoding="utf-8"))
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages()
