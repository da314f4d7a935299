"""Public names as Markdown, from their docstrings as they are written here. Reads sources; writes no file.

A docstring's aligned columns (`name   what it is`) become a list of terms, indented blocks stay as they are, and the
rest is prose. Signatures are taken from the source, where types have the names that the reader knows.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

TERM = re.compile(r"^(\S.*?) {2,}(?=\S)")
WORDS = ("Raises:", "Returns:", "Source:", "Example:")


def reference(path: str) -> str:
    """The section of "foregate.Trace": signature, docstring, and of a class its public members.

    Raises: AttributeError, ModuleNotFoundError where there is no such name.
    """
    found, name = _resolve(path), path.rpartition(".")[2]
    if inspect.ismodule(found):
        return f"### {path} {{ #{path} }}\n\n{markdown(found.__doc__)}"
    heading = f"### {name} {{ #{path} }}\n\n`from {path.rpartition('.')[0]} import {name}`"
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return f"{heading}\n\n{_registry(found)}"
    node = ast.parse(textwrap.dedent(inspect.getsource(found))).body[0]
    parts = [heading, _call(node, name), markdown(inspect.getdoc(found))]
    if isinstance(node, ast.ClassDef):
        parts += _members(node, name, path)
    return "\n\n".join(part for part in parts if part)


def markdown(docstring: str | None) -> str:
    """A docstring as Markdown."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    return "\n\n".join("\n\n".join(_block(block.splitlines())) for block in blocks)


def _block(lines: list[str]) -> Iterator[str]:
    """Prose first, perhaps, then from the first aligned line on a list of terms."""
    if all(line.startswith("    ") for line in lines):
        yield "\n".join(lines)
        return
    start = next((i for i in range(len(lines)) if _aligned(lines, i)), len(lines))
    if start:
        yield _prose(" ".join(lines[:start]))
    if start < len(lines):
        yield "\n\n".join(f"`{term}`\n:   {_prose(text)}" for term, text in _terms(lines[start:]))


def _aligned(lines: list[str], i: int) -> bool:
    return TERM.match(lines[i]) is not None and not lines[i].startswith(WORDS)


def _terms(lines: list[str]) -> Iterator[tuple[str, str]]:
    first = TERM.match(lines[0])
    assert first is not None
    column = first.end()
    term, text = "", list[str]()
    for line in lines:
        if line[:column].strip():
            if term:
                yield term, " ".join(text)
            fits = len(line) > column and line[column - 1] == " "
            term, text = (line[:column].strip(), [line[column:]]) if fits else (line.strip(), [])
        else:
            text.append(line.strip())
    yield term, " ".join(text)


def _prose(text: str) -> str:
    """Words that Markdown leaves as they are, but for what stands between backticks."""
    pieces = " ".join(text.split()).split("`")
    plain = "`".join(re.sub(r"([*<\[\]])", r"\\\1", p) if i % 2 == 0 else p for i, p in enumerate(pieces))
    for word in WORDS:
        plain = re.sub(rf"(^|(?<=\s)){word}", f"**{word[:-1]}:**", plain)
    return plain


def _resolve(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):
            raise
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _registry(found: Any) -> str:
    """A dict of names: its names, and what the values say of themselves."""
    rows = [f"| `{name}` | {_first(value).replace('|', '&#124;')} |" for name, value in found.items()]
    return "\n".join(["| name | |", "| --- | --- |", *rows])


def _first(value: Any) -> str:
    """The first sentence of a class's docstring, or its `idea`."""
    text = getattr(value, "idea", None) or inspect.getdoc(value) or ""
    return _prose(re.split(r"(?<=\.)\s", str(text), maxsplit=1)[0])


def _signature(node: ast.stmt, name: str) -> str:
    """A call as one writes it, an argument a line where it is long."""
    if isinstance(node, ast.ClassDef):
        arguments, result = list(_fields(node)), ""
    else:
        assert isinstance(node, ast.FunctionDef)
        arguments, result = list(_parameters(node.args)), f" -> {_type(node.returns)}" if node.returns else ""
    short = f"{name}({', '.join(arguments)}){result}"
    return short if len(short) <= 88 else f"{name}(\n" + "".join(f"    {a},\n" for a in arguments) + f"){result}"


def _fields(node: ast.ClassDef) -> Iterator[str]:
    """What a class is made with: its `__init__`'s parameters, or its own fields."""
    init = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
    if init is not None:
        yield from _parameters(init.args)
        return
    if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and "ClassVar" not in ast.unparse(member.annotation):
            default = "" if member.value is None else f" = {_default(member.value)}"
            yield f"{ast.unparse(member.target)}: {_type(member.annotation)}{default}"


def _parameters(args: ast.arguments) -> Iterator[str]:
    defaults = [None] * (len(args.args) - len(args.defaults)) + list(args.defaults)
    for arg, default in zip(args.args, defaults, strict=True):
        if arg.arg not in ("self", "cls"):
            yield _parameter(arg, default)
    if args.vararg or args.kwonlyargs:
        yield f"*{_parameter(args.vararg, None)}" if args.vararg else "*"
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield _parameter(arg, default)
    if args.kwarg:
        yield f"**{_parameter(args.kwarg, None)}"


def _parameter(arg: ast.arg, default: ast.expr | None) -> str:
    kind = f": {_type(arg.annotation)}" if arg.annotation else ""
    return f"{arg.arg}{kind}" + ("" if default is None else f" = {ast.unparse(default)}")


def _type(node: ast.expr) -> str:
    """A type as one says it: `Trace`, where the source must quote it."""
    return ast.unparse(node).replace("'", "")


def _default(value: ast.expr) -> str:
    """`field(default_factory=dict)` is for the machine; `...` says that there is a default."""
    text = ast.unparse(value)
    return "..." if text.startswith("field(") else text


def _call(node: ast.stmt, name: str) -> str:
    """How it is called; of an interface, that it is one."""
    if isinstance(node, ast.ClassDef) and not list(_fields(node)):
        return "An interface." if any("ABC" in ast.unparse(base) for base in node.bases) else ""
    return _code(_signature(node, name))


def _members(node: ast.ClassDef, name: str, path: str) -> Iterator[str]:
    """Public methods, properties and described attributes of a class's own."""
    for place, member in enumerate(node.body):
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            plain = any("property" in ast.unparse(mark) for mark in member.decorator_list)
            kind = f": {_type(member.returns)}" if member.returns else ""
            call = f"{name}.{member.name}{kind}" if plain else _signature(member, f"{name}.{member.name}")
            yield _member(call, f"{name}.{member.name}", f"{path}.{member.name}")
            yield markdown(ast.get_docstring(member))
        elif isinstance(member, ast.AnnAssign):
            text, own = _described(node.body[place + 1 : place + 2]), ast.unparse(member.target)
            if text:
                yield _member(f"{name}.{own}: {_type(member.annotation)}", f"{name}.{own}", f"{path}.{own}")
                yield markdown(text)


def _member(call: str, name: str, anchor: str) -> str:
    """A heading that says how a member is called, with its parameters below where these take several lines."""
    if "\n" in call:
        return f"#### `{name}` {{ #{anchor} }}\n\n{_code(call)}"
    return f"#### `{call}` {{ #{anchor} }}"


def _described(following: list[ast.stmt]) -> str | None:
    """The string right after an attribute."""
    for statement in following:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            return str(statement.value.value)
    return None


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
