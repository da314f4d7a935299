"""Every import format: the counts that must come out of published data, and how small broken files are answered."""

import gzip
import io
import json
import lzma
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foregate.cli import main
from foregate.errors import ChoiceError, SourceError
from foregate.traces.importers import IMPORTERS
from foregate.traces.importers.vllm_logger import _first_decode
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace

DATA = Path(__file__).parents[1] / "../shared/data"
published = pytest.mark.skipif(not DATA.is_dir(), reason="the published traces are not in ../shared/data")


# Small files of each format, as their recorders write them.


def records(tokens: int = 3, layers: int = 4, **changed: Any) -> list[dict[str, Any]]:
    return [
        {
            "dataset": "d",
            "problem_id": 0,
            "layer": layer,
            "experts": [(token + layer) % 7, 7],
            "gating_probs": [0.75, 0.25],
            "token_idx": token,
            **changed,
        }
        for layer in range(layers)
        for token in range(tokens)
    ]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def deepseek(
    pieces: tuple[str, ...] = ("<s>", "Hi", ",", '"'), layers: tuple[int, ...] = (1, 2, 3), add: int = 0
) -> str:
    def quoted(piece: str) -> str:
        return '"' + piece.replace('"', '""') + '"' if piece in ',"' else piece

    rows = [
        f'{layer},0,{quoted(piece)},"[{(i + layer + add) % 63}, 63]"'
        for layer in layers
        for i, piece in enumerate(pieces)
    ]
    return "\n".join(["Layer ID,Batch Number,Token,Activated Expert IDs", *rows, ""])


def route_trace(model: str = "/home/me/Some-Q4.gguf", layers: int = 3, prompt: int = 3, decode: int = 2) -> str:
    head = ["# route_trace v1", f"# model={model} arch=x n_layer={layers} n_expert=9 n_expert_used=2"]
    head += [f"# layer={layer} expert_bytes={100 + layer} dense_bytes=5" for layer in range(layers)]
    head += ["turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"]
    rows = []
    for turn in range(2):
        for step in range(prompt + decode):
            for layer in range(layers):
                if step < prompt - 1 and layer == layers - 1:
                    continue  # only the prompt's last token passes the last layer
                for slot, weight in enumerate(("0.654321", "0.345679")):
                    phase = int(step >= prompt)
                    rows.append(f"{turn},{phase},{step},{layer},{slot},{(step + layer + slot) % 9},{weight},0,0")
    return "\n".join([*head, *rows, ""])


def vllm(layer: int, calls: tuple[int, ...] = (5, 4, 3, 6, 2, 2, 1, 1), warm: int = 2, model: str = "m") -> bytes:
    rows: list[dict[str, Any]] = [{"type": "meta", "model_id": model, "layers_logged": [layer], "top_k": 2, "seed": 1}]
    for number, size in enumerate(calls):
        for slot in range(size):
            ids = [1, 2] if number < warm else [(number + slot + layer) % 5, 5 + slot % 3]
            row = {"type": "route", "req_id": "r1", "token_idx": slot, "layer": layer}
            rows.append({**row, "topk_ids": ids, "topk_weights": [0.5, 0.125]})
    return lines(rows)


def tensors(layers: int = 2, chosen: int = 2) -> str:
    parts = [f"tensor([ 1.0000e+00, -0.5000,\n  3.2500,  0.0000]), tensor([{chosen}])"] * layers
    return '"[' + ", ".join(parts) + ']"'


def logits(tokens: tuple[int, ...] = (0, 5, 7), name: str = "abc") -> str:
    return ",".join([name, *(f"{step},{tensors()},tensor({token})" for step, token in enumerate(tokens))]) + "\n"


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def good(folder: Path) -> dict[str, list[Path]]:
    """A good source of each format."""
    return {
        "records": [put(folder / "a.jsonl", lines(records()))],
        "moe-beyond": [put(folder / "b_prompt_1.csv", deepseek())],
        "route-trace": [put(folder / "run.csv", route_trace())],
        "vllm-logger": [put(folder / f"layer_{n}.jsonl", vllm(n)) for n in (0, 8)],
        "router-logits": [put(folder / "switch.csv", logits())],
    }


# What comes out of small files.


@pytest.mark.parametrize("form", IMPORTERS)
def test_every_format_becomes_a_trace_that_says_where_it_is_from(form: str, tmp_path: Path) -> None:
    sources = good(tmp_path)[form]
    trace = IMPORTERS[form](sources, dataset="mine")
    assert len(trace) > 0
    assert trace.provenance.format == form
    assert trace.provenance.source == tuple(path.name for path in sources)
    assert set(trace.provenance.versions) == {"foregate", "pyarrow"}
    assert {p.dataset for p in trace.prompts} == {"mine"}
    assert str(tmp_path) not in repr(trace)


