"""Experts read in place: bit for bit what transformers loads of every family's checkpoint, or a sentence says why."""

import errno
import json
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny_models import FAMILIES, family, mixtral  # noqa: E402
from transformers import core_model_loading as loading  # noqa: E402

from foregate.errors import ModelError, SourceError, StorageError  # noqa: E402
from foregate.models import stacks  # noqa: E402
from foregate.store.checkpoint import CheckpointStore  # noqa: E402
from foregate.store.conversion import UNDO  # noqa: E402
from foregate.store.direct import BLOCK, HUGE, DirectFile, aligned  # noqa: E402
from foregate.store.headers import Stored, read_header  # noqa: E402
from foregate.store.layout import Layout  # noqa: E402
from foregate.store.pieces import Held, held_experts, pieces_of  # noqa: E402
from foregate.store.reader import Reader  # noqa: E402

# Each stands for a way of storing experts: lists of gate, up and down; one list; stacks; biases; interleaved; rows of
# a matrix; two modules; a module per expert; transposed; gates and ups stacked apart; two stacks; identity experts.
QUICK = (
    "mixtral", "nemotron_h", "granitemoe", "gpt_oss", "inkling2", "dbrx", "jetmoe", "switch_transformers",
    "qwen3_vl_moe", "step3p7", "nllb_moe", "longcat_flash", "llama4", "deepseek_v4",
)  # fmt: skip


def read(store: CheckpointStore, layer: int, expert: int) -> dict[str, Any]:
    buffer = aligned(store.layout.slot_bytes)
    buffer[:] = 255
    assert store.read_into(layer, expert, buffer) > 0
    return store.views(torch.from_numpy(buffer))


def parameters(model: Any, num_experts: int) -> dict[tuple[int, int, str], Any]:
    """What a loaded model holds for (layer, expert, part)."""
    layers = [layer for stack in stacks(model) for layer in stack.layers]
    found = {}
    for name, held in held_experts(model, layers).items():
        whole = model.get_parameter(name).detach()
        if held.expert is not None:
            found[held.layer, held.expert, held.part] = whole
        else:
            for expert in range(num_experts):
                found[held.layer, expert, held.part] = (
                    whole[expert] if whole.dim() > 2 else whole.chunk(num_experts)[expert].view(held.shape)
                )
    return found


def assert_as_loaded(folder: Path, kind: Any, dtype: str = "auto") -> CheckpointStore:
    """Every part of every expert, bit for bit."""
    loaded = kind.from_pretrained(folder, dtype=dtype)
    store = CheckpointStore(folder, dtype=dtype)
    wanted = parameters(loaded, store.num_experts)
    for layer, expert in {key[:2] for key in wanted}:
        for part, tensor in read(store, layer, expert).items():
            one = wanted.pop((layer, expert, part))
            assert tensor.dtype == one.dtype
            assert torch.equal(tensor, one), (layer, expert, part)
    assert not wanted
    store.close()
    return store


def check_family(name: str, folder: Path) -> None:
    model = family(name).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    store = assert_as_loaded(folder, type(model))
    assert store.num_layers == sum(len(stack.layers) for stack in stacks(model))
    experts = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if n in held_names(model))
    assert sum(store.tensors[key].nbytes for key in store.expert_keys) == experts


def held_names(model: Any) -> set[str]:
    return set(held_experts(model, [layer for stack in stacks(model) for layer in stack.layers]))


@pytest.mark.parametrize("name", QUICK)
def test_experts_are_what_transformers_loads(name: str, tmp_path: Path) -> None:
    check_family(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(QUICK)))
def test_experts_of_every_other_family_are_what_transformers_loads(name: str, tmp_path: Path) -> None:
    check_family(name, tmp_path)


def test_a_transposed_checkpoint_is_turned_while_it_is_read(tmp_path: Path) -> None:
    """As Qwen3-VL's is published: [experts, in, out]."""
    config = family("qwen3_vl_moe").config
    config.text_config.moe_intermediate_size = 24
    model = transformers.Qwen3VLMoeForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    held = [key for key in tensors if ".mlp.experts." in key]
    for key in held:
        tensors[key] = tensors[key].transpose(1, 2).contiguous()
    save_file(tensors, file, {"format": "pt"})
    assert len(held) == 6
    assert_as_loaded(tmp_path, type(model))


def numbered(*shape: int) -> Any:
    return torch.arange(int(np.prod(shape))).view(shape)


