"""Traces on disk: one Parquet file, a row per token; and the folder of parts that a recording grows until it is whole.

Fixed-size-list columns hold [L * k] numbers a row; everything else (spec, prompts, provenance) is JSON in the file's
metadata. A recording writes each batch of whole prompts as a small trace of its own into `NAME.partial/`, so a killed
one loses nothing that was flushed and reads back like any other trace.
"""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foregate.errors import StorageError, TraceError
from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Provenance, Trace, check, concat, smallest_int

FORMAT = 1
METADATA = b"foregate"
CHECKSUM = b"foregate.crc32"
PART = ".partial"
SCALARS = ("sequence", "position", "step", "token_id")
HIDDEN = ("hidden", "residual")
LISTS = ("experts", "weights", *HIDDEN)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place if all goes well, and vanishes if not.

    Raises: StorageError where the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, pa.ArrowInvalid) or error.errno is None:
            raise
        raise StorageError(f"cannot write {path}: {os.strerror(error.errno)}; nothing was left behind") from error
    finally:
        with contextlib.suppress(OSError):  # it may never have come to be
            temporary.unlink()


def write_trace(trace: Trace, path: Path | str) -> None:
    """Write a trace as one Parquet file: whole, or not at all.

    Raises: TraceError for an impossible trace, StorageError where the disk refuses.
    """
    check(trace, str(path))
    with replacing(Path(path)) as temporary:
        table = _table(trace)
        with _writer(temporary, table.schema) as writer:
            writer.write_table(table, row_group_size=1 << 16)


def read_trace(path: Path | str, *, hidden: bool = True) -> Trace:
    """Read a trace: a Parquet file, or the `.partial` folder of a recording that was stopped.

    hidden: whether to read hidden states (router inputs and residual stream), by far the largest columns.

    Raises: TraceError for anything that is not a whole trace.
    """
    path = Path(path)
    if path.is_dir():
        return concat([_read_file(part, hidden) for part in parts(path)] or _empty(path))
    return _read_file(path, hidden)


def parts(folder: Path) -> list[Path]:
    """The flushed parts of a recording, in order."""
    return sorted(folder.glob("*.parquet"))


class TraceWriter:
    """A trace that grows by whole prompts. `append` flushes; `finish` makes the one file and removes the parts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.with_name(path.name + PART)

    def flushed(self) -> Trace | None:
        """What an earlier, stopped recording already holds (without hidden states); None if nothing."""
        return read_trace(self.folder, hidden=False) if self.folder.is_dir() and parts(self.folder) else None

    def discard(self) -> None:
        """Forget what an earlier recording left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, trace: Trace) -> None:
        """Flush some whole prompts."""
        write_trace(trace, self.folder / f"{len(parts(self.folder)):06d}.parquet")

    def finish(self, provenance: Provenance) -> None:
        """Join the parts into one file, a part in memory at a time, with the provenance of the whole recording."""
        files = parts(self.folder)
        whole = read_trace(self.folder, hidden=False)
        schema = _widest([pq.read_schema(f) for f in files])
        schema = schema.with_metadata(_metadata(replace(whole, provenance=provenance)))
        sequence_shift = step_shift = 0
        with replacing(self.path) as temporary, _writer(temporary, schema) as writer:
            for file in files:
                part = _read_file(file, hidden=True)
                moved = replace(
                    part,
                    sequence=part.sequence + np.int32(sequence_shift),
                    step=part.step + np.int32(step_shift),
                )
                sequence_shift += len(part.prompts)
                step_shift += int(part.step.max()) + 1
                writer.write_table(_table(moved).cast(schema))
        self.discard()


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    floats = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in LISTS[1:] if name in schema.names}
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=12,
        use_dictionary=["sequence", "step", "experts.list.element"],
        column_encoding={**floats, "position": "DELTA_BINARY_PACKED", "token_id": "PLAIN"},
        write_statistics=False,
        write_page_checksum=True,  # a flipped bit is an error when read, not a different expert
        store_schema=True,
    )


def _table(trace: Trace) -> pa.Table:
    experts = trace.experts.astype(smallest_int(trace.spec.num_experts - 1), copy=False)
    columns: dict[str, pa.Array] = {name: pa.array(getattr(trace, name).astype(np.int32)) for name in SCALARS}
    for name, array in (("experts", experts), *((name, getattr(trace, name)) for name in LISTS[1:])):
        if array is not None:
            flat = np.ascontiguousarray(array).reshape(len(trace), -1)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    return pa.table(columns).replace_schema_metadata(_metadata(trace))


def _metadata(trace: Trace) -> dict[bytes, bytes]:
    values = {
        "format": FORMAT,
        "spec": trace.spec.to_json(),
        "provenance": asdict(trace.provenance),
        "prompts": [[p.name, p.dataset, p.prefill] for p in trace.prompts],
        "pieces": trace.pieces,
        "tokens": len(trace),
    }
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return {METADATA: text, CHECKSUM: b"%08x" % zlib.crc32(text)}


