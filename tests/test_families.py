"""Every MoE family of transformers: what is recorded is what its experts were given, and docs/families.md says so."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from foregate.models import stacks  # noqa: E402
from foregate.traces.prompts import PromptText  # noqa: E402
from foregate.traces.record_transformers import Options, batches  # noqa: E402
from foregate.traces.schema import Trace  # noqa: E402

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
PROMPTS = [PromptText(f"p/{n}", "p", " ".join(f"w{(n * 11 + 3 * i) % 120}" for i in range(n))) for n in (3, 7, 5)]
NEW = 5
OUTLIERS = ("switch_transformers", "nllb_moe", "llama4", "jetmoe")

# Families that the test has no tiny model of, or that generate no text token by token. Those marked "not built" are
# found and read like the others as far as their source tells, but nobody has seen it work.
NOT_TRIED = {
    "deepseek_ocr2": "not built small; reads images; its router is DeepSeek-V2's",
    "diffusion_gemma": "writes blocks by diffusion, not token by token: a token is routed many times",
    "dots3_note": "not built small; its router is that of dots1",
    "ernie4_5_vl_moe": "sends text and image tokens to different experts; our tiny one failed on text alone",
    "glm4v_moe": "not built small; its router is that of glm4_moe",
    "glm5_next": "not built small",
    "mistral_large4": "not built small; its router is nearly that of mistral4",
    "muse_spark": "not built small",
    "openai_privacy_filter": "classifies tokens; it generates nothing",
    "qwen3_omni_moe": "not built small; its thinker's router is that of qwen3_moe",
    "unlimited_ocr": "not built small; reads images; its router is DeepSeek-V2's",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextmanager
def spied(model: Any) -> Iterator[dict[str, list[Any]]]:
    """What each module named `experts` is called with, copied; by replacing `forward`, not by hooks."""
    seen: dict[str, list[Any]] = {}
    replaced = []
    for path, module in model.named_modules():
        if path.endswith(".experts"):

            def forward(*args: Any, __path: str = path, __old: Any = module.forward, **kwargs: Any) -> Any:
                values = (*args, *kwargs.values())
                seen.setdefault(__path, []).append([v.detach().clone() for v in values])
                return __old(*args, **kwargs)

            module.forward = forward
            replaced.append(module)
    yield seen
    for module in replaced:
        del module.forward


def recorded(model: Any, stack: str = "decoder") -> tuple[Trace, float | None]:
    options = Options(max_new_tokens=NEW, batch_size=len(PROMPTS))
    (batch,) = batches(model, tiny_models.tokenizer(), PROMPTS, options)
    return batch.traces[stack], batch.checks[stack].share


def spied_cell(calls: list[Any], row: int, position: int) -> tuple[Any, Any]:
    """Ids and weights of one token, found by the layout of a left-padded batch: no positions are read."""
    lengths = [len(p.text.split()) for p in PROMPTS]
    width, own = max(lengths), lengths[row]
    if position < own:
        call, place = calls[0], row * width + width - own + position
    else:
        call, place = calls[1 + position - own], row
    return call[1][place].numpy(), call[2][place].float().numpy()


GENERIC = sorted(set(tiny_models.FAMILIES) - set(OUTLIERS))


@pytest.mark.parametrize("name", GENERIC)
def test_the_trace_is_what_the_experts_were_given(name: str) -> None:
    model = tiny_models.family(name)
    with spied(model) as seen:
        trace, self_check = recorded(model)
    assert self_check == 1.0
    assert trace.weights is not None
    assert len(np.unique(trace.experts)) > 2  # not all alike, or the comparison would say nothing
    for layer, mixture in enumerate(stacks(model)[0].layers):
        calls = seen[f"{mixture.path}.experts"]
        for t in range(len(trace)):
            ids, weights = spied_cell(calls, int(trace.sequence[t]), int(trace.position[t]))
            assert np.array_equal(trace.experts[t, layer], ids)
            assert np.array_equal(trace.weights[t, layer].astype(np.float32), weights)
    check_tokens(trace)
    check_bytes(trace, model)
    assert agreement_with_one_long_pass(model, trace) >= ALIKE.get(name, 1.0)


# In these, a token's routing in a padded batch or in decoding differs from that in one pass over the sequence alone:
# their own arithmetic, not the recording. The test above already held cell by cell.
ALIKE: dict[str, float] = {}


def check_tokens(trace: Trace) -> None:
    vocabulary = tiny_models.tokenizer().get_vocab()
    for row, prompt in enumerate(PROMPTS):
        own = [vocabulary[word] for word in prompt.text.split()]
        mine = trace.take_prompts([row])
        assert mine.prompts[0].prefill == len(own)
        assert mine.token_id[: len(own)].tolist() == own
        assert mine.position.tolist() == list(range(len(mine)))


def check_bytes(trace: Trace, model: Any) -> None:
    """All experts of a layer together weigh what their parameters weigh."""
    assert trace.spec.expert_bytes is not None
    for size, layer in zip(trace.spec.expert_bytes, stacks(model)[0].layers, strict=True):
        whole = sum(p.numel() * p.element_size() for m in layer.experts for p in m.parameters() if p.dim() > 1)
        assert abs(whole - size * layer.num_experts) <= 0.34 * whole  # LongCat's identity experts weigh nothing


def agreement_with_one_long_pass(model: Any, trace: Trace) -> float:
    """Share of routed sets that a pass without cache, batch or padding over each whole sequence gives again."""
    same = []
    for row in range(len(PROMPTS)):
        mine = trace.take_prompts([row])
        with spied(model) as seen, torch.no_grad():
            model(input_ids=torch.from_numpy(mine.token_id.astype(np.int64))[None], use_cache=False)
        for layer, mixture in enumerate(stacks(model)[0].layers):
            ids = np.sort(seen[f"{mixture.path}.experts"][0][1].numpy(), axis=1)
            same.append((np.sort(mine.experts[:, layer], axis=1) == ids).all(axis=1).mean())
    return float(np.mean(same))


@contextmanager
def blocks_spied(model: Any, stack: str) -> Iterator[list[list[tuple[Any, Any]]]]:
    """Inputs and outputs of the mixture blocks of one stack, by replacing `forward`."""
    layers = next(s for s in stacks(model) if s.name == stack).layers
    seen: list[list[tuple[Any, Any]]] = [[] for _ in layers]
    for index, layer in enumerate(layers):

        def forward(x: Any, *rest: Any, __old: Any = layer.block.forward, __seen: Any = seen[index], **kw: Any) -> Any:
            x_before = x.detach().clone()
            y = __old(x, *rest, **kw)
            __seen.append((x_before, (y[0] if isinstance(y, tuple) else y).detach().clone()))
            return y

        layer.block.forward = forward
    yield seen
    for layer in layers:
        del layer.block.forward


def one_expert(layer: Any, expert: int, x: Any, weight: float) -> Any:
    """An expert's share of the block's output for one token [D], written from the papers' formulas."""
    name = layer.adapter.name
    with torch.no_grad():
        if name == "switch":
            return weight * layer.experts[0][f"expert_{expert}"](x[None])[0]
        if name == "llama4":
            x = x * weight  # Llama 4 weighs what goes in
            gate, up = (x @ layer.experts[0].gate_up_proj[expert]).chunk(2)
            return (up * layer.experts[0].act_fn(gate)) @ layer.experts[0].down_proj[expert]
        gate, up = (layer.experts[0].weight[expert] @ x).chunk(2)
        return weight * (layer.experts[1].weight[expert] @ (layer.block.activation(gate) * up))


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        ("switch_transformers", "encoder"),
        ("switch_transformers", "decoder"),
        ("llama4", "decoder"),
        ("jetmoe", "decoder"),
    ],
)
def test_outliers_compute_what_the_trace_says(name: str, stack: str) -> None:
    """Recorded ids and weights, put through the experts by hand, give each block's output again."""
    model = tiny_models.family(name)
    lengths = [len(p.text.split()) for p in PROMPTS]
    with blocks_spied(model, stack) as seen:
        trace, self_check = recorded(model, stack)
    assert self_check == 1.0
    assert trace.weights is not None
    for index, layer in enumerate(next(s for s in stacks(model) if s.name == stack).layers):
        for t in range(len(trace)):
            row, position = int(trace.sequence[t]), int(trace.position[t])
            call, place = outlier_place(name, stack, lengths, row, position)
            x, y = (v.reshape(*seen[index][0][0].shape[:1], -1, v.shape[-1])[row, place] for v in seen[index][call])
            parts = [
                one_expert(layer, int(e), x, float(w))
                for e, w in zip(trace.experts[t, index], trace.weights[t, index], strict=True)
                if e >= 0
            ]
            total = sum(parts, torch.zeros_like(y)) + always(layer, x)
            assert torch.allclose(total, y, atol=1e-4), (index, t)