LIST = {"a": [numbered(4, 6) + 100 * e for e in range(3)], "b": [numbered(2, 6) - 100 * e for e in range(3)]}
CONVERSIONS = {
    "list": ({"a": LIST["a"]}, [loading.MergeModulelist(0)]),
    "list in the second place": ({"a": LIST["a"]}, [loading.MergeModulelist(1)]),
    "two lists, not of one size": (LIST, [loading.MergeModulelist(0), loading.Concatenate(1)]),
    "two stacks": ({"b": [numbered(3, 2, 6)], "a": [numbered(3, 4, 6)]}, [loading.Concatenate(1)]),
    "transposed": ({"a": [numbered(3, 4, 6)]}, [loading.Transpose(1, 2)]),
    "transposed or not": ({"a": [numbered(3, 4, 6)]}, [loading.Transpose(1, 2, check_dims=True)]),
    "interleaved": ({"a": [numbered(3, 4, 6)]}, [loading.Interleave(1)]),
    "interleaved the other way": ({"a": [numbered(3, 4, 6)]}, [loading.Interleave(2, inverse=True)]),
    "interleaved, then transposed": ({"a": [numbered(3, 4, 6)]}, [loading.Interleave(1), loading.Transpose(1, 2)]),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_every_conversion_is_undone(name: str) -> None:
    """The views of what transformers makes of some tensors are these tensors again."""
    given, operations = CONVERSIONS[name]
    wanted = SimpleNamespace(get_parameter=lambda name: numbered(3, 4, 6))
    patterns, steps = sorted(given), [given]
    for operation in operations:
        made = operation.convert(
            dict(steps[-1]), source_patterns=patterns, target_patterns=["made"], model=wanted, full_layer_name="x"
        )
        steps.append(made)
    views = steps[-1]
    for operation, before in zip(reversed(operations), reversed(steps[:-1]), strict=True):
        views = UNDO[type(operation).__name__](operation, before, views, patterns)
    for pattern, tensors in given.items():
        found = views[pattern] if isinstance(views[pattern], list) else [views[pattern]]
        for tensor, view in zip(tensors, found, strict=True):
            assert torch.equal(view.reshape(tensor.shape), tensor)
            assert view.untyped_storage().data_ptr() == next(iter(steps[-1].values())).untyped_storage().data_ptr()


def test_experts_scattered_over_a_tensor_are_refused() -> None:
    layout = Layout.of([("w", (4, 6), "float32")])
    held = {"p": Held(0, "w", None, (4, 6), 3)}
    stored = {"k": Stored(Path("f"), 0, 3 * 24 * 4, (4, 3, 6), "float32")}
    view = torch.empty(3, 4, 6, device="meta").transpose(0, 1)  # [4, 3, 6]: rows of all experts in turn
    with pytest.raises(ModelError, match="f scatters experts over k"):
        pieces_of(held, {"p": [("k", view)]}, stored, layout, num_experts=3, folder=Path())


def test_many_threads_may_read_at_once(checkpoint: Path) -> None:
    store = CheckpointStore(checkpoint, dtype="float16")
    reader = Reader(store, threads=4)
    keys = [divmod(key, store.num_experts) for key in range(16)] * 4
    buffers = [aligned(store.layout.slot_bytes) for _ in keys]
    for ticket in [reader.submit(*key, buffer, True) for key, buffer in zip(keys, buffers, strict=True)]:
        ticket.wait()
    reader.close()
    for key, buffer in zip(keys, buffers, strict=True):
        for part, tensor in read(store, *key).items():
            assert torch.equal(tensor, store.views(torch.from_numpy(buffer))[part])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_type_is_converted_on_the_way(dtype: str, tmp_path: Path) -> None:
    model = mixtral().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    store = assert_as_loaded(tmp_path, type(model), dtype)
    assert store.bits == {"float32": 32, "float16": 16}[dtype]
    assert {part.dtype for part in store.layout.parts} == {dtype}


def test_what_the_config_does_not_say_the_weights_do(tmp_path: Path) -> None:
    model = mixtral().to(torch.float16)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert CheckpointStore(tmp_path).layout["down_proj"].dtype == "float16"


def test_views_share_the_memory_of_the_slot(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path)
    store = CheckpointStore(tmp_path)
    buffer = torch.zeros(store.layout.slot_bytes, dtype=torch.uint8)
    before = store.views(buffer)
    store.read_into(1, 3, buffer.numpy())
    assert all(view.abs().sum() > 0 for view in before.values())
    assert store.layout.slot_bytes % 4096 == 0
    assert all(part.offset % 64 == 0 for part in store.layout.parts)


def test_what_is_no_expert_is_dense(tmp_path: Path) -> None:
    model = family("qwen2_moe")
    model.save_pretrained(tmp_path)
    store = CheckpointStore(tmp_path)
    dense = set(store.tensors) - store.expert_keys
    assert any("shared_expert" in key for key in dense)
    assert any("self_attn" in key for key in dense)
    assert not any(".experts." in key for key in dense)


def test_parts_are_laid_behind_each_other() -> None:
    layout = Layout.of([("a", (3,), "bfloat16"), ("b", (2, 5), "float32"), ("c", (), "uint8")])
    assert [part.offset for part in layout.parts] == [0, 64, 128]
    assert layout.expert_bytes == 6 + 40 + 1
    assert layout.slot_bytes == 4096


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    mixtral().save_pretrained(tmp_path)
    return tmp_path


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no experts"):
        CheckpointStore(tmp_path)


def test_a_quantised_checkpoint_is_refused(checkpoint: Path) -> None:
    change_config(checkpoint, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(ModelError, match=r"quantised \(mxfp4\).*16 or 32 bits only"):
        CheckpointStore(checkpoint)


def test_experts_of_other_types_are_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    for key in [key for key in tensors if ".experts." in key]:
        tensors[key] = tensors[key].to(torch.int8)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"as int8; foregate reads experts that are float32, float16, bfloat16"):
        CheckpointStore(checkpoint)


def test_a_conversion_that_cannot_be_undone_is_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foregate.store import conversion

    monkeypatch.delitem(conversion.UNDO, "Concatenate")
    with pytest.raises(ModelError, match="mixtral pass through Concatenate"):
        CheckpointStore(checkpoint)


def test_a_cut_off_file_is_named_with_its_tensor(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    last = max(read_header(file).items(), key=lambda item: item[1].offset)[0]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(SourceError, match=f"model.safetensors was cut off: {last}"):
        CheckpointStore(checkpoint)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 64, struct.pack("<Q", 20) + b"no json, no json, no"])
