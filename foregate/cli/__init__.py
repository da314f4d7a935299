"""The `foregate` command: one file per subcommand, thin. Heavy libraries are imported inside the commands."""

import sys

import typer

from foregate.cli import (
    compare,
    demo,
    describe,
    export,
    export_predictor,
    import_,
    journeys,
    realign,
    record,
    rules,
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
app.command("train")(train.command)
app.command("tune")(tune.command)
app.command("demo")(demo.command)


def main() -> None:
    """Run the command line: a ForegateError becomes one sentence and exit code 2."""
    try:
        app()
    except ForegateError as error:
        print(f"foregate: {error}", file=sys.stderr)
        sys.exit(2)
