"""What a part of a page is. Pages are lists of these; nothing here knows what a part is about."""

from dataclasses import dataclass
from typing import final

from foregate.report.figures import Figure


@final
@dataclass(frozen=True)
class Section:
    """One part of a page: heading, prose and tables, figures.

    name   anchor, and entry of the page's contents; unique in the page
    title  heading, as plain text
    body   HTML between heading and figures; whoever makes it escapes what it quotes
    """

    name: str
    title: str
    body: str
    figures: tuple[Figure, ...] = ()
