"""Take the tour of docs/tour.md as it stands there, and write into the page what each step printed.

python recipes/tour.py --work build/tour      # a few minutes; the folder keeps the tour's files
"""

import argparse
import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from doc_pages import ROOT, Step, steps

from foregate.traces.storage import replacing

PAGE = ROOT / "docs" / "tour.md"
WIDTH = 88  # columns of the terminal that the page shows


def main(arguments: list[str] | None = None) -> None:
    """Run every step in a folder of its own, and replace what the page shows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tour", help="folder for the tour's files")
    work = parser.parse_args(arguments).work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in ("models", "foregate"):  # the page's paths are those of the source tree
        if not (work / name).exists():
            (work / name).symlink_to(ROOT / name)
    os.chdir(work)
    space: dict[str, Any] = {"__name__": "tour"}
    printed = [(step, _run(step, space)) for step in steps(PAGE) if step.shown is not None or not step.python]
    lines = PAGE.read_text(encoding="utf-8").split("\n")
    for step, text in reversed(printed):
        if step.shown is not None:
            lines[slice(*step.shown)] = text
    with replacing(PAGE) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _run(step: Step, space: dict[str, Any]) -> list[str]:
    """What a step prints, without blank lines at its ends."""
    print(f"-- {step.place}: {step.text.splitlines()[0]}", flush=True)
    if step.python:
        said = io.StringIO()
        with redirect_stdout(said):
            exec(compile(step.text, step.place, "exec"), space)  # our own page, run as its reader would
        text = said.getvalue()
    else:
        environment = {
            **os.environ,
            "COLUMNS": str(WIDTH),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            step.text,
            shell=True,
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        text = done.stdout
    return "\n".join(line.rstrip() for line in text.strip("\n").split("\n")).strip("\n").split("\n")


if __name__ == "__main__":
    main()