def outlier_place(name: str, stack: str, lengths: list[int], row: int, position: int) -> tuple[int, int]:
    """Which call of the block, and which place in it, by the layout of the batch alone."""
    if stack == "encoder":
        return 0, position  # padded on the right
    if name == "switch_transformers":
        return position, 0  # begins with one token
    width, own = max(lengths), lengths[row]
    return (0, width - own + position) if position < own else (1 + position - own, 0)


def always(layer: Any, x: Any) -> Any:
    """What a block adds whatever the routing."""
    with torch.no_grad():
        if layer.adapter.name == "llama4":
            return layer.block.shared_expert(x[None])[0]
        return layer.block.bias if layer.adapter.name == "jetmoe" else 0


def test_switch_drops_tokens_beyond_an_experts_capacity() -> None:
    model = tiny_models.family("switch_transformers")
    for layer in stacks(model)[0].layers:
        layer.router.expert_capacity = 1
    trace, self_check = recorded(model, "encoder")
    assert self_check == 1.0
    for row in range(len(PROMPTS)):
        for layer in range(trace.spec.num_layers):
            ids = trace.take_prompts([row]).experts[:, layer, 0]
            served = ids[ids >= 0]
            assert len(set(served)) == len(served)  # no expert takes a second token of a sequence
    assert (trace.experts < 0).any()


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_nllb_records_the_routers_choice_and_says_what_runs(stack: str) -> None:
    model = tiny_models.family("nllb_moe")
    layers = next(s for s in stacks(model) if s.name == stack).layers
    run: set[str] = set()
    logits: list[Any] = []
    for layer in layers:
        for name, expert in layer.experts[0].items():
            expert.register_forward_pre_hook(lambda m, a, name=name: run.add(name))
    layers[0].router.classifier.register_forward_hook(lambda m, a, out: logits.append(out.detach().clone()))
    trace, self_check = recorded(model, stack)
    assert self_check == 1.0
    assert run - {"token_dropout"} <= {"expert_0", "expert_1"}  # the note; should it break, drop the note
    assert "only experts 0 and 1" in " ".join(next(s for s in stacks(model) if s.name == stack).notes)
    first = logits[0].reshape(len(PROMPTS), -1, 8)
    for t in np.flatnonzero(trace.position < first.shape[1]):
        chosen = trace.experts[t, 0]
        best = first[trace.sequence[t], trace.position[t]].topk(2).indices.numpy()
        kept = chosen >= 0
        assert set(chosen[kept]) <= set(best)
        assert kept.any()


