"""What every command does alike: --quiet, --json without a file, defaults from a file, a reader that leaves.

typer lets commands differ only by subclasses; these two override its methods, and nothing else in foregate does so.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether progress and chatter are wanted by nobody: --quiet."""
_SAID = "foregate.quiet"
ALONE: dict[str, tuple[str, Callable[[str], bool]]] = {
    "--json": ("-", lambda word: word == "-" or not word.startswith("-")),
    "--live": ("both", lambda word: word in ("terminal", "web", "both")),
}
"""Options that may stand without a value -> what they mean then, and whether the next word is their value."""


def _hush(context: typer.Context, value: bool) -> None:
    if value:
        context.meta[_SAID] = True


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_hush, expose_value=False, help="No progress; warnings and errors stay."),
]


class Command(TyperCommand):
    """A command of foregate."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_common()]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """A --json without a file is standard output; a wrong value is named, and a wrong default's file."""
        words = _spoken_out(args)
        try:
            return super().parse_args(ctx, list(words))
        except typer.BadParameter as error:
            name = error.param.name if error.param else ""
            source = ctx.get_parameter_source(name)
            if source is not None and source.name == "DEFAULT_MAP":
                raise _badly_set(ctx, error) from None
            given = self.make_parser(ctx).parse_args(words)[0].get(name)
            if given is not None:
                error.message = f"{given!r} ({error.message})"
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help page. rich would take "[default: all]" for markup, and show nothing of it."""
        from rich.markup import escape

        params: list[Any] = [param for param in self.params if getattr(param, "help", None)]
        plain = {param: param.help for param in params}
        for param, text in plain.items():
            param.help = escape(text)
        try:
            super().format_help(ctx, formatter)
        finally:
            for param, text in plain.items():
                param.help = text

    def invoke(self, ctx: Any) -> Any:
        """Run it. Who reads our output, `head` say, may leave when it has all it wanted; rich ends us then."""
        token = QUIET.set(ctx.meta.get(_SAID, False))
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise
            drop_output()
            raise typer.Exit(0) from None
        finally:
            QUIET.reset(token)


class Group(TyperGroup):
    """foregate itself, or a command made of commands. Alone, it shows its help."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The outermost one reads the defaults of all; not to complete a word, where nobody could be told of errors."""
        if parent is None and not extra.get("resilient_parsing"):
            from foregate.cli.settings import defaults

            extra.setdefault("default_map", defaults(self))
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words that are the group's own."""
        return super().parse_args(ctx, args or ["--help"])


def drop_output() -> None:
    """Let the rest of standard output vanish: Python flushes once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def _common() -> list[Any]:
    """The options of every command, made by typer from a signature, as the commands' own are."""

    def every(quiet: Quiet = False) -> None:
        pass

    own = typer.Typer(add_completion=False)
    every.__annotations__ = {"quiet": Quiet, "return": None}
    own.command()(every)
    return list(typer.main.get_command(own).params)


def _spoken_out(args: list[str]) -> list[str]:
    """The words, with what an option that stands alone means."""
    found: list[str] = []
    for place, word in enumerate(args):
        found.append(word)
        if word in ALONE:
            meaning, takes = ALONE[word]
            following = args[place + 1] if place + 1 < len(args) else "--"
            found += [] if takes(following) else [meaning]
    return found


def _badly_set(ctx: Any, error: Any) -> Exception:
    from foregate.cli.settings import settings_file
    from foregate.errors import ChoiceError

    table, key = ".".join(ctx.command_path.split()[1:]), error.param.opts[0].removeprefix("--")
    return ChoiceError(f"{settings_file()}: [{table}] {key} is {ctx.default_map[error.param.name]!r} ({error.message})")
