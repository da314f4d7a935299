"""What a page of the documentation tells its reader to type, in its order: commands and Python. Runs nothing.

A command is a line of an indented or fenced block that begins with foregate, make or python; a backslash at its end
goes on. A fence called `python` is a program, unless it has a title: then it shows a file, or what is run elsewhere. A
fence called `text` right after either shows what it prints.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

ROOT = Path(__file__).resolve().parent.parent
COMMAND = re.compile(r"(foregate|make|python)( |$)")
FENCE = re.compile(r"```(\w*)(.*)")


@final
@dataclass(frozen=True)
class Step:
    """One thing to type.

    line    of the page, from 1
    text    a whole command, without its comment; or a program
    python  it is a program
    shown   lines [start, stop) of the page, from 0, that show what it prints; None: nothing does
    """

    page: Path
    line: int
    text: str
    python: bool = False
    shown: tuple[int, int] | None = None

    @property
    def place(self) -> str:
        """Where it stands, for a sentence."""
        return f"{self.page.name}, line {self.line}"


def pages() -> list[Path]:
    """The README, and all pages of the site."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def steps(page: Path) -> list[Step]:
    """All that a page has its reader type."""
    lines = page.read_text(encoding="utf-8").split("\n")
    found: list[Step] = []
    i = 0
    while i < len(lines):
        fence = FENCE.match(lines[i])
        if fence is None:
            i = _command(page, lines, i, found, "    ")
            continue
        end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith("```"))
        if fence[1] == "python" and "title=" not in fence[2]:
            found.append(Step(page, i + 1, "\n".join(lines[i + 1 : end]), True, _shown(lines, end + 1)))
        elif fence[1] != "python":
            j = i + 1
            while j < end:
                j = _command(page, lines, j, found, "")
        i = end + 1
    return found


def _command(page: Path, lines: list[str], i: int, found: list[Step], indent: str) -> int:
    """Take the command that begins at line i, if one does; the line after it."""
    if not lines[i].startswith(indent) or not COMMAND.match(lines[i][len(indent) :]):
        return i + 1
    first, text = i, lines[i].strip()
    while text.endswith("\\"):
        i += 1
        text = f"{text[:-1].rstrip()} {lines[i].strip()}"
    found.append(Step(page, first + 1, re.sub(r"\s+#\s.*$", "", text), shown=_shown(lines, i + 1)))
    return i + 1


def _shown(lines: list[str], i: int) -> tuple[int, int] | None:
    """The `text` fence that begins at line i or after blank lines."""
    while i < len(lines) and not lines[i].strip():
        i += 1
    if i >= len(lines) or lines[i] != "```text":
        return None
    return i + 1, next(j for j in range(i + 1, len(lines)) if lines[j].startswith("```"))