def experts_classes() -> dict[str, list[str]]:
    """Folder of transformers.models: its classes named *Experts, from the source."""
    found = {}
    for file in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        names = re.findall(r"^class (\w+Experts)\(", file.read_text(encoding="utf-8"), re.M)
        names = [n for n in names if n == "GraniteMoeSharedExperts" or not n.endswith("SharedExperts")]
        if names:
            found[file.parent.name] = names
    return found


def page() -> str:
    """docs/families.md, as it must read."""
    classes = experts_classes()
    lines = [
        "# Which families can be recorded",
        "",
        f"Checked with transformers {transformers.__version__} by `tests/test_families.py`, which also makes this page",
        "(`python tests/test_families.py`): a tiny random model of each family is run on a padded batch, with",
        "prefill and decode, and every recorded cell is compared with what an independent spy saw the experts get,",
        "and with one pass over each whole sequence, without cache or padding. For the outliers, each block's output",
        "is computed by hand from the recorded ids and weights. The self-check re-runs the routers on their inputs.",
        "",
        "| family | experts | adapter | self-check | note |",
        "|---|---|---|---|---|",
    ]
    for name in tiny_models.FAMILIES:
        adapter = "generic"
        notes: tuple[str, ...] = ()
        if name in (*OUTLIERS, "dbrx", "longcat_flash"):
            found = stacks(tiny_models.family(name))[0]
            adapter, notes = found.layers[0].adapter.name, found.notes
        lines.append(f"| {name} | {', '.join(classes[name])} | {adapter} | 1.0 | {'; '.join((*notes, *more(name)))} |")
    lines += ["", "## Not recorded, or not checked", "", "| family | experts | why |", "|---|---|---|"]
    lines += [f"| {name} | {', '.join(classes[name])} | {why} |" for name, why in NOT_TRIED.items()]
    return "\n".join([*lines, ""])


NO_RESIDUAL = ("deepseek_v4", "hy_v4", "qwen4_exp")


def more(name: str) -> tuple[str, ...]:
    """Notes for readers of the page."""
    alike = ALIKE.get(name)
    told = {
        "deepseek_v4": "its first layers choose by token id (hash), not by hidden state",
    }
    known = (told[name],) if name in told else ()
    if name in NO_RESIDUAL:
        known = (*known, "its layers pass on several streams, so `--hidden` keeps the routers' inputs alone")
    return (
        known if alike is None else (*known, f"at least {alike:.0%} of routed sets equal those of one unbatched pass")
    )


def test_the_page_of_families_is_up_to_date(request: pytest.FixtureRequest) -> None:
    if transformers.__version__ != re.findall(r"transformers (\S+) by", PAGE.read_text(encoding="utf-8"))[0]:
        pytest.skip("docs/families.md was made with another transformers")
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/test_families.py"


def test_no_family_of_transformers_is_forgotten() -> None:
    known = {*tiny_models.FAMILIES, *NOT_TRIED}
    assert set(experts_classes()) - known == set(), "new families: add them to tiny_models.FAMILIES or NOT_TRIED"
    assert len(tiny_models.FAMILIES) >= 35


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
