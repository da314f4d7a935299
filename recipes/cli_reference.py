"""Write docs/cli.md from the commands themselves. tests/test_docs.py holds the two together.

python recipes/cli_reference.py
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from foregate.cli import app
from foregate.traces.storage import replacing

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
KINDS = {int: "N", float: "X", Path: "PATH"}
"""Type of an option -> what stands for its value."""
HEAD = """# Command line

Written by `recipes/cli_reference.py` from the commands themselves; do not edit. `foregate COMMAND --help` says the same
in the terminal.

A mistake of yours is answered with one sentence on standard error and exit code 2, an interruption with exit code 130.
"""


def reference() -> str:
    """The page."""
    root: Any = typer.main.get_command(app)
    pages = [
        HEAD,
        _index(root),
        *(section for name in root.commands for section in _sections(root.commands[name], name)),
    ]
    return "\n".join(pages)


def _index(root: Any) -> str:
    """The commands by the step of the loop that they serve."""
    steps: dict[str, list[str]] = {}
    for name, command in root.commands.items():
        steps.setdefault(str(command.rich_help_panel), []).append(name)
    rows = [
        ["" if i else step, f"[`{name}`](#foregate-{name})", _text(_first(root.commands[name]))]
        for step, names in steps.items()
        for i, name in enumerate(names)
    ]
    return _table(["step", "command", "what it does"], rows) + "\n"


def _sections(command: Any, name: str) -> Iterator[str]:
    """A command's section; of a group, its own and those of its commands."""
    parts = [f"## foregate {name}", *_paragraphs(command.help or "")]
    if hasattr(command, "commands"):
        yield "\n\n".join(parts) + "\n"
        for inner in command.commands:
            yield from _sections(command.commands[inner], f"{name} {inner}")
        return
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in shown if type(p).__name__ == "TyperArgument"]
    options = [p for p in shown if type(p).__name__ == "TyperOption"]
    parts.append(_usage(name, arguments, options))
    if arguments:
        rows = [[f"`{_argument(p)}`", _text(p.help)] for p in arguments]
        parts.append(_table(["argument", ""], rows))
    if options:
        rows = [[f"`{_option(p)}`", *_text_and_default(p)] for p in options]
        parts.append(_table(["option", "", "default"], rows))
    yield "\n\n".join(parts) + "\n"


def _paragraphs(text: str) -> list[str]:
    """A command's help as Markdown: its example becomes code."""
    found = []
    for paragraph in (" ".join(p.split()) for p in text.split("\n\n")):
        text, *examples = paragraph.split("Example: ")
        found += [_text(text)] if text else []
        found += ["\n".join(f"    {line.strip()}" for line in examples)] if examples else []
    return found


def _usage(name: str, arguments: list[Any], options: list[Any]) -> str:
    words = [_argument(p) if p.required else f"[{_argument(p).strip('[]')}]" for p in arguments]
    required = [f"{_longest(p)} {_value(p)}" for p in options if p.required]
    return f"Usage: `{' '.join(['foregate', name, *words, *required, '[OPTIONS]'])}`"


def _argument(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.nargs == 1 or name.rstrip("]").endswith("...") else f"{name}..."


def _option(param: Any) -> str:
    names = ", ".join(sorted(param.opts, key=len)) + "".join(f" / {name}" for name in param.secondary_opts)
    return names if param.is_flag else f"{names} {_value(param)}"


def _longest(param: Any) -> str:
    return str(max(param.opts, key=len))


def _value(param: Any) -> str:
    return str(param.metavar or KINDS.get(param.type_descriptor.annotation, "TEXT"))


def _text_and_default(param: Any) -> tuple[str, str]:
    """What an option is for, and its default, which some helps say in words."""
    text, said, words = " ".join((param.help or "").split()).partition("[default: ")
    if said:
        default, _, rest = words.partition("]")
        return _text(text + rest), _text(default)
    if param.required:
        return _text(text), "(required)"
    plain = not (param.default is None or isinstance(param.default, bool) or callable(param.default))
    return _text(text), f"`{param.default}`" if plain and param.default != () else ""


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _first(command: Any) -> str:
    """The first sentence of a command's help."""
    return re.split(r"(?<=\.)\s", " ".join((command.help or "").split()), maxsplit=1)[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(text: str | None) -> str:
    """Words in a row that Markdown leaves as they are, but for what stands between backticks."""
    pieces = " ".join((text or "").split()).split("`")
    return "`".join(re.sub(r"([*<\[\]])", r"\\\1", p) if i % 2 == 0 else p for i, p in enumerate(pieces))


if __name__ == "__main__":
    with replacing(PAGE) as temporary:
        temporary.write_text(reference(), encoding="utf-8")
    print(f"wrote {PAGE}")
