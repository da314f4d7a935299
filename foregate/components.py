"""From the text a user types to an object: "rules:order=3" -> Rules(order=3). Registries are plain dicts.

An option may name components of its own, joined by "+", their options in parentheses:
"ensemble:members=rules(order=3,smoothing=1)+tokens".
"""

import dataclasses
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from foregate.errors import ChoiceError

T = TypeVar("T")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""What a value that a user types may be, in words."""


def split_list(text: str) -> list[str]:
    """Split "rules:order=3,smoothing=1,tokens" into its components; a bare `name=value` belongs to the one before."""
    parts: list[str] = []
    for piece in (p.strip() for p in _outside(text, ",")):
        if parts and "=" in piece and ":" not in piece.split("=", 1)[0]:
            parts[-1] += "," + piece
        elif piece:
            parts.append(piece)
    return parts


def split_members(text: str) -> list[str]:
    """The components of a nested list: "rules(order=3)+tokens" -> ["rules:order=3", "tokens"].

    Raises: ChoiceError for parentheses that do not match, and for an empty place.
    """
    members = []
    for member in (m.strip() for m in _outside(text, "+")):
        name, opened, options = member.partition("(")
        if not name or bool(opened) != options.endswith(")"):
            raise ChoiceError(f"{text!r} is not a list of members such as rules(order=2)+tokens")
        members.append(f"{name}:{options[:-1]}" if opened else name)
    return members


def build(registry: Mapping[str, type[T]], text: str, **defaults: Any) -> T:
    """Make the component that `text` names.

    `defaults` fill fields that the text leaves open; those the class does not have are left out.

    Raises: ChoiceError for an unknown name, option or value.
    """
    name, _, options = text.partition(":")
    if name not in registry:
        raise ChoiceError(f"there is no {name!r}{meant(name, registry)}; choose one of {', '.join(sorted(registry))}")
    kind = registry[name]
    hints = get_type_hints(kind)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    values = {key: value for key, value in defaults.items() if key in fields}
    for option in filter(None, _outside(options, ",")):
        key, equals, value = option.partition("=")
        if key not in fields or not equals:
            known = ", ".join(f"{f}=" for f in fields) or "no options"
            raise ChoiceError(f"{name} does not take {option!r}{meant(key, fields)}; it takes {known}")
        values[key] = _convert(name, key, value, fields[key])
    return kind(**values)


def meant(name: str, known: Iterable[str]) -> str:
    """What somebody may have meant, to be put behind a name that is not known: " (did you mean 'memory'?)", or ""."""
    near = get_close_matches(name, known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def describe(component: Any) -> dict[str, Any]:
    """The constructor's values of a component, as JSON can hold them."""
    return {f.name: getattr(component, f.name) for f in dataclasses.fields(component) if f.init}


def _outside(text: str, separator: str) -> list[str]:
    """Split at each separator that stands outside of parentheses. Raises: ChoiceError if these do not match."""
    pieces, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0:
            break
        if letter == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    if depth != 0:
        raise ChoiceError(f"the parentheses of {text!r} do not match")
    return pieces


def _convert(name: str, key: str, value: str, hint: Any) -> Any:
    kinds = getattr(hint, "__args__", (hint,))
    try:
        if bool in kinds:
            return {"true": True, "false": False}[value.lower()]
        return next(k for k in (int, float, str) if k in kinds)(value)
    except (ValueError, KeyError, StopIteration):
        wanted = " or ".join(text for kind, text in KINDS.items() if kind in kinds) or str(hint)
        raise ChoiceError(f"{name}:{key}={value!r} must be {wanted}") from None