@pytest.mark.parametrize("pack", ["gz", "xz", "tar", "tar.xz", "zip", "folder"])
@pytest.mark.parametrize("form", IMPORTERS)
def test_packing_changes_nothing(form: str, pack: str, tmp_path: Path) -> None:
    sources = good(tmp_path)[form]
    packed = packed_as(pack, sources, tmp_path / "packed")
    assert IMPORTERS[form](packed).equals(IMPORTERS[form](sources))


def packed_as(pack: str, sources: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    if pack in ("gz", "xz"):
        squeeze = gzip.compress if pack == "gz" else lzma.compress
        return [put(folder / f"{path.name}.{pack}", squeeze(path.read_bytes())) for path in sources]
    if pack == "folder":
        put(folder / "README", "not a source")
        for path in sources:
            put(folder / path.name, path.read_bytes())
        return [folder]
    archive = folder / f"all.{pack}"
    if pack == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for path in sources:
                out.write(path, f"inside/{path.name}")
    else:
        with tarfile.open(archive, f"w:{pack.partition('.')[2]}") as out:  # type: ignore[call-overload]
            for path in sources:
                out.add(path, f"inside/{path.name}")
    return [archive]


def test_records_keep_tokens_that_lost_a_record(tmp_path: Path) -> None:
    rows = [r for r in records(tokens=4) if (r["layer"], r["token_idx"]) != (2, 3)]
    trace = IMPORTERS["records"]([put(tmp_path / "a.jsonl", lines(rows))], model="m", experts=8)
    assert trace.experts.shape == (4, 4, 2)
    assert trace.experts[3, 2].tolist() == [-1, -1]
    assert (trace.experts >= 0).sum() == 2 * len(rows)
    assert trace.weights is not None
    assert trace.weights.dtype == np.float16  # 0.75 and 0.25 fit
    assert trace.step.tolist() == [0, 1, 2, 3]
    assert any("1 record missing" in note for note in trace.provenance.notes)
    assert any("up to 3 of 15 cells" in note for note in trace.provenance.notes)
    assert trace.spec.num_experts == 8


def test_a_gap_that_is_still_in_its_place_shifts_nothing(tmp_path: Path) -> None:
    rows = [r for r in records(tokens=4) if (r["layer"], r["token_idx"]) != (2, 1)]
    trace = IMPORTERS["records"]([put(tmp_path / "a.jsonl", lines(rows))])
    assert trace.experts[1, 2].tolist() == [-1, -1]
    assert not any("too early" in note for note in trace.provenance.notes)


def test_records_without_weights_rank_nothing(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "gating_probs"} for r in records()]
    trace = IMPORTERS["records"]([put(tmp_path / "a.jsonl", lines(rows))])
    assert trace.weights is None
    assert not trace.provenance.ranked


def test_several_files_of_records_are_one_trace(tmp_path: Path) -> None:
    a = put(tmp_path / "a.jsonl", lines(records()))
    b = put(tmp_path / "b.jsonl", lines(records(problem_id="x", experts=[1, 0])))
    trace = IMPORTERS["records"]([a, b])
    assert [p.name for p in trace.prompts] == ["d/0", "d/x"]
    assert trace.spec.num_experts == 8  # the largest id of both
    assert len(trace) == 6


def test_layers_keep_the_models_own_numbers(tmp_path: Path) -> None:
    rows = [{**r, "layer": 2 * r["layer"] + 1} for r in records()]
    trace = IMPORTERS["records"]([put(tmp_path / "a.jsonl", lines(rows))], layers=(1, 3, 5, 7))
    assert trace.spec.layer_ids == (1, 3, 5, 7)


def test_identical_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    put(tmp_path / "a_prompt_1.csv", deepseek())
    put(tmp_path / "b_prompt_2.csv", deepseek())
    put(tmp_path / "b_prompt_3.csv", deepseek(add=1))  # same text, other routing
    trace = IMPORTERS["moe-beyond"]([tmp_path])
    assert [(p.name, p.dataset, p.prefill) for p in trace.prompts] == [("a_prompt_1", "a", 4), ("b_prompt_3", "b", 4)]
    assert trace.provenance.notes[0].startswith("1 prompt dropped")


