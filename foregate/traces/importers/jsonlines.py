"""JSON lines as columns: read fast by pyarrow; only when that fails, line by line to name the bad one."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from foregate.traces.sources import Document

BLOCK = 4 << 20


def read_table(document: Document, schema: pa.Schema, *, infer: bool = False) -> pa.Table:
    """A row per line. Fields that a line lacks are null; those that the schema lacks are inferred, or dropped.

    Raises: SourceError that names the line.
    """
    unexpected = "infer" if infer else "ignore"
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected)
    try:
        return pj.read_json(
            pa.BufferReader(document.data), read_options=pj.ReadOptions(block_size=BLOCK), parse_options=options
        )
    except pa.ArrowException as error:
        _name_bad_line(document, schema)
        reason = str(error).splitlines()[0]
        raise document.wrong(f"cannot be read as JSON lines ({reason}); give every line the same fields") from error


def line_of(document: Document, row: int) -> int:
    """The line that a row of the table came from."""
    lines = (n for n, line in enumerate(document.data.split(b"\n"), 1) if line.strip())
    return next(n for i, n in enumerate(lines) if i == row)


def column(document: Document, table: pa.Table, name: str, *, skip: int = 0) -> pa.Array:
    """A column that every line must have; the table begins `skip` lines into the document."""
    array = table.column(name) if name in table.column_names else pa.nulls(table.num_rows)
    array = pa.chunked_array([array]) if isinstance(array, pa.Array) else array
    if array.null_count:
        row = int(np.flatnonzero(pc.is_null(array).to_numpy())[0])
        raise document.wrong(f"{name} is missing", line_of(document, skip + row))
    joined = array.combine_chunks()
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def list_column(document: Document, table: pa.Table, name: str, *, skip: int = 0) -> npt.NDArray[Any]:
    """[N, k] a column whose lists all have one length.

    Raises: SourceError that names the first line with another length or a null in it.
    """
    lists = column(document, table, name, skip=skip)
    lengths = pc.list_value_length(lists).to_numpy()
    k = int(lengths[0])
    odd = np.flatnonzero(lengths != k)
    if len(odd) or k == 0:
        row = int(odd[0]) if len(odd) else 0
        what = f"{name} has {lengths[row]} entries, but {k} on the first line" if k else f"{name} is empty"
        raise document.wrong(f"{what}; routed sets of one size are needed", line_of(document, skip + row))
    flat = lists.flatten()
    if flat.null_count:
        row = int(np.flatnonzero(pc.is_null(flat).to_numpy(zero_copy_only=False))[0]) // k
        raise document.wrong(f"{name} holds a null", line_of(document, skip + row))
    return np.asarray(flat.to_numpy()).reshape(-1, k)


def _name_bad_line(document: Document, schema: pa.Schema) -> None:
    for number, line in enumerate(document.data.split(b"\n"), 1):
        if line.strip():
            _check_line(document, number, line, schema)


def _check_line(document: Document, number: int, line: bytes, schema: pa.Schema) -> None:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise document.wrong(f"is not whole JSON ({error}); get the file again", number) from error
    if not isinstance(record, dict):
        raise document.wrong("is not a JSON object", number)
    for field in schema:
        value = record.get(field.name)
        try:
            pa.array([value], field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            text = json.dumps(value)[:40]
            raise document.wrong(f"{field.name} is {text}; it must be {field.type}", number) from error
