"""The program as it is typed: in this process, as a process of its own, in a terminal. No tests."""

import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from foregate.cli import main

PROGRAM = [sys.executable, "-c", "import sys; sys.argv[0] = 'foregate'; from foregate.cli import main; main()"]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine, and no wish for colours."""
    monkeypatch.setenv("FOREGATE_CONFIG", "")
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "NO_COLOR", "FOREGATE_CACHE"):
        monkeypatch.delenv(name, raising=False)


def typed(monkeypatch: pytest.MonkeyPatch, capfd: Any, *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["foregate", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return (int(end.value.code or 0), *capfd.readouterr())


def in_terminal(words: list[str], **environment: str) -> str:
    """What a terminal is shown by a command that writes to it with both hands."""
    ours, theirs = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm-256color", **environment}
    process = subprocess.Popen([*PROGRAM, *words], stdout=theirs, stderr=theirs, stdin=theirs, env=kept)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # Linux's way to say that nobody holds the other end
        pass
    os.close(ours)
    assert process.wait() == 0, shown
    return shown.decode()
