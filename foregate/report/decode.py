"""JSON values as the frozen dataclass that they were written from, or a sentence that names what is wrong."""

import math
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from foregate.errors import SourceError


def record(kind: type[Any], values: Any, source: str, path: str = "") -> Any:
    """An instance of the dataclass `kind`.

    source  the file, for messages; `path` is where in it the values stand

    Raises: SourceError for a field that is missing, unknown, of another type, or a number that is not finite.
    """
    if not isinstance(values, dict):
        raise SourceError(f"{source}: {path or 'the content'} is {_short(values)}; it must be an object")
    hints = get_type_hints(kind)
    where = f"{path}." if path else ""
    for name in values:
        if name not in hints:
            raise SourceError(f"{source}: {where}{name} is unknown here; was it written by a newer foregate?")
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            raise SourceError(f"{source}: {where}{field.name} is missing; make the file anew with this foregate")
    return kind(**{name: value(hints[name], found, source, where + name) for name, found in values.items()})


def known(kind: type[Any], values: Any) -> Any:
    """Of an object, the values that the dataclass `kind` has fields for; what is no object stays as it is."""
    if not isinstance(values, dict):
        return values
    names = {field.name for field in fields(kind)}
    return {name: found for name, found in values.items() if name in names}


def value(hint: Any, found: Any, source: str, path: str) -> Any:
    """`found` as the type that `hint` names. Raises: SourceError, see `record`."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return found
    if origin is UnionType:
        rest = [h for h in inner if h is not type(None)]
        return None if found is None else value(rest[0], found, source, path)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return record(hint, found, source, path)
    plain = _right(hint, found, source, path)
    if origin is tuple:
        hints = [inner[0]] * len(plain) if inner[-1] is Ellipsis else inner
        if len(hints) != len(plain):
            raise SourceError(f"{source}: {path} has {len(plain)} values; it must have {len(hints)}")
        return tuple(value(h, v, source, f"{path}[{i}]") for i, (h, v) in enumerate(zip(hints, plain, strict=True)))
    if origin is dict:
        return {str(k): value(inner[1], v, source, f"{path}.{k}") for k, v in plain.items()}
    return plain


def _right(hint: Any, found: Any, source: str, path: str) -> Any:
    kind = str if get_origin(hint) is Literal else get_origin(hint) or hint
    kinds: dict[Any, tuple[type[Any], ...]] = {float: (int, float), tuple: (list, tuple)}
    allowed = kinds.get(kind, (kind,))
    if not isinstance(found, allowed) or (isinstance(found, bool) and kind is not bool):
        what = {tuple: "a list", dict: "an object", float: "a number", int: "a whole number", str: "text"}
        raise SourceError(f"{source}: {path} is {_short(found)}; it must be {what.get(kind, kind.__name__)}")
    if isinstance(found, float) and not math.isfinite(found):
        raise SourceError(f"{source}: {path} is {found}; it must be a number that is finite")
    return float(found) if kind is float else found


def _short(found: Any) -> str:
    text = repr(found)
    return text if len(text) < 60 else f"{text[:57]}..."