def test_rows_stored_layer_by_layer_become_tokens(tmp_path: Path) -> None:
    trace = IMPORTERS["moe-beyond"]([put(tmp_path / "p.csv", deepseek())])
    assert trace.experts[:, :, 0].tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]
    assert trace.spec.layer_ids == (1, 2, 3)
    assert trace.pieces == ('"', ",", "<s>", "Hi")
    assert [trace.pieces[i] for i in trace.token_id] == ["<s>", "Hi", ",", '"']
    assert trace.prompts[0].dataset == "moe-beyond"
    assert set(trace.step.tolist()) == {0}
    assert not trace.provenance.ranked


def test_a_prompt_is_one_pass_and_decode_is_a_pass_a_token(tmp_path: Path) -> None:
    trace = IMPORTERS["route-trace"]([put(tmp_path / "run.csv", route_trace())])
    assert trace.step.tolist() == [0, 0, 0, 1, 2, 3, 3, 3, 4, 5]
    assert trace.position.tolist() == [0, 1, 2, 3, 4] * 2
    assert [(p.name, p.dataset, p.prefill) for p in trace.prompts] == [
        ("run/turn-0", "Some-Q4", 3),
        ("run/turn-1", "Some-Q4", 3),
    ]
    assert (trace.experts[:, 2, 0] < 0).tolist() == [True, True, False, False, False] * 2
    assert trace.spec.model == "Some-Q4.gguf"
    assert trace.spec.expert_bytes == (100, 101, 102)
    assert "4 prompt tokens in its last layer" in trace.provenance.notes[0]


@pytest.mark.parametrize(
    ("text", "kind"), [("0.654321", np.float32), ("6.5e-05", np.float32), ("0.1234567890123", np.float64)]
)
def test_printed_weights_take_the_float_that_prints_them_back(text: str, kind: type, tmp_path: Path) -> None:
    source = put(tmp_path / "run.csv", route_trace().replace("0.654321", text))
    trace = IMPORTERS["route-trace"]([source])
    assert trace.weights is not None
    assert trace.weights.dtype == kind
    assert float(f"{float(trace.weights[0, 0, 0]):.{13}g}" if kind is np.float64 else text) == float(text)


def test_warm_up_goes_and_slots_become_sequences(tmp_path: Path) -> None:
    sources = [put(tmp_path / f"{n}.jsonl", vllm(n)) for n in (8, 0)]
    trace = IMPORTERS["vllm-logger"](sources)
    names = ["prefill-0", "prefill-1", "decode-0/slot-0", "decode-0/slot-1", "decode-1/slot-0"]
    assert [p.name for p in trace.prompts] == names
    assert [p.prefill for p in trace.prompts] == [3, 6, 0, 0, 0]
    assert trace.sequence.tolist() == [0] * 3 + [1] * 6 + [2, 2, 3, 3, 4, 4]
    assert trace.step.tolist() == [0] * 3 + [1] * 6 + [2, 3, 2, 3, 4, 5]
    assert trace.position.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 0, 1, 0, 1]
    assert trace.spec.layer_ids == (0, 8)
    assert trace.experts[:, :, 0].tolist()[9:11] == [[4, 2], [0, 3]]  # calls 4 and 5, slot 0, layers 0 and 8
    assert trace.provenance.notes[0].startswith("9 warm-up rows dropped: 2 leading calls")
    assert any("both sides" in note for note in trace.provenance.notes)


@pytest.mark.parametrize(
    ("sizes", "first"),
    [([65, 1406, 25, 25, 24], 2), ([9, 9, 8], 0), ([70, 5], 2), ([1406, 65, 25, 24, 24], 3), ([], 0)],
)
def test_decode_begins_where_the_batch_keeps_its_size(sizes: list[int], first: int) -> None:
    assert _first_decode(sizes) == first


def test_a_printed_tensor_is_softmaxed_and_checked(tmp_path: Path) -> None:
    trace = IMPORTERS["router-logits"]([put(tmp_path / "s.csv", logits() + logits(name="def"))], layers=(1, 3))
    powers = np.exp([1.0, -0.5, 3.25, 0.0])
    assert trace.weights is not None
    assert trace.weights[0, 0, 0] == np.float32(powers[2] / powers.sum())
    assert trace.token_id.tolist() == [0, 5, 7] * 2
    assert trace.provenance.self_check == 1.0
    assert trace.spec.layer_ids == (1, 3)
    wrong = put(tmp_path / "w.csv", logits().replace("tensor([2])", "tensor([1])"))
    assert IMPORTERS["router-logits"]([wrong]).provenance.self_check == 0.0


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    sources = good(tmp_path)
    with pytest.raises(ChoiceError, match="--layers names 3 layers"):
        IMPORTERS["router-logits"](sources["router-logits"], layers=(1, 2, 3))
    with pytest.raises(SourceError, match="has 9 experts a layer, not 7"):
        IMPORTERS["route-trace"](sources["route-trace"], experts=7)


