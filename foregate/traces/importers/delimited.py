"""CSV as columns of text: read fast by pyarrow; only when that fails, row by row to name the bad line."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from foregate.arrays import Int, Int64
from foregate.traces.sources import Document

BLOCK = 16 << 20
FIELD_LIMIT = 1 << 30  # printed tensors are longer than the csv module's 128 KiB


def read_columns(document: Document, names: Sequence[str], *, skip: int = 0) -> dict[str, pa.Array]:
    """The named columns as text; the header follows `skip` lines.

    Raises: SourceError that names the missing column or the line.
    """
    start = _offset(document.data, skip)
    header = next(csv.reader(io.StringIO(document.data[start : start + 4096].decode(errors="replace"))), [])
    missing = [name for name in names if name not in header]
    if missing:
        raise document.wrong(f"the column {missing[0]!r} is missing; it has {', '.join(header)[:80]!r}", skip + 1)
    try:
        table = pv.read_csv(
            pa.py_buffer(document.data)[start:],
            read_options=pv.ReadOptions(use_threads=False, block_size=BLOCK),
            parse_options=pv.ParseOptions(newlines_in_values=True),
            convert_options=pv.ConvertOptions(
                column_types={name: pa.string() for name in header}, include_columns=list(names)
            ),
        )
    except pa.ArrowException as error:
        _name_bad_line(document, len(header), skip)
        raise document.wrong(f"cannot be read as CSV ({str(error).splitlines()[0]})") from error
    if table.num_rows == 0:
        raise document.wrong("has a header but no rows; there is nothing to import")
    return {name: table.column(name).combine_chunks() for name in names}


def integers(document: Document, columns: dict[str, pa.Array], name: str, *, skip: int = 0) -> Int64:
    """A column of integers. Raises: SourceError that names the line."""
    try:
        return np.asarray(pc.cast(columns[name], pa.int64()).to_numpy(), dtype=np.int64)
    except pa.ArrowInvalid as error:
        row, text = _first(columns[name], _is_integer)
        raise document.wrong(f"{name} is {text!r}, not a whole number", line_of(document, row, skip=skip)) from error


def id_lists(document: Document, columns: dict[str, pa.Array], name: str) -> Int:
    """[N, k] a column of printed lists, "[8, 26, 56]", all of one length. Raises: SourceError that names the line."""
    lists = pc.split_pattern(pc.utf8_trim(columns[name], "[] "), ",")
    lengths = pc.list_value_length(lists).to_numpy()
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        row = int(odd[0])
        what = f"{name} has {lengths[row]} entries, but {lengths[0]} in the first row"
        raise document.wrong(f"{what}; routed sets of one size are needed", line_of(document, row))
    try:
        flat = pc.cast(pc.utf8_trim_whitespace(lists.flatten()), pa.int32())
    except pa.ArrowInvalid as error:
        row, text = _first(columns[name], lambda t: all(_is_integer(i) for i in t.strip("[] ").split(",")))
        raise document.wrong(f"{name} is {text[:60]!r}, not a list of ids", line_of(document, row)) from error
    ids: Int = np.asarray(flat.to_numpy()).reshape(-1, int(lengths[0]))
    return ids


def line_of(document: Document, row: int, *, skip: int = 0) -> int:
    """The line on which a row begins (quoted fields may hold line ends, so only reading tells)."""
    begin = [line for line, record in _rows(document, skip) if record]
    return begin[row + 1]


def _name_bad_line(document: Document, width: int, skip: int) -> None:
    for line, record in _rows(document, skip):
        if record and len(record) != width:
            raise document.wrong(f"has {len(record)} fields, but the header has {width}; get the file again", line)


def _rows(document: Document, skip: int) -> Iterator[tuple[int, list[str]]]:
    """Every row with the line on which it begins."""
    csv.field_size_limit(FIELD_LIMIT)
    text = document.data[_offset(document.data, skip) :].decode(errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""))
    line = skip
    for record in reader:
        yield line + 1, record
        line = skip + reader.line_num


def _offset(data: bytes, lines: int) -> int:
    start = 0
    for _ in range(lines):
        start = data.index(b"\n", start) + 1
    return start


def _first(column: pa.Array, good: Callable[[str], bool]) -> tuple[int, str]:
    return next((i, t) for i, t in enumerate(column.to_pylist()) if not good(t))


def _is_integer(text: str) -> bool:
    return text.strip().removeprefix("-").isdigit()
