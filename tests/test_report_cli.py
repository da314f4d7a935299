"""`foregate report` as a user types it: files known by their content, one page, figures as files."""

import csv
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner, Result

from foregate.cli import app
from foregate.errors import ChoiceError, ExtraError, ForegateError, SourceError
from foregate.report import export
from foregate.report.figures import Figure, packed, unpacked
from foregate.report.inputs import read_results
from foregate.report.routing import routing_of
from foregate.report.token_texts import quoted, texts_of
from foregate.simulation import planfile
from foregate.simulation.planfile import Expected, Plan
from foregate.traces.storage import read_trace, write_trace

pytest.importorskip("plotly")

PNG = b"\x89PNG\r\n\x1a\n"
EMBEDDED = Path(__file__).parent.parent / "models" / "tiny"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


def done(*words: object) -> None:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace, and what the commands make of it."""
    folder = tmp_path_factory.mktemp("results")
    trace = make_trace(prompts=20, layers=4)
    write_trace(replace(trace, spec=replace(trace.spec, expert_bytes=(10**6,) * 4)), folder / "trace.parquet")
    file = folder / "trace.parquet"
    done("compare", file, "--predictors", "tokens", "--distance", "1,2", "--json", folder / "compared.json")
    words = ("--profile", "laptop", "--memory", "50%", "--strategies", "lfu", "--jobs", "1")
    done("simulate", file, *words, "--json", folder / "simulated.json")
    expected = Expected(tokens_per_second=12.0, low=11.0, high=13.0, on_demand=8.0)
    unset = dict.fromkeys(("predictor", "read_seconds", "window_seconds"))
    shape = {"layers": 4, "experts": 8, "memory": "50%", "distance": 1, "look_seconds": 0.0}
    plan = Plan("random", evict="lru", prefetch="none", expected=expected, **shape, **unset)  # type: ignore[arg-type]
    planfile.write(plan, folder / "plan.json")
    return folder


RESULTS = ("compared.json", "simulated.json", "plan.json")


def test_files_are_known_by_their_content_not_their_name(folder: Path, tmp_path: Path) -> None:
    moved = [shutil.copy(folder / name, tmp_path / f"{i}.txt") for i, name in enumerate(RESULTS)]
    found = read_results([Path(path) for path in reversed(moved)])
    assert [b.trace for b in found.boards] == ["random"]
    assert [s.profile for s in found.simulations] == ["laptop"]
    assert [p.expected.tokens_per_second for p in found.plans] == [12.0]
    assert (found.runs, found.validations, found.profiles, found.transfers) == ((), (), (), ())


def test_all_of_it_on_one_page_with_a_verdict_each(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    done("report", *(folder / n for n in RESULTS), "--trace", folder / "trace.parquet", "-o", page, "--title", "A & B")
    html = page.read_text()
    assert "<title>A &amp; B</title>" in html
    for name in ("trace-0", "use-0", "flow-0", "journeys-0", "board-0", "simulation-0", "plan-0", "again"):
        assert f'<section id="{name}"' in html
    head = html[html.index("<header>") : html.index("</header>")]
    assert "On random, split by prompt, replayed as recorded" in head
    assert "Simulated: random on laptop (datasheet) with 50% of memory" in head
    assert "do not read ahead, evict by lru; 12 tokens/s [11, 13] expected from simulation, +50% against" in head
    assert f"--trace {folder / 'trace.parquet'}" in html  # the command that makes it again


def test_two_traces_are_told_apart(folder: Path, tmp_path: Path) -> None:
    trace = folder / "trace.parquet"
    done("report", "--trace", trace, "--trace", trace, "-o", tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    for number in (0, 1):
        assert html.count(f'id="transition-{number}"') == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is no JSON"),
        ("[]", "is none of the results"),
        ("[1, 2]", "is none of the results"),
        ('{"rows": []}', "is none of the results"),
        ('{"rows": [], "strategies": {}, "profile": "x"}', "is missing"),
        ('[{"predictor": "x", "metric": "top1"}]', "row 1.trace is missing"),
        ('[{"predictor": "x", "metric": "top1", "value": NaN}]', "row 1"),
        ('{"format": 99, "evict": "lru", "expected": {}}', "format 99"),
        ('{"text": "", "memory": null, "stats": {}}', "prefill is missing"),
        ('{"format": 99, "timings": []}', "format 99"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"PAR1....PAR1", "give it as --trace"),
    ],
)
def test_a_file_that_cannot_be_shown_is_named_in_one_sentence(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("report", file, "-o", tmp_path / "r.html")
    assert isinstance(result.exception, SourceError)
    assert str(file) in str(result.exception)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "r.html").exists()


def test_a_mistake_leaves_the_page_that_was_there(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    page.write_text("earlier")
    for words in (
        ["nowhere.json"],
        ["--trace", "nowhere.parquet"],
        ["--trace", folder / "trace.parquet", "--tokenizer", tmp_path],
    ):
        assert isinstance(run("report", *words, "-o", page).exception, ForegateError)
    assert isinstance(run("report", "-o", page).exception, ChoiceError)
    assert page.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


# --- figures as files ------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_data_of_every_figure_is_there_as_csv(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a browser: the data and the page are written, and one sentence says what is missing."""
    pytest.importorskip("kaleido")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    out = tmp_path / "figures"
    words = (folder / "compared.json", "--trace", folder / "trace.parquet", "-o", tmp_path / "r.html", "--figures", out)
    result = run("report", *words)
    assert isinstance(result.exception, ExtraError)
    assert "apt install chromium" in str(result.exception)
    assert (tmp_path / "r.html").exists()
    names = {p.stem for p in out.iterdir()}
    assert {"load-0", "together-0", "transition-0", "flows-0", "journey-0", "layer-0", "distance-0"} <= names
    assert {p.suffix for p in out.iterdir()} == {".csv"}
    trace = read_trace(folder / "trace.parquet")
    loads = read_csv(out / "load-0.csv")
    assert len(loads) == 4 * 8
    assert sum(float(row["value"]) for row in loads) == pytest.approx(4 * 8, rel=1e-3)
    flows = read_csv(out / "transition-0.csv")
    assert {row["layers"] for row in flows} == {f"layers {i} \u2192 {i + 1}" for i in range(3)}
    users = (trace.experts[:, 0] == 3).any(axis=1)
    both = users & (trace.experts[:, 1] == 5).any(axis=1)
    at = next(
        r for r in flows if (r["layers"], r["expert"], r["expert of the next layer"]) == ("layers 0 \u2192 1", "3", "5")
    )
    assert float(at["value"]) == pytest.approx(both.sum() / users.sum(), abs=1e-4)
    assert len(read_csv(out / "journey-0.csv")) > 100
    lines = read_csv(out / "layer-0.csv")
    assert {row["series"] for row in lines} >= {"tokens", "popularity"}


