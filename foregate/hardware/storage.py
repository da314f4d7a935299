"""Profiles on disk: JSON with a format version, refused where any number in it cannot be. Measures nothing."""

import json
import math
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from foregate.errors import SourceError
from foregate.hardware.profile import BASES, KINDS, Profile

FORMAT = 1


def to_json(profile: Profile) -> dict[str, Any]:
    """As plain JSON values."""
    return {"format": FORMAT, **asdict(profile)}


def from_json(values: Any, source: str = "the profile") -> Profile:
    """The inverse of `to_json`.

    Raises: SourceError that names the field, for another version and for what no profile can say.
    """
    if not isinstance(values, dict) or "format" not in values:
        raise SourceError(f"{source} is no profile; make one with foregate profile -o {source}")
    version = values["format"]
    if version != FORMAT:
        raise SourceError(f"{source} has profile format {version!r}; this foregate reads format {FORMAT}: measure anew")
    profile = _decoded(Profile, {k: v for k, v in values.items() if k != "format"}, source, "")
    assert isinstance(profile, Profile)
    check(profile, source)
    return profile


def read(path: Path) -> Profile:
    """A profile file. Raises: SourceError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is no JSON ({error}); make a profile with foregate profile -o {path}") from error
    return from_json(values, str(path))


def write(profile: Profile, path: Path) -> None:
    """A profile file: whole, or not at all. Raises: StorageError."""
    from foregate.traces.storage import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(to_json(profile), indent=1) + "\n", encoding="utf-8")


def check(profile: Profile, source: str = "the profile") -> None:
    """Raises: SourceError for a number, kind or basis that cannot be."""
    seen = set()
    for i, timing in enumerate(profile.timings):
        where = f"{source}: timings[{i}]"
        if timing.kind not in KINDS:
            raise SourceError(f"{where}.kind is {timing.kind!r}; it must be one of {', '.join(KINDS)}")
        if timing.basis not in BASES:
            raise SourceError(f"{where}.basis is {timing.basis!r}; it must be one of {', '.join(BASES)}")
        for name in ("size", "at_once"):
            if getattr(timing, name) < 1:
                raise SourceError(f"{where}.{name} is {getattr(timing, name)}; it must be 1 or more")
        for name in ("seconds", "p50", "p95", "p99"):
            value = getattr(timing, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise SourceError(f"{where}.{name} is {value}; it must be a number of seconds above zero")
        spread = [value for value in (timing.p50, timing.p95, timing.p99) if value is not None]
        if len(spread) not in (0, 3) or spread != sorted(spread):
            raise SourceError(f"{where}: p50, p95, p99 are {spread}; they must be three that do not fall, or none")
        if timing.count < 0:
            raise SourceError(f"{where}.count is {timing.count}; it must be 0 or more")
        if (key := (timing.kind, timing.at_once, timing.size)) in seen:
            raise SourceError(f"{where} times {timing.kind} of size {timing.size} a second time")
        seen.add(key)
    _check_facts(profile, source)


def _check_facts(profile: Profile, source: str) -> None:
    for part, facts in (("machine", profile.machine), ("model", profile.model)):
        for name, value in asdict(facts).items() if facts is not None else ():
            least = 0 if name in ("foreign_load", "layers") else 1
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not (math.isfinite(value) and value >= least):
                raise SourceError(f"{source}: {part}.{name} is {value}; it must be {least} or more")


def _decoded(hint: Any, value: Any, source: str, path: str) -> Any:
    """`value` as the type that `hint` names. Raises: SourceError that says which field is something else."""
    if get_origin(hint) is UnionType:
        inner = next(h for h in get_args(hint) if h is not type(None))
        return None if value is None else _decoded(inner, value, source, path)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise SourceError(f"{source}: {path} is {value!r}; it must be a list")
        return tuple(_decoded(get_args(hint)[0], item, source, f"{path}[{i}]") for i, item in enumerate(value))
    if is_dataclass(hint):
        return _record(hint, value, source, path)
    plain = hint if isinstance(hint, type) else str  # a Literal is text
    right = (int, float) if plain is float else (plain,)
    if not isinstance(value, right) or (isinstance(value, bool) and plain is not bool):
        raise SourceError(f"{source}: {path} is {value!r}; it must be of type {plain.__name__}")
    return plain(value)


def _record(hint: Any, value: Any, source: str, path: str) -> Any:
    if not isinstance(value, dict):
        raise SourceError(f"{source}: {path} is {value!r}; it must be an object")
    hints = get_type_hints(hint)
    inner = {name: f"{path}.{name}".lstrip(".") for name in (*hints, *value)}
    for name in value:
        if name not in hints:
            raise SourceError(f"{source}: {inner[name]} is no field of profile format {FORMAT}")
    for field in fields(hint):
        if field.default is MISSING and field.name not in value:
            raise SourceError(f"{source}: {inner[field.name]} is missing")
    return hint(**{name: _decoded(hints[name], item, source, inner[name]) for name, item in value.items()})
