"""The `foregate` command: one file per subcommand, thin. Heavy libraries are imported inside the commands."""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from foregate.cli import (
    compare,
    demo,
    describe,
    doctor,
    export,
    export_predictor,
    import_,
    journeys,
    pack,
    plan,
    profile,
    realign,
    record,
    report,
    rules,
    run,
    simulate,
    statistics,
    train,
    tune,
)
from foregate.cli.command import Command, Group, Quiet, drop_output
from foregate.errors import ForegateError
from foregate.folders import keep_compiled_code


def _version(wanted: bool) -> None:
    if wanted:
        from foregate import __version__

        print(f"foregate {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, expose_value=False, help="Print it and exit."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Options before the command."""


app = typer.Typer(
    name="foregate",
    cls=Group,
    callback=_options,
    help="Learn which experts a Mixture-of-Experts model will need before its router says so, and prove how well.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
LOOP: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Record": {
        "record": record.command,
        "import": import_.command,
        "realign": realign.command,
        "export": export.command,
    },
    "Describe": {"describe": describe.command, "statistics": statistics.command, "journeys": journeys.command},
    "Predict": {
        "train": train.command,
        "tune": tune.command,
        "rules": rules.app,
        "export-predictor": export_predictor.command,
    },
    "Compare": {"compare": compare.command, "report": report.command},
    "Simulate": {"simulate": simulate.command},
    "Plan": {"profile": profile.command, "plan": plan.command},
    "Run": {"run": run.command, "pack": pack.command},
    "Begin here": {"demo": demo.command, "doctor": doctor.command},
}
"""The commands by the step of the loop that they serve; the help lists them so."""
for _step, _commands in LOOP.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_step)
        else:
            app.command(_name, cls=Command, rich_help_panel=_step)(_command)


def main() -> None:
    """Run the command line.

    Exit codes: 0; 1 where `doctor` finds something broken; 2 for a mistake of the user's or a refusal of the machine's,
    said in one sentence on standard error; 130 for an interruption. Everything else is ours, and shows where it was.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' and the hub's; read at their import
    keep_compiled_code()
    sys.exit(_run())


def _run() -> int:
    try:
        code = app(prog_name="foregate", standalone_mode=False)  # however Python was started
        sys.stdout.flush()
    except ForegateError as error:
        return _refuse(str(error))
    except typer.TyperException as error:  # the words make no sense
        command = getattr(getattr(error, "ctx", None), "command_path", "foregate")
        text = " ".join(error.format_message().split()).rstrip(".")
        return _refuse(f"{text}{'' if text.endswith('?') else ';'} see {command} --help")
    except BrokenPipeError:
        drop_output()
        return 0
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}; check that it is there, and that you may use it")
    return int(code or 0)


def _refuse(sentence: str) -> int:
    print(f"foregate: {sentence}", file=sys.stderr)
    return 2