def test_pictures_are_drawn_where_there_is_a_browser(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no chromium here: no picture was drawn")
    matrix = Figure("m", "A matrix", "Derived.", "t", [{"type": "heatmap", "z": packed(np.eye(3))}], {"height": 300})
    bars = Figure("b", "Bars & more", "Derived.", "t", [{"type": "bar", "x": [1, 2], "y": [3, 4]}], {"height": 300})
    told: list[float] = []
    paths = export.write_pictures([matrix, bars], tmp_path, lambda what, share: told.append(share))
    assert (
        sorted(p.name for p in tmp_path.iterdir())
        == ["b.png", "b.svg", "m.png", "m.svg"]
        == sorted(p.name for p in paths)
    )
    assert sum(told) == 1
    for name in "mb":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
        assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    assert all(text in (tmp_path / "b.svg").read_text() for text in ("Bars &amp; more", "Derived"))


def test_packing_loses_less_than_it_says() -> None:
    shares = np.random.default_rng(0).random((5, 5))
    np.testing.assert_allclose(unpacked(packed(shares)), shares, atol=5.1e-5)


# --- the text of tokens ----------------------------------------------------------------------------------------------


def test_tokens_are_written_as_text_where_there_is_any() -> None:
    trace = make_trace()
    assert texts_of(trace, None) is None
    pieces = replace(trace, pieces=tuple(f" p{i}" for i in range(20)))
    told = texts_of(pieces, None)
    assert told is not None
    assert (told(3), told(-1)) == (" p3", "?")
    shown = routing_of(pieces).journeys
    assert shown.named
    assert shown.prompts[0].labels[0] == f"0: {quoted(f' p{trace.token_id[0]}')}"
    assert quoted('a\n"') == '\u201ca\\n"\u201d'


def test_a_tokenizer_that_lies_with_the_model_is_used() -> None:
    pytest.importorskip("tokenizers")
    if not (EMBEDDED / "tokenizer.json").is_file():
        pytest.skip("models/tiny is not here: no tokenizer was read")
    trace = make_trace()
    trace = replace(trace, spec=replace(trace.spec, model=str(EMBEDDED)))
    told = texts_of(trace, None)
    assert told is not None
    assert told(0) == texts_of(make_trace(), EMBEDDED)(0)  # type: ignore[misc]


# --- how large, how long ----------------------------------------------------------------------------------------------


def test_deepseek_is_on_one_page_of_8_mb_in_20_seconds(shared: Path, tmp_path: Path) -> None:
    """138,595 tokens, 26 layers of 64 experts. Processor time, for others may use the machine too."""
    source = shared / "deepseek-v2-lite-chat" / "traces.tar.xz"
    if not source.exists():
        pytest.skip(f"{source} is not here: the page of a large trace was not made")
    done("import", "moe-beyond", source, "-o", tmp_path / "t.parquet")
    routing_of(make_trace())  # compiled once per machine
    began = time.process_time()
    done("report", "--trace", tmp_path / "t.parquet", "-o", tmp_path / "r.html")
    assert time.process_time() - began <= 20
    assert (tmp_path / "r.html").stat().st_size <= 8_000_000