# What broken files are answered with: one sentence that names the file and the place, and nothing left behind.

Case = Callable[[Path], list[Path]]


def one(name: str, content: str | bytes) -> Case:
    return lambda folder: [put(folder / name, content)]


def many(**contents: str | bytes) -> Case:
    return lambda folder: [put(folder / name.replace("__", "."), text) for name, text in contents.items()]


def changed(row: int, **values: Any) -> bytes:
    rows = records()
    rows[row] = {**rows[row], **values}
    return lines(rows)


def tar_of(name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        content = deepseek().encode()
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, len(content) if kind == tarfile.REGTYPE else 0, "/etc/passwd"
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zip_of(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, deepseek())
    return out.getvalue()


whole = lines(records(tokens=50))
BROKEN: dict[str, tuple[str, Case, list[str]]] = {
    # records
    "cut line": ("records", one("a.jsonl", lines(records())[:-30]), ["a.jsonl, line 12", "not whole JSON"]),
    "cut line in the middle": (
        "records",
        one("a.jsonl", b'\n{"dataset": "d", "lay\n' + whole),
        ["a.jsonl, line 2", "not whole JSON"],
    ),
    "not an object": ("records", one("a.jsonl", lines(records()) + b"[1]\n"), ["a.jsonl, line 13", "object"]),
    "negative expert": ("records", one("a.jsonl", changed(4, experts=[-1, 2])), ["a.jsonl, line 5", "expert -1"]),
    "large expert": ("records", one("a.jsonl", changed(4, experts=[1, 9])), ["a.jsonl, line 5", "outside 0..7"]),
    "text for an expert": ("records", one("a.jsonl", changed(4, experts=["x", 1])), ["a.jsonl, line 5", "experts"]),
    "null expert": ("records", one("a.jsonl", changed(4, experts=[None, 1])), ["a.jsonl, line 5", "null"]),
    "no experts": ("records", one("a.jsonl", changed(4, experts=None)), ["a.jsonl, line 5", "experts is missing"]),
    "k differs": ("records", one("a.jsonl", changed(4, experts=[1])), ["a.jsonl, line 5", "1 entries, but 2"]),
    "NaN": ("records", one("a.jsonl", changed(4, gating_probs=[float("nan"), 1])), ["a.jsonl, line 5", "not a number"]),
    "infinity": (
        "records",
        one("a.jsonl", changed(4, gating_probs=[1, float("inf")])),
        ["a.jsonl, line 5", "not a number"],
    ),
    "no weights once": ("records", one("a.jsonl", changed(4, gating_probs=None)), ["a.jsonl, line 5", "gating_probs"]),
    "one weight": ("records", one("a.jsonl", lines(records(gating_probs=[1.0]))), ["a.jsonl, line 1", "1 entries"]),
    "no problem": ("records", one("a.jsonl", lines(records(problem_id=None))), ["a.jsonl, line 1", "problem_id"]),
    "two kinds of problem": ("records", one("a.jsonl", changed(4, problem_id="x")), ["a.jsonl", "same fields"]),
    "negative token": ("records", one("a.jsonl", changed(4, token_idx=-1)), ["a.jsonl, line 5", "token_idx"]),
    "huge token": ("records", one("a.jsonl", changed(4, token_idx=2**40)), ["a.jsonl, line 5", "token_idx"]),
    "second record": (
        "records",
        one("a.jsonl", b"\n" + lines(records()) + lines(records()[4:5])),
        ["a.jsonl, line 14", "second record of token_idx 1 in layer 1"],
    ),
    "skipped layer": (
        "records",
        one("a.jsonl", lines([r for r in records() if r["layer"] != 2])),
        ["a.jsonl", "nothing of layer 2"],
    ),
    "a file with fewer layers": (
        "records",
        many(a__jsonl=lines(records()), b__jsonl=lines(records(layers=3, problem_id=1))),
        ["b.jsonl", "nothing of layer 3"],
    ),
    "mixed k": (
        "records",
        many(a__jsonl=lines(records()), b__jsonl=lines(records(problem_id=1, experts=[1], gating_probs=[1.0]))),
        ["b.jsonl", "a.jsonl", "one model at a time"],
    ),
    "weights in one file only": (
        "records",
        many(a__jsonl=lines(records()), b__jsonl=lines(records(problem_id=1, gating_probs=None))),
        ["b.jsonl has no gating_probs", "a.jsonl"],
    ),
    "one problem in two files": (
        "records",
        many(a__jsonl=lines(records()), b__jsonl=lines(records())),
        ["prompt d/0 is in", "a.jsonl", "b.jsonl"],
    ),
    "empty": ("records", one("a.jsonl", b"\n"), ["a.jsonl", "is empty"]),
    "cut xz": ("records", one("a.jsonl.xz", lzma.compress(whole)[:-40]), ["a.jsonl.xz", "cut short"]),
    "cut gz": ("records", one("a.jsonl.gz", gzip.compress(whole)[:-40]), ["a.jsonl.gz", "cut short"]),
    "not xz": ("records", one("a.jsonl.xz", whole), ["a.jsonl.xz", "damaged"]),
    "not gz": ("records", one("a.jsonl.gz", whole), ["a.jsonl.gz", "damaged"]),
    "no such file": ("records", lambda folder: [folder / "none.jsonl"], ["none.jsonl does not exist"]),
    "no such format": ("recrods", one("a.jsonl", whole), ["'recrods'", "records, moe-beyond, route-trace"]),
    "empty folder": ("records", lambda folder: [folder], ["no .jsonl file"]),
    # moe-beyond
    "column gone": ("moe-beyond", one("p.csv", deepseek().replace("Token", "Tok")), ["p.csv, line 1", "'Token'"]),
    "layer gone": ("moe-beyond", one("p.csv", deepseek(layers=(1, 3))), ["p.csv", "nothing of layer 2"]),
    "layer gone in one": (
        "moe-beyond",
        many(p__csv=deepseek(), q__csv=deepseek(layers=(1, 2), add=1)),
        ["q.csv", "nothing of layer 3"],
    ),
    "row gone": (
        "moe-beyond",
        one("p.csv", "".join(deepseek().splitlines(keepends=True)[:-1])),
        ["p.csv", "3 tokens in layer 3"],
    ),
    "cut row": (
        "moe-beyond",
        one("p.csv", deepseek().strip().rpartition(",")[0].rpartition(",")[0]),
        ["p.csv, line 13"],
    ),
    "not a list": (
        "moe-beyond",
        one("p.csv", deepseek().replace("[3, 63]", "[3, x]")),
        ["p.csv, line 4", "list of ids"],
    ),
    "negative id": (
        "moe-beyond",
        one("p.csv", deepseek().replace("[3, 63]", "[-3, 63]")),
        ["p.csv, line 4", "expert -3"],
    ),
    "shorter set": ("moe-beyond", one("p.csv", deepseek().replace("[3, 63]", "[3]")), ["p.csv, line 4", "1 entries"]),
    "other text": ("moe-beyond", one("p.csv", deepseek().replace("2,0,Hi", "2,0,Ho")), ["p.csv, line 7", "same text"]),
    "not a layer": (
        "moe-beyond",
        one("p.csv", deepseek().replace("2,0,Hi", "two,0,Hi")),
        ["p.csv, line 7", "whole number"],
    ),
    "two batches": ("moe-beyond", one("p.csv", deepseek().replace("2,0,Hi", "2,1,Hi")), ["p.csv, line 7", "batch 1"]),
    "header only": ("moe-beyond", one("p.csv", deepseek(pieces=())), ["p.csv", "no rows"]),
    "absolute tar": ("moe-beyond", one("t.tar.xz", tar_of("/etc/p.csv")), ["t.tar.xz", "'/etc/p.csv'", "outside"]),
    "climbing tar": ("moe-beyond", one("t.tar.xz", tar_of("a/../../p.csv")), ["t.tar.xz", "outside"]),
    "link in tar": ("moe-beyond", one("t.tar.xz", tar_of("p.csv", tarfile.SYMTYPE)), ["t.tar.xz", "link"]),
    "cut tar.xz": ("moe-beyond", one("t.tar.xz", tar_of("p.csv")[:-50]), ["t.tar.xz", "cut short"]),
    "not a tar": ("moe-beyond", one("t.tar", b"x" * 2000), ["t.tar", "damaged"]),
    "absolute zip": ("moe-beyond", one("t.zip", zip_of("/p.csv")), ["t.zip", "outside"]),
    "climbing zip": ("moe-beyond", one("t.zip", zip_of("../p.csv")), ["t.zip", "outside"]),
    "windows zip": ("moe-beyond", one("t.zip", zip_of("C:\\p.csv")), ["t.zip", "outside"]),
    "cut zip": ("moe-beyond", one("t.zip", zip_of("p.csv")[:-50]), ["t.zip", "damaged"]),
    "zip without csv": ("moe-beyond", one("t.zip", zip_of("p.txt")), ["t.zip", "no .csv file"]),
    # route-trace
    "no magic": ("route-trace", one("r.csv", route_trace()[2:]), ["r.csv, line 1", "route_trace v1"]),
    "no model": ("route-trace", one("r.csv", route_trace().replace("model=", "")), ["r.csv, line 2", "header"]),
    "cut route row": ("route-trace", one("r.csv", route_trace()[:-12]), ["r.csv, line 58", "7 fields"]),
    "expert too large": (
        "route-trace",
        one("r.csv", route_trace().replace("0,0,0,0,1,1,", "0,0,0,0,1,9,")),
        ["r.csv, line 8", "outside 0..8"],
    ),
    "NaN weight": (
        "route-trace",
        one("r.csv", route_trace().replace("0,0,0,0,1,1,0.345679", "0,0,0,0,1,1,nan")),
        ["r.csv, line 8", "not a number"],
    ),
    "word for a weight": (
        "route-trace",
        one("r.csv", route_trace().replace("0,0,0,0,1,1,0.345679", "0,0,0,0,1,1,x")),
        ["r.csv, line 8", "not a number"],
    ),
    "slot twice": (
        "route-trace",
        one("r.csv", route_trace().replace("0,0,0,0,1,1,", "0,0,0,0,0,1,")),
        ["r.csv, line 8", "second row"],
    ),
    "slot gone": ("route-trace", one("r.csv", route_trace().rstrip().rpartition("\n")[0]), ["r.csv", "1 of 2 slots"]),
    "route layer gone": (
        "route-trace",
        one(
            "r.csv", "\n".join(t for t in route_trace().split("\n") if t.startswith("#") or t.split(",")[3:4] != ["1"])
        ),
        ["r.csv", "nothing of layer 1"],
    ),
    "two models": (
        "route-trace",
        many(r__csv=route_trace(), s__csv=route_trace(model="other.gguf")),
        ["s.csv", "other.gguf", "Some-Q4.gguf", "one model at a time"],
    ),
    # vllm-logger
    "no meta": ("vllm-logger", one("l.jsonl", vllm(0).split(b"\n", 1)[1]), ["l.jsonl, line 1", "meta"]),
    "rows differ": (
        "vllm-logger",
        many(l0__jsonl=vllm(0), l1__jsonl=vllm(8, calls=(5, 4, 3, 6, 2, 1, 1))),
        ["l1.jsonl, line 23", "token_idx is 0, but 1", "l0.jsonl"],
    ),
    "shorter file": (
        "vllm-logger",
        many(l0__jsonl=vllm(0), l1__jsonl=vllm(8)[: vllm(8).rstrip().rindex(b"\n")]),
        ["l1.jsonl has 23 rows", "l0.jsonl has 24"],
    ),
    "other model": (
        "vllm-logger",
        many(l0__jsonl=vllm(0), l1__jsonl=vllm(8, model="n")),
        ["l1.jsonl", "l0.jsonl", "one model"],
    ),
    "layer twice": ("vllm-logger", many(l0__jsonl=vllm(0), l1__jsonl=vllm(0)), ["l1.jsonl", "l0.jsonl", "layer 0"]),
    "growing batch": (
        "vllm-logger",
        one("l.jsonl", vllm(0, calls=(5, 4, 2, 2, 3), warm=2)),
        ["l.jsonl, line 15", "new requests joined"],
    ),
    "only warm-up": ("vllm-logger", one("l.jsonl", vllm(0, calls=(5, 4))), ["l.jsonl", "warm-up"]),
    "wrong layer": (
        "vllm-logger",
        one("l.jsonl", vllm(0).replace(b'"layers_logged": [0]', b'"layers_logged": [3]')),
        ["l.jsonl", "layer 3"],
    ),
    "vllm large expert": (
        "vllm-logger",
        one("l.jsonl", vllm(0).replace(b"[1, 2]", b"[1, 90]", 1)),
        ["l.jsonl, line 2", "expert 90"],
    ),
    "vllm NaN": (
        "vllm-logger",
        one("l.jsonl", vllm(0).replace(b"0.125", b"NaN", 1)),
        ["l.jsonl, line 2", "topk_weights"],
    ),
    "token skipped": (
        "vllm-logger",
        one("l.jsonl", vllm(0).replace(b'"token_idx": 3', b'"token_idx": 7', 1)),
        ["l.jsonl, line 5", "counts up"],
    ),
    # router-logits
    "cut tensors": ("router-logits", one("s.csv", logits() + logits()[:-30]), ["s.csv, line 8", "get the whole file"]),
    "skipped step": ("router-logits", one("s.csv", logits().replace(",1,", ",4,")), ["s.csv, line 1", "step 1"]),
    "nan logit": ("router-logits", one("s.csv", logits().replace("3.2500", "nan", 1)), ["s.csv, line 1", "step 0"]),
    "no such id": ("router-logits", one("s.csv", logits().replace("([2])", "([4])", 1)), ["s.csv, line 1", "0..3"]),
    "code": (
        "router-logits",
        one("s.csv", logits().replace("3.2500", "__import__('os')", 1)),
        ["s.csv, line 1", "plain numbers"],
    ),
    "one layer less": (
        "router-logits",
        one("s.csv", f"abc,0,{tensors()},tensor(0),1,{tensors(layers=1)},tensor(1)\n"),
        ["s.csv, line 1", "every step needs every layer"],
    ),
    "other width": (
        "router-logits",
        one("s.csv", logits() + f"def,0,{tensors(layers=1)},tensor(0)\n"),
        ["s.csv, line 8", "1 layers", "one model"],
    ),
}
NEEDS_EXPERTS = {"large expert": "8", "vllm large expert": "8"}


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """The command line: exit code, standard output, standard error."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["foregate", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capsys.readouterr()
        return int(exit_.value.code or 0), said.out, said.err

    yield command  # noqa: PT022


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_source_is_answered_with_a_sentence(case: str, run: Callable[..., Any], tmp_path: Path) -> None:
    form, make, expected = BROKEN[case]
    (tmp_path / "in").mkdir()
    sources = make(tmp_path / "in")
    before = set(tmp_path.rglob("*"))
    options = ["--experts", NEEDS_EXPERTS[case]] if case in NEEDS_EXPERTS else []
    code, out, err = run("import", form, *sources, "-o", tmp_path / "t.parquet", *options)
    assert (code, out) == (2, "")
    sentence = err.strip()
    assert sentence.startswith("foregate: ")
    assert "\n" not in sentence
    assert not [part for part in expected if part not in sentence], sentence
    assert set(tmp_path.rglob("*")) == before


def test_the_command_says_what_it_did_and_what_to_do_next(run: Callable[..., Any], tmp_path: Path) -> None:
    source = put(tmp_path / "a.jsonl", lines(records()[:-1]))
    code, out, _ = run(
        "import", "records", source, "-o", tmp_path / "t.parquet", "--model", "Mixtral", "--layers", "0,1,2,3"
    )
    assert code == 0
    assert "note: 1 record missing in a.jsonl" in out
    assert "3 tokens (2 complete), 1 prompt, 4 layers, 2 of 8 experts" in out
    assert f"next: foregate describe {tmp_path / 't.parquet'}" in out
    assert read_trace(tmp_path / "t.parquet").spec.model == "Mixtral"


def test_weights_can_be_left_out(run: Callable[..., Any], tmp_path: Path) -> None:
    source = put(tmp_path / "a.jsonl", lines(records(gating_probs=[0.25, 0.75])))
    assert run("import", "records", source, "-o", tmp_path / "t.parquet", "--no-weights")[0] == 0
    trace = read_trace(tmp_path / "t.parquet")
    assert trace.weights is None
    assert trace.provenance.ranked
    assert trace.experts[0, 0].tolist() == [7, 0]  # the heavier one first
    assert any("--no-weights" in note for note in trace.provenance.notes)


def test_an_existing_output_is_kept_unless_told_otherwise(run: Callable[..., Any], tmp_path: Path) -> None:
    source, output = put(tmp_path / "a.jsonl", lines(records())), put(tmp_path / "t.parquet", "precious")
    code, _, err = run("import", "records", source, "-o", output)
    assert code == 2
    assert "--overwrite" in err
    assert output.read_text() == "precious"
    assert run("import", "records", source, "-o", output, "--overwrite")[0] == 0
    assert len(read_trace(output)) == 3


@pytest.mark.parametrize("layers", ["1,x", "3,1", "1,1"])
def test_layers_must_be_increasing_numbers(layers: str, run: Callable[..., Any], tmp_path: Path) -> None:
    source = put(tmp_path / "a.jsonl", lines(records()))
    code, _, err = run("import", "records", source, "-o", tmp_path / "t.parquet", "--layers", layers)
    assert code == 2
    assert "--layers" in err


def test_the_help_names_every_format(run: Callable[..., Any]) -> None:
    out = run("import", "--help")[1]
    assert all(f"{form} - " in out for form in IMPORTERS)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    rows = [row for problem in range(40) for row in records(tokens=20, problem_id=problem)]
    random = np.random.default_rng(0)
    for row in rows:
        row["gating_probs"] = random.random(2).tolist()
    source = put(tmp_path / "a.jsonl", lines(rows))
    (tmp_path / "out").mkdir()
    words = ["import", "records", str(source), "-o", str(tmp_path / "out/t.parquet")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[1:] = {words!r}; from foregate.cli import main; main()"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "File too large; nothing was left behind" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


# What must come out of the published data.


def complete(trace: Trace) -> list[int]:
    """Complete tokens of each prompt."""
    whole_rows = (trace.experts >= 0).all(axis=(1, 2))
    return np.bincount(trace.sequence, weights=whole_rows).astype(int).tolist()


@published
def test_published_mixtral() -> None:
    sources = [DATA / f"mixtral-8x7b-instruct/{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")]
    trace = IMPORTERS["records"](sources, model="Mixtral")
    assert [p.name for p in trace.prompts] == ["humaneval/0", "humaneval/1", "gsm8k/0", "gsm8k/1"]
    assert complete(trace) == [81, 252, 166, 78]
    assert int((trace.experts >= 0).sum()) == 2 * (10_779 + 7_889)
    assert trace.experts.shape == (585, 32, 2)
    assert trace.weights is not None
    assert trace.weights.dtype == np.float32
    assert trace.spec.num_experts == 8
    assert any("37 records missing" in note for note in trace.provenance.notes)
    assert any("15 records missing" in note for note in trace.provenance.notes)
    assert sum("too early" in note for note in trace.provenance.notes) == 2
    assert not trace.prefill.any()


@published
def test_published_mixtral_is_small_on_disk(run: Callable[..., Any], tmp_path: Path) -> None:
    sources = [DATA / f"mixtral-8x7b-instruct/{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")]
    text = sum(len(lzma.decompress(path.read_bytes())) for path in sources)
    run("import", "records", *sources, "-o", tmp_path / "t.parquet")
    run("import", "records", *sources, "-o", tmp_path / "bare.parquet", "--no-weights")
    assert (tmp_path / "t.parquet").stat().st_size <= text / 12
    assert (tmp_path / "bare.parquet").stat().st_size <= text / 60


@published
def test_published_deepseek() -> None:
    trace = IMPORTERS["moe-beyond"]([DATA / "deepseek-v2-lite-chat/traces.tar.xz"])
    assert trace.experts.shape == (138_595, 26, 6)
    assert len(trace.prompts) == 1_420
    assert {p.dataset for p in trace.prompts} == {"a", "b"}
    assert trace.spec.layer_ids == tuple(range(1, 27))
    assert trace.spec.num_experts == 64
    assert trace.has_tokens
    assert trace.prefill.all()
    assert len(set(trace.step.tolist())) == 1_420
    assert not trace.provenance.ranked


@published
@pytest.mark.parametrize(
    ("name", "shape", "model", "prompt", "absent"),
    [
        ("qwen3-30b-a3b/qwen", (156, 48, 6), "Qwen3-30B-A3B-Q4_K_M.gguf", 28, 27),
        ("gemma-4-26b-a4b/gemma", (157, 30, 6), "google_gemma-4-26B-A4B-it-Q4_K_M.gguf", 29, 0),
    ],
)
def test_published_route_traces(name: str, shape: tuple[int, ...], model: str, prompt: int, absent: int) -> None:
    trace = IMPORTERS["route-trace"]([DATA / f"{name}.route.csv.xz"])
    assert trace.experts.shape == shape
    assert trace.spec.model == model
    assert trace.spec.num_experts == 128
    assert [p.prefill for p in trace.prompts] == [prompt]
    assert int((trace.experts[:, :, 0] < 0).sum()) == absent
    assert trace.spec.expert_bytes is not None
    assert len(set(trace.spec.expert_bytes)) == 2
    assert trace.step.max() == shape[0] - prompt


@published
def test_published_qwen15() -> None:
    trace = IMPORTERS["vllm-logger"]([DATA / "qwen1.5-moe-a2.7b-chat"])
    assert trace.experts.shape == (4_357, 5, 4)
    assert trace.spec.layer_ids == (0, 8, 12, 18, 23)
    assert trace.spec.num_experts == 60
    assert int(trace.prefill.sum()) == 1_471
    assert int((~trace.prefill).sum()) == 2_886
    assert trace.provenance.notes[0].startswith("8,448 warm-up rows dropped")
    assert trace.weights is not None
    assert trace.weights.dtype == np.float32


@published
def test_published_switch() -> None:
    trace = IMPORTERS["router-logits"]([DATA / "switch-base-32/decoder_router_logits.csv.xz"])
    assert trace.experts.shape == (135, 6, 1)
    assert np.bincount(trace.sequence).tolist() == [57, 78]
    assert trace.spec.num_experts == 32
    assert trace.provenance.self_check == 1.0
    assert trace.token_id[0] == 0
