"""Options that several commands share, with their help. What a command alone has stands in its own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from foregate.cli import completion


def written(what: str) -> Any:
    """The option --json of a command that writes such things."""
    return typer.Option(help=f"Write {what} here ('-' = standard output).")


def replayed_as_decode(replay: str) -> bool:
    """What was said with --as. Raises: ChoiceError for a word that it does not take."""
    from foregate.errors import ChoiceError

    if replay not in ("recorded", "decode"):
        raise ChoiceError(f"--as {replay} is neither recorded nor decode")
    return replay == "decode"


# --- a model ---------------------------------------------------------------------------------------------------------

Model = Annotated[str, typer.Argument(help="Folder or Hugging Face name of a Mixture-of-Experts model.")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...  [default: cuda where there is one]")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")]
Temperature = Annotated[float, typer.Option(help="With --sample.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]

# --- a trace ---------------------------------------------------------------------------------------------------------

Traces = Annotated[list[Path], typer.Argument(metavar="TRACE", help="Traces of one model; several are joined.")]
Replay = Annotated[
    str, typer.Option("--as", help="recorded, or decode: replay prefill as if its tokens had come one by one.")
]

# --- what is simulated -----------------------------------------------------------------------------------------------

Machine = Annotated[
    str,
    typer.Option(
        help="File of foregate profile, or a datasheet: rtx-3090, rtx-4090, a100-pcie, a100-sxm, h200, jetson-orin, "
        "laptop.",
        autocompletion=completion.machines,
    ),
]
Memory = Annotated[str, typer.Option(help="Fast memory: 25% of the experts, or 6GiB for the whole model.")]
HostMemory = Annotated[
    str | None,
    typer.Option(help="Experts in host memory: all, none, 16GiB, 50%.  [default: all, without a GPU none]"),
]
Shape = Annotated[
    str | None,
    typer.Option(
        help="Folder or preset (mixtral-8x7b, ...), if the trace's name does not say.",
        autocompletion=completion.models,
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Of the split and of the prompts drawn.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes.  [default: one a core]")]
