"""`moe-beyond`: a CSV per prompt, as published for DeepSeek-V2-Lite. Routed ids without weights, in no order.

    Layer ID,Batch Number,Token,Activated Expert IDs
    1,0,What,"[8, 22, 43, 46, 63, 17]"

Rows go layer by layer through the whole prompt. Tokens are pieces of text. One prompt is one prefill, one step.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foregate.arrays import Int
from foregate.errors import SourceError
from foregate.spec import MoESpec
from foregate.traces.importers.delimited import id_lists, integers, line_of, read_columns
from foregate.traces.importers.interface import (
    expert_count,
    impossible,
    layer_numbers,
    names_differ,
    origin,
    plural,
)
from foregate.traces.schema import Prompt, Trace, smallest_int
from foregate.traces.sources import Document, Meter, documents

UNKNOWN = "unknown (moe-beyond)"
DATASET = "moe-beyond"
COLUMNS = ("Layer ID", "Batch Number", "Token", "Activated Expert IDs")


@dataclass(frozen=True)
class _Routed:
    """One prompt."""

    name: str
    origin: str
    layers: tuple[int, ...]
    pieces: tuple[str, ...]  # T of them
    experts: Int  # [T, L, k]

    def digest(self) -> bytes:
        """Equal for prompts of the same pieces and the same routing."""
        text = "\0".join(self.pieces).encode()
        return hashlib.blake2b(text + b"\0\0" + self.experts.tobytes(), digest_size=16).digest()


def read(
    sources: Sequence[Path],
    *,
    model: str | None = None,
    experts: int | None = None,
    layers: tuple[int, ...] | None = None,
    dataset: str | None = None,
    meter: Meter | None = None,
) -> Trace:
    """See `Importer`."""
    found = [_read(document, experts) for document in documents(sources, ".csv", meter)]
    prompts = _alike(sorted(found, key=lambda p: p.name), layers)
    kept = list({prompt.digest(): prompt for prompt in reversed(prompts)}.values())[::-1]
    names_differ(named := [_prompt(p, dataset) for p in kept], [p.origin for p in kept])
    count, notes = expert_count(max(int(p.experts.max()) for p in kept), experts)
    notes = ("the ids of a routed set are in no order: the source ranks nothing and has no weights", *notes)
    if len(kept) < len(prompts):
        notes = (f"{plural(len(prompts) - len(kept), 'prompt')} dropped: same text and routing as another", *notes)
    lengths = np.array([len(p.pieces) for p in kept])
    pieces, token_id = np.unique(np.array([t for p in kept for t in p.pieces], dtype=object), return_inverse=True)
    sequence = np.repeat(np.arange(len(kept), dtype=np.int32), lengths)
    spec = MoESpec(model or UNKNOWN, "decoder", kept[0].layers, count, kept[0].experts.shape[2])
    return Trace(
        spec=spec,
        sequence=sequence,
        position=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        step=sequence.copy(),
        token_id=token_id.astype(np.int32),
        experts=np.concatenate([p.experts for p in kept]).astype(smallest_int(count - 1)),
        weights=None,
        hidden=None,
        prompts=tuple(named),
        provenance=origin(sources, "moe-beyond", *notes, ranked=False),
        pieces=tuple(pieces.tolist()),
    )


def _read(document: Document, experts: int | None) -> _Routed:
    columns = read_columns(document, COLUMNS)
    layer = integers(document, columns, "Layer ID")
    batch = integers(document, columns, "Batch Number")
    if (batch != batch[0]).any():
        line = line_of(document, int((batch != batch[0]).argmax()))
        raise document.wrong(f"begins batch {batch[batch != batch[0]][0]}; a file holds one prompt", line)
    ids = id_lists(document, columns, "Activated Expert IDs")
    if bad := impossible(ids, experts):
        raise document.wrong(bad[1], line_of(document, bad[0]))
    numbers, counts = np.unique(layer, return_counts=True)
    _whole(document, numbers, counts)
    order = np.argsort(layer, kind="stable").reshape(len(numbers), -1)  # [L, T] rows of the file
    pieces = columns["Token"].to_numpy(zero_copy_only=False)[order]
    _same_text(document, order, pieces)
    routed = ids[order].transpose(1, 0, 2).astype(smallest_int(int(ids.max())))
    return _Routed(document.stem, document.origin, tuple(numbers.tolist()), tuple(pieces[0].tolist()), routed)


def _whole(document: Document, numbers: Int, counts: Int) -> None:
    """Every layer must carry every token."""
    if (counts != counts[0]).any():
        short = int(counts.argmin())
        what = f"has {counts[short]} tokens in layer {numbers[short]}, but {counts.max()} in another"
        raise document.wrong(f"{what}; get the whole file")


def _same_text(document: Document, order: Int, pieces: Int) -> None:
    differs = pieces != pieces[0]
    if differs.any():
        layer, token = np.argwhere(differs)[0]
        line = line_of(document, int(order[layer, token]))
        what = f"token {token} is {pieces[layer, token]!r} here, but {pieces[0, token]!r} in the first layer"
        raise document.wrong(f"{what}; layers must carry the same text", line)


def _alike(prompts: list[_Routed], layers: tuple[int, ...] | None) -> list[_Routed]:
    """Only prompts of one model make one trace."""
    found = {number for prompt in prompts for number in prompt.layers}
    own = layers or tuple(range(min(found), max(found) + 1))
    for prompt in prompts:
        layer_numbers(prompt.layers, own, prompt.origin)
        if prompt.experts.shape[2] != prompts[0].experts.shape[2]:
            raise SourceError(
                f"{prompt.origin} routes to {prompt.experts.shape[2]} experts a token, but {prompts[0].origin} to "
                f"{prompts[0].experts.shape[2]}; import one model at a time"
            )
    return prompts


def _prompt(prompt: _Routed, dataset: str | None) -> Prompt:
    """File names like `a_prompt_195_data` carry their data set as one letter."""
    letter = re.match(r"([a-z])_", prompt.name)
    return Prompt(prompt.name, dataset or (letter[1] if letter else DATASET), prefill=len(prompt.pieces))