def read_shape(path: Path) -> tuple[MoESpec, tuple[Prompt, ...], int]:
    """The model, the prompts and the number of tokens of a trace file, without reading its rows.

    Raises: TraceError as `read_trace`.
    """
    with _readable(path):
        values = _values(_open(path).schema_arrow.metadata)
        prompts = tuple(Prompt(*p) for p in values["prompts"])
        return MoESpec.from_json(values["spec"]), prompts, int(values["tokens"])


def read_batches(path: Path, *, rows: int, hidden: bool) -> Iterator[Trace]:
    """A trace file's rows in order, so many at a time; each batch has the whole table of prompts.

    Raises: TraceError as `read_trace`.
    """
    with _readable(path):
        file = _open(path)
        values = _values(file.schema_arrow.metadata)
        names = [n for n in file.schema_arrow.names if hidden or n not in HIDDEN]
        left = values.pop("tokens")
        for batch in file.iter_batches(batch_size=rows, columns=names, use_threads=False):
            left -= len(batch)
            yield check(_decode(pa.Table.from_batches([batch]), values, path), str(path))
        if left:
            raise ValueError(f"it lacks {left} tokens")


def _read_file(path: Path, hidden: bool) -> Trace:
    with _readable(path):
        file = _open(path)
        names = [n for n in file.schema_arrow.names if hidden or n not in HIDDEN]
        trace = _decode(file.read(columns=names), _values(file.schema_arrow.metadata), path)
    return check(trace, str(path))


def _open(path: Path) -> pq.ParquetFile:
    file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
    if METADATA not in (file.schema_arrow.metadata or {}):
        raise TraceError(f"{path} is a Parquet file, but not a foregate trace; use `foregate import`")
    return file


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever rot causes becomes a TraceError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise TraceError(f"{path} does not exist; foregate record, or import, makes a trace") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TraceError(f"{path} is not a readable trace ({reason}); record or import it again") from error


def _values(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    text = metadata[METADATA]
    right = b"%08x" % zlib.crc32(text)
    if metadata.get(CHECKSUM, right) != right:
        raise ValueError("its metadata does not match its checksum")
    values: dict[str, Any] = json.loads(text)
    return values


def _decode(table: pa.Table, values: dict[str, Any], path: Path) -> Trace:
    if values["format"] != FORMAT:
        raise TraceError(f"{path} has trace format {values['format']}; this foregate reads format {FORMAT}")
    spec = MoESpec.from_json(values["spec"])
    missing = [n for n in (*SCALARS, "experts") if n not in table.column_names]
    if missing:
        raise TraceError(f"{path} lacks the column {missing[0]}; record or import it again")
    _refuse_rot(table, values)
    provenance = values["provenance"]
    lists = {n: _list_column(table, n, spec) if n in table.column_names else None for n in LISTS}
    assert lists["experts"] is not None
    return Trace(
        spec=spec,
        **{n: table.column(n).to_numpy() for n in SCALARS},
        experts=lists["experts"],
        weights=lists["weights"],
        hidden=lists["hidden"],
        residual=lists["residual"],
        prompts=tuple(Prompt(*p) for p in values["prompts"]),
        provenance=Provenance(
            **{**provenance, "source": tuple(provenance["source"]), "notes": tuple(provenance["notes"])}
        ),
        pieces=None if values["pieces"] is None else tuple(values["pieces"]),
    )


def _refuse_rot(table: pa.Table, values: dict[str, Any]) -> None:
    """What page checksums cannot see: names, nulls and the number of rows stand in the unprotected footer."""
    strange = set(table.column_names) - {*SCALARS, *LISTS}
    if strange:
        raise ValueError(f"there is no column {min(strange)!r} in a trace")
    if any(table.schema.field(name).type != pa.int32() for name in SCALARS):
        raise ValueError("its columns are not of their types")
    if any(column.null_count for column in table.columns):
        raise ValueError("it holds nulls")
    if table.num_rows != values.get("tokens", table.num_rows):
        raise ValueError(f"it holds {table.num_rows} of {values['tokens']} tokens")


def _list_column(table: pa.Table, name: str, spec: MoESpec) -> Any:
    chunks = [c.flatten().to_numpy(zero_copy_only=False) for c in table.column(name).chunks]
    flat = np.concatenate(chunks) if len(chunks) != 1 else chunks[0]
    if flat.dtype.kind not in "if":
        raise ValueError(f"{name} holds nulls")
    return flat.reshape(table.num_rows, spec.num_layers, -1)


def _widest(schemas: list[pa.Schema]) -> pa.Schema:
    """Parts may hold their weights in different widths; the whole takes the widest."""
    fields = [max((s.field(i) for s in schemas), key=lambda f: _width(f.type)) for i in range(len(schemas[0]))]
    return pa.schema(fields)


def _width(kind: pa.DataType) -> int:
    return int((kind.value_type if pa.types.is_fixed_size_list(kind) else kind).bit_width)


def _empty(path: Path) -> list[Trace]:
    raise TraceError(f"{path} is a folder that holds no flushed part of a recording; name a trace's file")