def test_what_is_no_safetensors_file_is_named(content: bytes, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match=r"model\.safetensors is no safetensors file"):
        CheckpointStore(checkpoint)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": "two", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
    ],
)
def test_a_header_that_contradicts_itself_is_named_with_its_tensor(entry: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps({"some.tensor": entry}).encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(SourceError, match=r"x\.safetensors.*some\.tensor"):
        read_header(file)


def test_a_missing_expert_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    for part in ("w1", "w2", "w3"):
        del tensors[f"model.layers.1.block_sparse_moe.experts.7.{part}.weight"]
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"layers\.1\.mlp\.experts\.gate_up_proj would be \(7, "):
        CheckpointStore(checkpoint)


def test_a_missing_layer_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if not ("layers.1." in key and ".w2." in key)}
    save_file(kept, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"lacks expert 0 of model\.layers\.1\.mlp\.experts\.down_proj"):
        CheckpointStore(checkpoint)


def test_an_expert_of_another_shape_is_named(checkpoint: Path) -> None:
    change_config(checkpoint, intermediate_size=40)
    with pytest.raises(SourceError, match=r"would be \(8, 96, 32\), and the model wants \(8, 80, 32\)"):
        CheckpointStore(checkpoint)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path, max_shard_size="60KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(SourceError, match=gone.name):
        CheckpointStore(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../b.safetensors"}}', '{"weight_map": 3}'])
def test_a_broken_index_is_named(text: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SourceError, match=r"model\.safetensors\.index\.json is no index"):
        CheckpointStore(checkpoint)


def test_a_folder_without_safetensors_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelError, match="from safetensors only"):
        CheckpointStore(checkpoint)


def test_a_model_that_is_nowhere_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        CheckpointStore(tmp_path / "none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot get the weights of nobody/nothing: it is no local folder"):
        CheckpointStore("nobody/nothing")


# --- the file under it -----------------------------------------------------------------------------------------------


@pytest.fixture
def numbers(tmp_path: Path) -> tuple[Path, np.ndarray[Any, Any]]:
    content = np.random.default_rng(0).integers(0, 256, 3 * BLOCK + 777, dtype=np.uint8)
    (tmp_path / "numbers").write_bytes(content.tobytes())
    return tmp_path / "numbers", content


