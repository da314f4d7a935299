"""The `foregate` command: one file per subcommand, thin. Heavy libraries are imported inside the commands."""

import os
import sys

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
    rules,
    run,
    simulate,
    train,
    tune,
)
from foregate.errors import ForegateError

app = typer.Typer(
    name="foregate",
    help="Learn which experts a Mixture-of-Experts model will need before its router says so, and prove how well.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("record")(record.command)
app.command("import")(import_.command)
app.command("export")(export.command)
app.command("export-predictor")(export_predictor.command)
app.command("describe")(describe.command)
app.command("realign")(realign.command)
app.command("journeys")(journeys.command)
app.add_typer(rules.app, name="rules")
app.command("compare")(compare.command)
app.command("pack")(pack.command)
app.command("train")(train.command)
app.command("tune")(tune.command)
app.command("simulate")(simulate.command)
app.command("plan")(plan.command)
app.command("run")(run.command)
app.command("demo")(demo.command)
app.command("profile")(profile.command)
app.command("doctor")(doctor.command)


def main() -> None:
    """Run the command line: a ForegateError becomes one sentence and exit code 2, an interruption exit code 130."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' and the hub's; read at their import
    try:
        app()
    except ForegateError as error:
        print(f"foregate: {error}", file=sys.stderr)
        sys.exit(2)
