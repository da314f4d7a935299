"""The command line's habits hold for every command: help, --json, --quiet, one sentence for a mistake, no colour in a
pipe, defaults from a file. The commands are taken from the program itself; a new one has to be added to INPUTS.
"""

import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from commandline import PROGRAM, in_terminal, plain, typed  # noqa: F401
from conftest import make_trace

from foregate.cli import app
from foregate.traces.storage import write_trace

NO_TABLE = {
    "export": "writes a file of records",
    "realign": "writes a trace; describe has its table",
    "journeys": "writes files of records",
    "demo": "calls other commands, and names the files of their rows",
    "report": "writes a page",
}
INPUTS = {  # a command line that is right but for its input, FILE; OUT is a folder to write to. None: it reads no file
    "record": "FILE --prompts FILE -o OUT/t.parquet",
    "import": "records FILE -o OUT/t.parquet",
    "realign": "FILE -o OUT/t.parquet",
    "export": "FILE -o OUT/t.jsonl",
    "describe": "FILE",
    "statistics": "FILE -o OUT",
    "journeys": "FILE --problem 0 --tokens 0 2 -o OUT",
    "train": "tokens FILE -o OUT/p.npz",
    "tune": "memory FILE --storage sqlite:///OUT/t.db",
    "export-predictor": "FILE -o OUT/p.onnx",
    "rules create": "FILE -o OUT/r.json",
    "rules evaluate": "--rules FILE --test FILE",
    "compare": "FILE",
    "report": "FILE -o OUT/r.html",
    "simulate": "FILE --profile rtx-3090",
    "profile": "FILE --quick",
    "plan": "FILE --profile rtx-3090 -o OUT/p.json",
    "run": "FILE --prompt x",
    "pack": "FILE -o OUT/store",
    "demo": "--model FILE --out OUT",
    "doctor": None,
}


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """("rules create", command) for every command that can be typed."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands())


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(make_trace(prompts=20), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


# --- every command ---------------------------------------------------------------------------------------------------


def test_every_command_is_tried_here() -> None:
    assert set(COMMANDS) <= set(INPUTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_of_this_command(name: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    code, out, _ = typed(monkeypatch, capfd, *name.split(), "--help")
    assert code == 0
    assert f"Example: foregate {name}" in out
    assert "--quiet" in out


@pytest.mark.parametrize(("name", "command"), COMMANDS.items(), ids=list(COMMANDS))
def test_what_prints_a_table_gives_json_to_a_file(name: str, command: Any) -> None:
    found = [p for p in command.params if "--json" in p.opts]
    assert len(found) == (name not in NO_TABLE), f"give {name} --json, or say in NO_TABLE why it has none"
    assert not any(p.is_flag for p in found)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_option_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    code, out, err = typed(monkeypatch, capfd, *name.split(), "--no-such-option")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"foregate: .*--no-such-option.*see foregate {name} --help\n", err), err


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "bytes"])
@pytest.mark.parametrize("name", [n for n in COMMANDS if INPUTS.get(n)])
def test_an_impossible_input_is_one_sentence_that_names_it(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    file, out_folder = tmp_path / "given", tmp_path / "out"
    out_folder.mkdir()
    if kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes({"empty": b"", "text": b"nothing\nof use\n", "bytes": bytes(range(256)) * 4}[kind])
    words = str(INPUTS[name]).replace("FILE", str(file)).replace("OUT", str(out_folder)).split()
    code, out, err = typed(monkeypatch, capfd, *name.split(), *words)
    said = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert code == 2, (out, err)
    assert len(said) == 1, err
    assert said[0].startswith("foregate: ")
    assert "given" in said[0]
    assert out == ""
    assert list(out_folder.iterdir()) == []


@pytest.mark.parametrize("words", [("--help",), (), *((*n.split(), "--help") for n in COMMANDS), ("doctor", "--quick")])
def test_a_pipe_gets_no_colour(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    _, out, err = typed(monkeypatch, capfd, *words)
    assert out
    assert "\x1b" not in out + err


# --- the program itself ----------------------------------------------------------------------------------------------


def test_alone_it_shows_its_help_by_the_steps_of_the_loop(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    code, out, _ = typed(monkeypatch, capfd)
    assert code == 0
    steps = ["Record", "Describe", "Predict", "Compare", "Simulate", "Plan", "Run"]
    assert [line.split()[1] for line in out.splitlines() if line.split()[1:2] and line.split()[1] in steps] == steps
    assert typed(monkeypatch, capfd, "rules")[0] == 0


def test_it_says_its_version(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    import foregate

    assert typed(monkeypatch, capfd, "--version")[:2] == (0, f"foregate {foregate.__version__}\n")


def test_a_help_page_shows_what_stands_in_brackets(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    out = typed(monkeypatch, capfd, "run", "--help")[1]
    assert "[default: 25%]" in " ".join(out.replace("│", " ").split())


def test_help_takes_little_processor_time() -> None:
    """0.3 s of one core; where cores are slow or shared, 3 times what Python needs to import typer and rich alone."""

    def seconds(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = [PROGRAM[0], "-c", "import typer.main, rich.console, rich.panel, rich.table, rich.markup"]
    both = [(seconds([*PROGRAM, "--help"]), seconds(bare)) for _ in range(5)]
    ours, theirs = (min(times) for times in zip(*both, strict=True))
    print(f"{ours:.3f} s, typer and rich alone {theirs:.3f} s")
    assert ours < max(0.3, 3 * theirs)
    assert ours - theirs < 0.3  # however slow the machine


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("compar", "t"), "compare"),
        (("compare", "FILE", "--predictors", "memry"), "memory"),
        (("compare", "FILE", "--predictors", "memory:priors=1"), "prior"),
        (("simulate", "FILE", "--profile", "rtx-3090", "--strategies", "expertflw"), "expertflow"),
        (("import", "record", "FILE", "-o", "x.parquet"), "records"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    words: tuple[str, ...], meant: str, trace: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    code, _, err = typed(monkeypatch, capfd, *(w.replace("FILE", str(trace)) for w in words))
    assert code == 2
    assert re.search(rf"did you mean '{meant}'", err, re.IGNORECASE), err
    assert len(err.splitlines()) == 1


def test_json_alone_is_standard_output_and_before_a_word_a_file(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    same = []
    for words in (("--json",), ("--json", "-"), ("--json", "--quiet")):
        code, out, _ = typed(monkeypatch, capfd, "describe", trace, *words)
        assert code == 0
        same.append(json.loads(out))
    code, out, _ = typed(monkeypatch, capfd, "describe", trace, "--json", tmp_path / "d.json")
    assert "layer" in out  # the tables too
    same.append(json.loads((tmp_path / "d.json").read_text()))
    assert all(one == same[0] for one in same)


def test_a_file_that_may_not_be_read_is_named(trace: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    trace.chmod(0)
    code, _, err = typed(monkeypatch, capfd, "describe", trace)
    assert code == 2
    assert str(trace) in err


def test_a_reader_that_leaves_is_no_error(trace: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*PROGRAM, "describe", str(trace)], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interruption_is_exit_code_130_and_leaves_nothing(tmp_path: Path) -> None:
    file, out = tmp_path / "t.parquet", tmp_path / "out"
    write_trace(make_trace(prompts=100, tokens=1000), file)
    out.mkdir()
    process = subprocess.Popen(
        [*PROGRAM, "export", str(file), "-o", str(out / "t.jsonl.xz")],
        stderr=subprocess.PIPE,
        # A background job of a shell has Ctrl-C ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    while not any(out.iterdir()):  # not begun
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert list(out.iterdir()) == []


# --- terminals, quiet ------------------------------------------------------------------------------------------------

COLOUR = re.compile(r"\x1b\[[0-9;]*[349][0-7]m")


def test_a_terminal_gets_colour_unless_it_is_told_not_to() -> None:
    assert COLOUR.search(in_terminal(["--help"]))
    assert not COLOUR.search(in_terminal(["--help"], NO_COLOR="1"))


@pytest.mark.parametrize("before", [False, True])
def test_quiet_silences_progress_and_leaves_what_was_asked_for(before: bool, trace: Path, tmp_path: Path) -> None:
    words = ["export", str(trace), "-o", str(tmp_path / "t.jsonl")]
    if not before:
        assert "writing" in in_terminal([*words, "--overwrite"])  # the bar
    quiet = in_terminal(["--quiet", *words, "--overwrite"] if before else [*words, "--overwrite", "-q"])
    assert "writing" not in quiet
    assert "wrote" in quiet
    assert "left out" in quiet  # a loss is no chatter
