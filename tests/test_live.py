"""A run can be watched, in the terminal and on a local page, and does not notice."""

import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from offloading import Pair  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from foregate.cli import main  # noqa: E402
from foregate.errors import ChoiceError, ForegateError  # noqa: E402
from foregate.live import server  # noqa: E402
from foregate.live.message import running  # noqa: E402
from foregate.live.sampler import FINISHED, RUNNING, STOPPED, Sampler  # noqa: E402
from foregate.live.server import Page  # noqa: E402
from foregate.live.terminal import Screen, amount, panel  # noqa: E402
from foregate.live.view import View  # noqa: E402
from foregate.runtime.engine import Engine  # noqa: E402
from foregate.runtime.watch import ABSENT, GUESSED, RESIDENT, USED  # noqa: E402

TINY = str(Path(__file__).parent.parent / "models" / "tiny")
PREFETCH = "next-gate,top:2"
EVIL = '</script><img src=x onerror="console.error(1)">'


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.of("mixtral", tmp_path_factory.mktemp("mixtral"))


@pytest.fixture
def engine(pair: Pair) -> Iterator[Engine]:
    with pair.engine(slots=pair.experts // 2, prefetch=PREFETCH) as engine:
        yield engine


def write(engine: Engine, tokens: int = 12) -> Any:
    return engine.generate([5, 9, 23, 44], max_new_tokens=tokens, do_sample=False, eos_token_id=[], pad_token_id=0)


def port_of(page: Page) -> int:
    return int(page.url.rstrip("/").rpartition(":")[2])


def ask(page: Page, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(page), timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


@contextmanager
def stream(page: Page) -> Iterator[Iterator[tuple[str, Any]]]:
    """Events as (name, data), by the rules of text/event-stream; ends when the server ends it."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(page), timeout=10)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers.get_content_type() == "text/event-stream"

    def events() -> Iterator[tuple[str, Any]]:
        fields: dict[str, str] = {}
        for line in answer:
            name, colon, value = line.decode().rstrip("\n").partition(": ")
            if colon and name:
                fields[name] = value
            elif not colon:
                if "data" in fields:
                    yield fields.get("event", "message"), json.loads(fields["data"])
                fields = {}

    yield events()
    answer.close()
    connection.close()


# --- what is sampled ---


def test_the_last_picture_says_what_the_engine_says(engine: Engine) -> None:
    seen = []
    with Sampler(engine.watch, seen.append) as sampler:
        write(engine)
    assert [seen[0].state, seen[-1].state] == [RUNNING, FINISHED]
    assert sampler.picture is seen[-1]
    assert sampler.picture.look.stats == engine.stats()
    demanded = [picture.look.stats["demanded"] for picture in seen]
    assert demanded == sorted(demanded)


def test_cells_are_what_the_slots_hold(engine: Engine) -> None:
    write(engine)
    engine._fetch.recover()  # every read has ended
    cells, subject = engine.watch.look().cells, engine.watch.subject
    assert cells.shape == (len(subject.layers), subject.num_experts)
    slots = [engine._planner.slot(*place) for place in np.ndindex(cells.shape)]
    there = [slot >= 0 and engine._fetch._arrived(slot) for slot in slots]
    assert np.array_equal(cells.ravel() != ABSENT, there)
    guessed = [held and engine._fetch._guess[slot] for held, slot in zip(there, slots, strict=True)]
    assert np.array_equal(cells.ravel() == GUESSED, guessed)
    trace = engine.record()
    last = trace.experts[-1]  # [L, k] of the last pass
    for layer, experts in enumerate(last):
        used = set(np.flatnonzero(cells[layer] == USED).tolist())
        assert used <= set(experts.tolist())
        assert not {e for e in experts.tolist() if cells[layer, e] == RESIDENT}


def test_a_look_from_another_thread_counts_every_pass_once(engine: Engine) -> None:
    """Never more demands than there are, nor fewer than before, however a look falls between two passes."""
    over, seen = threading.Event(), []

    def look() -> None:
        while not over.is_set():
            seen.append(engine.watch.look().stats["demanded"])

    thread = threading.Thread(target=look)
    thread.start()
    write(engine, 40)
    over.set()
    thread.join()
    assert seen == sorted(seen)
    assert max(seen) <= engine.stats()["demanded"]


def test_an_error_is_a_run_that_stopped(engine: Engine) -> None:
    sampler = Sampler(engine.watch)
    with pytest.raises(ForegateError), sampler:
        raise ForegateError("x")
    assert sampler.picture.state == STOPPED


# --- the page's server ---


def test_only_loopback_is_listened_on() -> None:
    with Page() as page:
        assert page._server.server_address[0] == "127.0.0.1"
        assert page.url.startswith("http://127.0.0.1:")
        assert ask(page)[0] == 200
        others = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        for address in [a for a in others if not a.startswith("127.")]:
            with pytest.raises(OSError), socket.create_connection((address, port_of(page)), timeout=2):  # noqa: PT011
                pass


@pytest.mark.parametrize("path", ["/", "/events", "/nothing"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_a_foreign_host_is_refused(path: str, host: str) -> None:
    with Page() as page:
        status, _, body = ask(page, path, Host=host)
        assert status == 403
        assert b"<" not in body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:80"])
def test_this_machines_names_are_answered(host: str) -> None:
    with Page() as page:
        assert ask(page, Host=host)[0] == 200


def test_it_can_only_be_read_and_by_its_own_page_alone() -> None:
    with Page() as page:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
            assert ask(page, method=method)[0] == 405
        assert ask(page, "/../../etc/passwd")[0] == 404
        _, headers, body = ask(page, Origin="http://evil.example")
        assert not {name for name in headers if name.lower().startswith("access-control")}
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert b"http://" not in body.replace(b"http://www.w3.org/", b"")
        assert b"https://" not in body


def test_a_port_in_use_is_one_sentence() -> None:
    with Page() as page, pytest.raises(ChoiceError, match=rf"port {port_of(page)} .*--live-port"):
        Page(port_of(page))


def test_a_stream_says_everything_and_ends_with_the_run(engine: Engine) -> None:
    with Page() as page, stream(page) as events:
        subject = engine.watch.subject
        with Sampler(engine.watch, lambda p: page.feed.put(lambda: running(subject, "", p))):
            write(engine)
            assert next(events)[1]["state"] == RUNNING  # somebody reads while it runs, or just after
        page.feed.close()
        rest = list(events)
    assert rest[-1] == ("end", {})
    last = rest[-2][1]
    stats = engine.stats()
    of_layer = stats.pop("by_layer")
    assert last["state"] == FINISHED
    assert last["stats"] == json.loads(json.dumps(stats))
    assert last["layers"]["demanded"] == of_layer["demanded"]
    assert [len(row) for row in last["cells"]] == [subject.num_experts] * len(subject.layers)


def test_who_comes_late_is_told_all_at_once() -> None:
    with Page() as page:
        page.feed.put(lambda: {"number": 1})
        page.feed.put(lambda: {"number": 2})
        with stream(page) as events:
            assert next(events) == ("message", {"number": 2})


def test_only_so_many_pages_watch_and_a_place_is_given_back() -> None:
    with Page() as page:
        page.feed.put(dict)
        held = [stream(page) for _ in range(server.STREAMS)]
        for one in held:
            next(one.__enter__())
        assert ask(page, "/events")[0] == 503
        held.pop().__exit__(None, None, None)
        for _ in range(100):  # the server learns of it when it writes
            page.feed.put(dict)
            time.sleep(0.02)
            if page._server.watched(1):
                page._server.watched(-1)
                break
        with stream(page) as events:
            assert next(events) == ("message", {})
        for one in held:
            one.__exit__(None, None, None)


def test_a_client_that_goes_away_or_never_reads_does_not_disturb_the_run(engine: Engine, capfd: Any) -> None:
    expected = write(engine, 40)
    view = View("m", "web", None)
    with view:
        assert view.page is not None
        gone = socket.create_connection(("127.0.0.1", port_of(view.page)))
        deaf = socket.create_connection(("127.0.0.1", port_of(view.page)))
        for client in (gone, deaf):
            client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        gone.recv(100)
        with view.watching(engine, ""):
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()  # at once, with a reset
            written = write(engine, 40)
        began = time.perf_counter()
    assert time.perf_counter() - began < 2 * server.FAREWELL + 1  # nobody is waited for much longer than a moment
    deaf.close()
    assert torch.equal(written, expected)
    assert "Traceback" not in capfd.readouterr().err


# --- the terminal ---


@pytest.mark.parametrize("plain", [False, True])
def test_the_panel_fits_80_columns_and_says_the_engines_numbers(engine: Engine, plain: bool) -> None:
    with Sampler(engine.watch) as sampler:
        before = panel(engine.watch.subject, sampler.picture, plain=plain)
        write(engine)
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(before)
    console.print(panel(engine.watch.subject, sampler.picture, plain=plain))
    text = console.export_text()
    stats = engine.stats()
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 2 * 8
    assert f"{stats['decode']['tokens_per_second']:.2f} tokens/s" in text
    assert f"there {stats['resident'] / stats['demanded']:.0%}" in text
    assert f"{stats['guessed']:,} issued" in text
    assert amount(stats["bytes"]) in text
    assert text.isascii() is plain


def on_screen(sent: str, width: int) -> list[str]:
    """The rows that a terminal shows in the end: text wraps, and the codes that rich draws with are obeyed."""
    rows, row, column = [""], 0, 0
    for code, up, char in re.findall(r"(\x1b\[(?:(\d+)A|[0-9;?]*[a-zA-Z]))|([^\x1b])", sent):
        if up:
            row = max(row - int(up), 0)
        elif code == "\x1b[2K":
            rows[row] = ""
        elif char == "\r":
            column = 0
        elif char == "\n" or (char and column == width):
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        if char and char not in "\r\n":
            rows[row] = rows[row][:column].ljust(column) + char + rows[row][column + 1 :]
            column += 1
    return "\n".join(rows).rstrip("\n").split("\n")


def test_text_above_the_panel_stays_as_it_was_written() -> None:
    width, height = 40, 10
    pieces = ["a line\n", "and ", "another\n\n", "  def f(x):\n", "x" * 600, "yes\n", "[red]the[/red] last"]
    file = io.StringIO()
    console = Console(width=width, height=height, force_terminal=True, file=file)
    with Screen(console, lambda: Text("numbers\nmore of them")) as screen:
        for piece in pieces:
            screen.show(piece)
            time.sleep(0.2)
    sent = file.getvalue()
    assert "numbers" in sent
    written = "".join(pieces).split("\n")
    wrapped = [line[i : i + width] for line in written for i in range(0, max(len(line), 1), width)]
    assert on_screen(sent, width) == wrapped


# --- the command ---


def run(monkeypatch: pytest.MonkeyPatch, *args: str, model: str = TINY, prompt: str | None = "def f():") -> int:
    said = [] if prompt is None else ["--prompt", prompt]
    monkeypatch.setattr(sys, "argv", ["foregate", "run", model, "--max-new-tokens", "6", *said, *args])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("live", [["--live"], ["--live", "terminal"], ["--live", "web"], ["--live", "both"]], ids=str)
def test_a_run_writes_the_same_with_live(monkeypatch: pytest.MonkeyPatch, capfd: Any, live: list[str]) -> None:
    assert run(monkeypatch) == 0
    expected = capfd.readouterr().out
    assert run(monkeypatch, *live) == 0
    out, err = capfd.readouterr()
    assert out == expected
    assert "\x1b" not in out + err
    assert ("http://127.0.0.1:" in err) == (live != ["--live", "terminal"])


def test_a_chat_is_watched_as_one_run(monkeypatch: pytest.MonkeyPatch, capfd: Any, tmp_path: Path) -> None:
    tiny_models.mixtral().save_pretrained(tmp_path)
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}w2 {{ m.content }} {% endfor %}w3"
    tokenizer.save_pretrained(tmp_path)
    lines = iter(["w4 w5", "w6", ""])
    states: list[str] = []
    port = 0

    def typed(prompt: str = "") -> str:
        """The next line, and what the page says before it."""
        nonlocal port
        port = port or int(re.findall(r"http://127.0.0.1:(\d+)/", capfd.readouterr().err)[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        states.append(json.loads(next(line for line in answer if line.startswith(b"data: "))[6:])["state"])
        answer.close()
        connection.close()
        return next(lines)

    monkeypatch.setattr("builtins.input", typed)
    assert run(monkeypatch, "--chat", "--live", model=str(tmp_path), prompt=None) == 0
    assert states == [RUNNING] * 3


@pytest.mark.parametrize(
    ("args", "says"),
    [(["--live", "--live-port", "70000"], "--live-port"), (["--live-port", "8000"], "--live web")],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: Any, args: list[str], says: str
) -> None:
    assert run(monkeypatch, *args) == 2
    out, err = capfd.readouterr()
    assert not out
    assert says in err


# --- a browser ---


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: the page was not looked at")
    return found


def opened(browser: str, url: str, folder: Path) -> tuple[str, str]:
    """The page once its scripts rest, and what the console said."""
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_a_browser_shows_the_final_numbers_without_complaint(browser: str, engine: Engine, tmp_path: Path) -> None:
    with Page() as page:
        subject = engine.watch.subject
        with Sampler(engine.watch, lambda p: page.feed.put(lambda: running(subject, EVIL, p))):
            write(engine)
        watching = threading.Thread(target=lambda: found.append(opened(browser, page.url, tmp_path)))
        found: list[tuple[str, str]] = []
        watching.start()
        while page._server.unwatched.is_set() and watching.is_alive():
            time.sleep(0.05)
        page.feed.close()
        watching.join()
    dom, console = found[0]
    assert console == ""
    assert 'data-ended="yes"' in dom
    assert 'data-state="finished"' in dom
    stats = engine.stats()
    hits = (stats["resident"] + stats["in_time"]) / stats["demanded"]
    assert f'id="hits">{100 * hits:.1f} %<' in dom
    assert f'id="decode">{stats["decode"]["tokens"]}<' in dom
    assert f"{stats['guessed']} issued, {stats['used']} used" in dom
    assert f"{stats['stall']:.2f} s" in dom
    assert "<img" not in dom.split("<script>")[0]
