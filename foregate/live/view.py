"""Where a run is shown, as --live says: below its text in the terminal, on a page, or both. Runs nothing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self, final

from rich.console import Console, RenderableType

from foregate.errors import ChoiceError
from foregate.live.message import loading, running
from foregate.live.sampler import Picture, Sampler
from foregate.live.server import Page
from foregate.live.terminal import line, panel
from foregate.runtime.engine import Engine
from foregate.runtime.watch import Subject

PLACES = ("terminal", "web", "both")


@final
class View:
    """Entered before a model is loaded, so that its page can be opened meanwhile.

    model  its name
    place  one of PLACES; None: a line below the text, and no more
    port   of the page; None: one that is free

    Raises: ChoiceError.
    """

    def __init__(self, model: str, place: str | None, port: int | None) -> None:
        if place is not None and place not in PLACES:
            raise ChoiceError(f"--live is {place!r}; it can be {', '.join(PLACES)}, or stand alone for both")
        wanted = place in ("web", "both")
        if port is not None and not wanted:
            raise ChoiceError("--live-port is where the page of --live web is served; add --live web, or leave it out")
        self._model, self._place = model, place
        self.page = Page(port or 0) if wanted else None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self.page is not None:
            self._open.enter_context(self.page)
            self.loading("looking at the model")
            Console(stderr=True).print(f"watch it at {self.page.url}", highlight=False, soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._open.close()

    def loading(self, step: str) -> None:
        """This is done now, before anything runs."""
        if self.page is not None:
            self.page.feed.put(lambda: loading(self._model, step))

    @contextmanager
    def watching(self, engine: Engine, settings: str) -> Iterator[Callable[[], RenderableType]]:
        """Look at an engine meanwhile; gives what is to be drawn below the text. At the end, the panel stays."""
        if self._place is None:
            yield lambda: line(engine.stats())
            return
        subject = engine.watch.subject
        with Sampler(engine.watch, lambda picture: self._put(subject, settings, picture)) as sampler:
            if self._place == "web":
                yield lambda: line(engine.stats())
                return
            console = Console()
            plain = console.options.ascii_only
            yield lambda: panel(subject, sampler.picture, plain=plain)
        if console.is_terminal:
            console.print(panel(subject, sampler.picture, plain=plain))

    def _put(self, subject: Subject, settings: str, picture: Picture) -> None:
        if self.page is not None:
            self.page.feed.put(lambda: running(subject, settings, picture))