@pytest.fixture(params=["direct", "buffered"])
def opened(request: pytest.FixtureRequest, numbers: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> DirectFile:
    if request.param == "buffered":
        monkeypatch.delattr(os, "O_DIRECT")
    file = DirectFile(numbers[0])
    if file.direct != (request.param == "direct"):
        pytest.skip("this file system has no O_DIRECT")
    return file


@pytest.mark.parametrize("chunk", [BLOCK, 2 * BLOCK, 1 << 20])
def test_any_range_is_read_whole(
    chunk: int, opened: DirectFile, numbers: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foregate.store.direct.BOUNCE", chunk)
    rng = np.random.default_rng(1)
    for shift in (0, 1, 64) * 20:
        low, high = sorted(int(n) for n in rng.integers(0, len(numbers[1]) + 1, 2))
        buffer = aligned(high - low + shift)[shift:]
        opened.read_into(low, buffer)
        assert (buffer == numbers[1][low:high]).all()


def test_neighbours_are_read_in_one_go(opened: DirectFile, numbers: tuple[Path, Any]) -> None:
    pieces = [(5, aligned(100)), (105, aligned(5000)), (5200, aligned(7))]
    total = opened.scatter(pieces)
    for offset, buffer in pieces:
        assert (buffer == numbers[1][offset : offset + len(buffer)]).all()
    assert total == (2 * BLOCK if opened.direct else 5107)


def test_the_device_is_charged_for_whole_blocks(numbers: tuple[Path, Any]) -> None:
    file = DirectFile(numbers[0])
    if not file.direct:
        pytest.skip("this file system has no O_DIRECT")
    assert file.read_into(0, aligned(2 * BLOCK)) == 2 * BLOCK
    assert file.read_into(100, aligned(2 * BLOCK)) == 3 * BLOCK
    assert file.read_into(BLOCK, aligned(10)) == BLOCK


@pytest.mark.parametrize("most", [BLOCK, BLOCK + 100])
def test_reads_that_come_in_parts_are_completed(
    most: int, opened: DirectFile, numbers: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: min(most, whole(*args)))
    buffer = aligned(len(numbers[1]) - 3)
    opened.read_into(3, buffer)
    assert (buffer == numbers[1][3:]).all()


def test_reading_past_the_end_is_the_source_s_fault(opened: DirectFile, numbers: tuple[Path, Any]) -> None:
    for offset in (len(numbers[1]) - 5, len(numbers[1]) + 5000):
        with pytest.raises(SourceError, match=r"numbers ends at byte 13065, before byte"):
            opened.read_into(offset, aligned(10))


def test_a_disk_that_refuses_is_a_storage_error(opened: DirectFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*numbers at byte 0: Input/output error"):
        opened.read_into(0, aligned(10))
    monkeypatch.setattr(os, "preadv", lambda *args: 0)
    with pytest.raises(StorageError, match="nothing comes"):
        opened.read_into(0, aligned(10))


def test_a_file_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        DirectFile(tmp_path / "none")


@pytest.mark.parametrize(("nbytes", "multiple"), [(0, 1), (5, BLOCK), (HUGE - 1, BLOCK), (3 * HUGE + 5, HUGE)])
def test_buffers_begin_where_the_disk_wants_them(nbytes: int, multiple: int) -> None:
    buffer = aligned(nbytes)
    assert len(buffer) == nbytes
    assert buffer.ctypes.data % multiple == 0
    buffer[:] = 1


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what memory is")
def test_large_buffers_are_of_the_kind_that_linux_puts_on_huge_pages() -> None:
    buffer = aligned(3 * HUGE)
    address, found = buffer.ctypes.data, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            low, high = (int(word, 16) for word in words[0].split("-"))
            mode = words[1]
        elif words[0] == "VmFlags:" and low <= address < high:
            found = [mode, *words[1:]]
    assert found[0].endswith("p"), "shared memory gets none"
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        assert "hg" in found


def test_a_checkpoint_that_is_written_to_is_refused_and_one_that_is_replaced_is_read_as_it_was(tmp_path: Path) -> None:
    mixtral().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    store = CheckpointStore(tmp_path)
    before, after = (np.zeros(store.layout.slot_bytes, np.uint8) for _ in range(2))
    store.read_into(0, 0, before)
    other = tmp_path / "other"
    other.write_bytes(file.read_bytes()[:100])
    held = tmp_path / "held"
    file.rename(held)
    other.rename(file)
    store.read_into(0, 0, after)
    assert np.array_equal(before, after)
    with held.open("r+b") as opened:
        opened.seek(-1, 2)
        opened.write(b"x")
    with pytest.raises(SourceError, match="was written to while"):
        store.read_into(0, 0, after)
    store.close()
