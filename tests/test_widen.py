"""The promises of the recipe that widens experts, and of what the benchmark of offloading is built from."""

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from conftest import make_trace  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from foregate.errors import ChoiceError, ForegateError, ModelError, StorageError  # noqa: E402
from foregate.history import Replay  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
IDS = torch.tensor([[5, 9, 17, 3, 40, 77, 12, 60, 33, 21]])
HIDDEN_TOO = ("mixtral", "qwen2_moe", "qwen3_moe")
UNITS_ONLY = ("olmoe", "deepseek_v2", "glm4_moe", "phimoe")


def module(folder: str, name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / folder))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def widen() -> ModuleType:
    return module("recipes", "widen")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Checkpoints of families, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("models") / name
            tiny_models.family(name).save_pretrained(made[name])
        return made[name]

    return folder


def answers(folder: Path) -> tuple[Any, list[Any]]:
    """Logits, and the ids that every layer's experts were called with."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    routed: list[Any] = []
    for name, inner in model.named_modules():
        if name.endswith(".experts"):
            inner.register_forward_hook(lambda module, args, output: routed.append(args[1].sort(-1).values))
    with torch.no_grad():
        return model(IDS).logits, routed


@pytest.mark.parametrize(
    ("family", "times"), [(f, (2, 2)) for f in HIDDEN_TOO] + [(f, (4, 1)) for f in (*HIDDEN_TOO, *UNITS_ONLY)]
)
def test_a_widened_model_routes_and_writes_as_the_original(
    widen: ModuleType, folders: Any, tmp_path: Path, family: str, times: tuple[int, int]
) -> None:
    source = widen.open_source(str(folders(family)))
    widen.widen(source, tmp_path / "wide", widen.Widening(*times), torch.float32)
    logits, routed = answers(folders(family))
    wide_logits, wide_routed = answers(tmp_path / "wide")
    assert routed
    assert all(torch.equal(a, b) for a, b in zip(routed, wide_routed, strict=True))
    assert torch.allclose(logits, wide_logits, atol=1e-4 * float(logits.abs().max()), rtol=1e-4)


def test_experts_weigh_as_much_more_as_asked_for(widen: ModuleType, folders: Any, tmp_path: Path) -> None:
    source = widen.open_source(str(folders("mixtral")))
    old = source.expert_parameters
    by = widen.fitting(source, 2, old * 2 * 8 * 4 * 1.1 / 1e6, 4)
    assert by == widen.Widening(8, 2)
    widen.widen(source, tmp_path / "wide", by, torch.float32)
    assert widen.open_source(str(tmp_path / "wide")).expert_parameters == 16 * old


def test_every_repeat_holds_the_original_divided_without_a_rounding(widen: ModuleType) -> None:
    tensor = torch.randn(6, 4).to(torch.bfloat16)
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"  # hidden x units
    wide = widen.Widening(8, 2)(name, tensor)
    assert wide.shape == (12, 32)
    for row in wide.split(6, 0):
        for part in row.split(4, 1):
            assert torch.equal(part * 8, tensor)


def test_gate_and_up_units_of_a_stacked_tensor_stay_halves(widen: ModuleType, folders: Any, tmp_path: Path) -> None:
    folder = folders("mixtral")
    stacked = tmp_path / "stacked"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.config.save_pretrained(stacked)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(weights, stacked / "model.safetensors", metadata={"format": "pt"})
    widen.widen(widen.open_source(str(stacked)), tmp_path / "wide", widen.Widening(4, 2), torch.float32)
    one, two = answers(folder), answers(tmp_path / "wide")
    assert torch.allclose(one[0], two[0], atol=1e-4 * float(one[0].abs().max()), rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


def test_shards_are_no_larger_than_asked_and_the_index_knows_every_tensor(
    widen: ModuleType, folders: Any, tmp_path: Path
) -> None:
    source, limit = widen.open_source(str(folders("mixtral"))), 60_000
    total = widen.widen(source, tmp_path / "wide", widen.Widening(2), torch.float32, limit)
    index = json.loads((tmp_path / "wide" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total
    assert set(index["weight_map"]) == set(source.files)
    shards = sorted((tmp_path / "wide").glob("*.safetensors"))
    assert len(shards) > 3
    for shard in shards:
        held = load_file(shard)
        assert all(index["weight_map"][name] == shard.name for name in held)
        assert sum(t.nbytes for t in held.values()) <= limit or len(held) == 1
    with safe_open(shards[0], "pt") as first:
        assert first.metadata() == {"format": "pt"}


@pytest.mark.parametrize("times", [0, 3, 6])
def test_repeats_that_do_not_divide_exactly_are_refused(widen: ModuleType, times: int) -> None:
    with pytest.raises(ChoiceError, match="power of two"):
        widen.Widening(times)


@pytest.mark.parametrize(("family", "hidden"), [("gpt_oss", 1), ("deepseek_v2", 2), ("phimoe", 2), ("olmoe", 2)])
def test_what_cannot_be_widened_is_refused_by_name_and_leaves_nothing(
    widen: ModuleType, folders: Any, tmp_path: Path, family: str, hidden: int
) -> None:
    with pytest.raises(ModelError, match=r"experts\.|layers\.|lies the other way"):
        widen.widen(
            widen.open_source(str(folders(family))), tmp_path / "wide", widen.Widening(2, hidden), torch.float32
        )
    assert not list(tmp_path.iterdir())


def test_a_dense_model_and_no_model_are_refused(widen: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        widen.open_source(str(tmp_path))
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    with pytest.raises(ModelError, match="dense"):
        widen.open_source(str(tmp_path / "dense"))


def test_a_folder_that_is_there_is_left_alone_and_a_failed_run_leaves_none(
    widen: ModuleType, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = widen.open_source(str(folders("mixtral")))
    (tmp_path / "there").mkdir()
    with pytest.raises(StorageError, match="exists"):
        widen.widen(source, tmp_path / "there", widen.Widening(2), torch.float32)
    monkeypatch.setattr(widen.shutil, "copy", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    (source.folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises((OSError, ForegateError), match="disk full"):
        widen.widen(source, tmp_path / "wide", widen.Widening(2), torch.float32)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


# --- what the benchmark is built from --------------------------------------------------------------------------------


@pytest.fixture
def pieces(tmp_path: Path) -> Iterator[dict[tuple[int, int], Any]]:
    """Eight experts of 256 KiB in a file."""
    baselines = module("benchmarks", "offload_baselines")
    size = 2**18
    (tmp_path / "experts").write_bytes(os.urandom(8 * size))
    file = os.open(tmp_path / "experts", os.O_RDONLY)
    os.fsync(file)
    made = {(0, expert): (baselines.Piece(file, expert * size, size),) for expert in range(8)}
    try:
        made[0, 0][0].cached()
    except OSError:
        pytest.skip("this Linux cannot tell what the page cache holds")
    yield made
    os.close(file)


def test_the_page_cache_is_held_to_its_ration_and_the_longest_unused_go_first(pieces: Any) -> None:
    ration = module("benchmarks", "offload_baselines").Ration(pieces, budget=3 * 2**18)
    ration.empty()
    assert ration.cached() == 0, "the file system keeps what it was told to drop"
    for expert in (0, 1, 2, 0, 5):
        piece = pieces[0, expert][0]
        os.posix_fadvise(piece.file, piece.offset, piece.length, os.POSIX_FADV_RANDOM)  # no reading ahead
        os.pread(piece.file, piece.length, piece.offset)
        ration.used(0, [expert])
        assert ration.cached() <= ration.budget
    assert [expert for expert in range(8) if pieces[0, expert][0].cached()] == [0, 2, 5]
    assert ration.peak >= ration.budget


def test_the_oracle_is_right_about_every_token_that_was_recorded() -> None:
    predictors = module("benchmarks", "offload_predictors")
    trace = make_trace(prompts=1, tokens=9)
    oracle = predictors.Oracle(trace)
    for row in range(len(trace)):
        query = Replay(trace, as_decode=True).query(1, 3, np.array([row]))
        best = np.argsort(-oracle.predict(query)[0])[:2]
        assert set(best) == set(trace.experts[row, 3])
        assert oracle.covers(query).all()
