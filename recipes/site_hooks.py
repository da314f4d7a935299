"""What mkdocs calls while it builds the site (mkdocs.yml names this file). The pages in docs/ stay as they are."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from api_reference import reference

NAMED = re.compile(r"^::: (\S+)$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """`::: foregate.Trace` on a line of its own becomes that name's section.

    A list that follows text without a blank line begins all the same: GitHub reads our pages so, Python-Markdown not.
    """
    del page, config, files
    return NAMED.sub(lambda match: reference(match[1]), _with_lists(markdown))


def on_post_build(*, config: Any) -> None:
    """The search index as a script, too: a page that was opened from the disk may load no JSON."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


def _with_lists(markdown: str) -> str:
    """A blank line before each list, outside fenced code."""
    pieces = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(p if i % 2 else _separated(p) for i, p in enumerate(pieces))


def _separated(text: str) -> str:
    lines = text.split("\n")
    found = lines[:1]
    for before, line in pairwise(lines):
        starts = re.match(r"- |1\. ", line) and before.strip() and not re.match(r"\s|- |\d+\. ", before)
        found += ["", line] if starts else [line]
    return "\n".join(found)
