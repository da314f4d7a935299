"""The promises of the recipes that train a small Switch Transformer and study its routing."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent
FILES = {f"m{i}.py": "\n".join(f"def f{j}(x):\n    return x + {i * j}" for j in range(60)) for i in range(3)}
SENTINEL, EOS = 1000, 1


@pytest.fixture(scope="module")
def recipes() -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules; one imports another by its bare name, as scripts of one folder do."""
    import importlib

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "recipes"))
        yield {
            name: importlib.import_module(name)
            for name in ("train_tiny", "span_corruption", "train_switch", "switch_study")
        }


@pytest.fixture(scope="module")
def switch(recipes: dict[str, ModuleType]) -> ModuleType:
    return recipes["train_switch"]


@pytest.fixture(scope="module")
def spans(recipes: dict[str, ModuleType]) -> ModuleType:
    return recipes["span_corruption"]


@pytest.fixture(autouse=True)
def keep_torch_settings() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def small(switch: ModuleType) -> Any:
    return dataclasses.replace(
        switch.SWITCH,
        layers=8,
        hidden=16,
        heads=2,
        experts=8,  # fewer than the largest budget, as in switch-base-8
        expert_hidden=8,
        vocabulary=300,
        context=24,
        batch=2,
        steps=2,
        warmup=1,
    )


@pytest.fixture
def corpus(recipes: dict[str, ModuleType], switch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    names = sorted(FILES)
    corpus = recipes["train_tiny"].Corpus({n: FILES[n] for n in names[:2]}, {names[2]: FILES[names[2]]})
    monkeypatch.setattr(switch, "read_corpus", lambda: corpus)
    return corpus


# --- span corruption ------------------------------------------------------------------------------------------------


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """Put what the decoder writes back where the encoder's sentinels stand."""
    runs: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token >= SENTINEL:
            runs[token] = []
        else:
            runs[max(runs)].append(token)
    return [t for token in inputs[:-1] for t in runs.get(token, [token])]


@pytest.mark.parametrize("length", [4, 10, 24, 128, 192])
def test_what_was_hidden_can_be_put_back(spans: ModuleType, length: int) -> None:
    pieces = torch.arange(10, 10 + 6 * length).view(6, length) % 900
    inputs, targets = spans.corrupt(pieces, SENTINEL, EOS, seed=3)
    hidden, runs = spans.corrupted_sizes(length)
    assert inputs.shape == (6, length - hidden + runs + 1)
    assert targets.shape == (6, hidden + runs + 1)
    for piece, read, written in zip(pieces.tolist(), inputs.tolist(), targets.tolist(), strict=True):
        assert restored(read, written) == piece


def test_sentinels_count_up_on_both_sides(spans: ModuleType) -> None:
    pieces = torch.full((5, 128), 7)
    inputs, targets = spans.corrupt(pieces, SENTINEL, EOS, seed=0)
    for row in (*inputs.tolist(), *targets.tolist()):
        assert [t for t in row if t >= SENTINEL] == [SENTINEL + i for i in range(6)]
        assert row[-1] == EOS
    assert (targets[:, 0] == SENTINEL).all()


def test_a_window_hides_15_percent_in_runs_of_3(spans: ModuleType) -> None:
    assert spans.corrupted_sizes(128) == (19, 6)
    masks = torch.stack([spans.hidden_runs(128, torch.Generator().manual_seed(i)) for i in range(200)])
    assert (masks.sum(1) == 19).all()
    assert not masks[:, 0].any()
    assert (masks & ~masks.roll(1, 1)).sum(1).eq(6).all()
    later = masks[:, 10:118].float().mean(0)
    assert later.min() > 0.02  # no place is spared
    assert spans.corrupt(torch.zeros(2, 128, dtype=torch.long), 9, 1, 5)[0].equal(
        spans.corrupt(torch.zeros(2, 128, dtype=torch.long), 9, 1, 5)[0]
    )


def test_the_sentinels_are_enough_for_a_window(spans: ModuleType, switch: ModuleType) -> None:
    assert spans.corrupted_sizes(switch.SWITCH.context)[1] <= spans.CORRUPTION["sentinels"]


# --- model ----------------------------------------------------------------------------------------------------------


def test_grouped_experts_are_transformers_own(switch: ModuleType, small: Any) -> None:
    """Dropped tokens among them: same values, same gradients."""
    model = switch.new_model(small)
    experts = next(m for m in model.modules() if hasattr(m, "expert_0"))
    generator = torch.Generator().manual_seed(1)
    hidden, weights = torch.randn(50, 16, generator=generator), torch.rand(50, 1, generator=generator)
    dispatch = torch.nn.functional.one_hot(torch.randint(7, (50, 1), generator=generator), 8)
    dispatch[::7] = 0
    plain = type(experts).forward(experts, hidden, dispatch, weights)
    grouped = switch.grouped_experts(experts, hidden, dispatch, weights)
    assert torch.allclose(plain, grouped, atol=1e-6)
    assert (grouped[::7] == 0).all()
    name = experts.expert_3.wi.weight
    (a,), (b,) = (torch.autograd.grad(out.square().sum(), name) for out in (plain, grouped))
    assert torch.allclose(a, b, atol=1e-6)
    assert a.abs().max() > 0


def test_every_second_layer_is_sparse(switch: ModuleType, small: Any) -> None:
    from foregate.models import stacks

    found = {s.name: [layer.layer_id for layer in s.layers] for s in stacks(switch.new_model(small))}
    assert found == {"encoder": [1, 3, 5, 7], "decoder": [1, 3, 5, 7]}


def test_loads_and_drops_are_counted(switch: ModuleType, small: Any) -> None:
    model = switch.new_model(small).eval()
    inputs, targets = switch.corrupt(torch.randint(3, 300, (4, 24)), 300, EOS, seed=0)
    seen = switch.measure(model, inputs, targets, batch=2)
    assert seen.dropped == {"encoder": [0.0] * 4, "decoder": [0.0] * 4}
    assert torch.allclose(seen.loads["encoder"].sum(-1), torch.ones(4))
    assert all(0 <= share <= 1 for stack in switch.STACKS for share in seen.entropy(stack))
    for module in model.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = 1
    model.config.expert_capacity = 1
    kept = switch.measure(model, inputs, targets).dropped["encoder"]
    routed: list[Any] = []
    for module in model.encoder.modules():
        if type(module).__name__ == "SwitchTransformersTop1Router":
            module.register_forward_hook(lambda m, i, out: routed.append(out[0]))
    switch.forward(model, inputs, targets)
    assert kept == pytest.approx([1 - float(mask.sum()) / inputs.numel() for mask in routed])
    assert min(kept) > 0


# --- training -------------------------------------------------------------------------------------------------------


def test_a_resumed_training_ends_with_the_same_weights(switch: ModuleType, small: Any, tmp_path: Path) -> None:
    ids = torch.randint(3, 300, (2000,), generator=torch.Generator().manual_seed(0))
    straight, _ = switch.train(small, ids, checkpoint=tmp_path / "a", every=2)

    class StoppedError(Exception):
        pass

    def stop(path: Path, *rest: Any) -> None:
        save(path, *rest)
        raise StoppedError

    save = switch.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(switch, "save_checkpoint", stop)
        with pytest.raises(StoppedError):
            switch.train(small, ids, checkpoint=tmp_path / "b", every=1)
    assert switch.checkpoint_state(tmp_path / "b")["step"] == 1
    resumed, state = switch.train(small, ids, checkpoint=tmp_path / "b", resume=True, every=1)
    assert state["step"] == 2
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    first = switch.new_model(small)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(SystemExit, match="other settings"):
        switch.train(dataclasses.replace(small, steps=3), ids, checkpoint=tmp_path / "b", resume=True)


@pytest.mark.usefixtures("corpus")
def test_from_text_to_page(
    recipes: dict[str, ModuleType], switch: ModuleType, small: Any, shared: Path, tmp_path: Path
) -> None:
    """Two steps of training, both stacks recorded as they ran, compared, and the numbers on the page."""
    study = recipes["switch_study"]
    report = switch.run(small, out=tmp_path / "model", checkpoint=tmp_path / "c", resume=False)
    lines = [json.loads(line) for line in (tmp_path / "model" / "held_out.jsonl").read_text().splitlines()]
    assert report["held_out"]["windows"] == len(lines) > 20
    assert len({line["name"] for line in lines}) == len(lines)
    assert all(
        line["prompt"].count("<extra_id_") == recipes["span_corruption"].corrupted_sizes(24)[1] for line in lines
    )

    model, prompts = str(tmp_path / "model"), str(tmp_path / "model" / "held_out.jsonl")
    recorded = study.traces(model, prompts, tmp_path / "traces", limit=20)
    assert {stack: trace.spec.stack for stack, trace in recorded.items()} == {s: s for s in study.STACKS}
    for trace in recorded.values():
        assert trace.experts.shape[1:] == (4, 1)
        assert (trace.spec.num_experts, len(trace.prompts), trace.provenance.self_check) == (8, 20, 1.0)
    assert recorded["encoder"].prefill.all()
    again = study.traces(model, prompts, tmp_path / "traces", limit=20)
    assert all(again[stack].equals(recorded[stack]) for stack in study.STACKS)
    with pytest.raises(SystemExit, match="another --traces folder"):
        study.traces("google/switch-base-8", prompts, tmp_path / "traces")

    asked, done = ["popularity", "cooccur"], tmp_path / "done"
    studied = {stack: study.study(trace, asked, done) for stack, trace in recorded.items()}
    assert len(list(done.iterdir())) == 4
    resumed = study.study(recorded["encoder"], asked, done)
    assert resumed.found == studied["encoder"].found
    one = studied["encoder"]
    assert one.value("popularity", "recall", budget=1).value == one.value("popularity", "top1").value
    static = study.published_static(shared / "switch-base-128" / "expert_statistics_3d.json")
    assert [float(x) for x in static.split(" / ")][::3] == pytest.approx([8.12, 44.45], abs=0.01)
    text = study.page(model, studied, {"static": "popularity", "pairs": "cooccur"}, static)
    shown = one.value("cooccur", "recall", budget=3).value
    assert f"{shown * 100:.1f} [" in text
    assert "{" not in text
    assert (one.trace.experts >= 0).mean() == pytest.approx(1 - one.dropped())
    assert np.isfinite(one.entropy()).all()
