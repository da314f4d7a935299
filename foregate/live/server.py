"""A page on this machine's own address that shows a feed, by server-sent events. Knows nothing of what it shows.

Only loopback is listened on, and only requests that name it are answered: a web page elsewhere whose name is pointed at
this machine (DNS rebinding) gets nothing, nor does a script from another origin (no CORS). It can be read, and that is
all: GET of two addresses, `/` the page and `/events` the feed. Users of the same machine can open it.
"""

import json
import os
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from socket import socket
from types import TracebackType
from typing import Any, Self, final

from foregate.errors import ChoiceError
from foregate.live.feed import Feed

ADDRESS = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]")  # of this machine; [::1] and other ports come through a tunnel
STREAMS = 8  # pages that watch at the same time
CONNECTIONS = 32
PATIENCE = 5.0  # seconds for a request to come, or a message to be taken
SILENCE = 5.0  # seconds after which a stream says that it is still there
FAREWELL = 1.0  # seconds for the last message to be taken
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@final
class Page:
    """Served while it is entered, at `url`; leaving it ends the feed, and lets those who watch take the last message.

    port  0 = one that is free

    Raises: ChoiceError if it cannot listen there.
    """

    def __init__(self, port: int = 0) -> None:
        self.feed = Feed()
        try:
            self._server = _Server(self.feed, port)
        except (OSError, OverflowError) as error:
            raise ChoiceError(
                f"port {port} of this machine cannot be listened on ({getattr(error, 'strerror', None) or error}); "
                "give --live-port another, or leave it out for one that is free"
            ) from None
        self.url = f"http://{ADDRESS}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="live page", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.feed.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()  # nobody new
        self._server.unwatched.wait(FAREWELL)


@final
class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two listen at once

    def __init__(self, feed: Feed, port: int) -> None:
        self.feed = feed
        self.page = files("foregate.live").joinpath("assets/live.html").read_bytes()
        self.unwatched = threading.Event()
        self.unwatched.set()
        self._streams = 0
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__((ADDRESS, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def watched(self, more: int) -> bool:
        """A stream begins (1) or ends (-1); False if it may not, for there are enough."""
        with self._lock:
            if more > 0 and self._streams >= STREAMS:
                return False
            self._streams += more
            (self.unwatched.clear if self._streams else self.unwatched.set)()
            return True

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """A client that goes away in the middle is no matter; anything else is our mistake, and is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@final
class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "foregate"
    sys_version = ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        if not self._is_local():
            return
        if self.path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif self.path == "/events":
            self._stream()
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there are / and /events")

    def _only_get(self) -> None:
        if self._is_local():
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "this can only be read", Allow="GET")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _only_get  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: the terminal is the model's."""

    def _is_local(self) -> bool:
        host = self.headers.get("Host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name.lower() in NAMES:
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "this is read from the machine it runs on, as 127.0.0.1 or localhost")
        return False

    def _stream(self) -> None:
        if not self.server.watched(1):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{STREAMS} pages watch already; close one")
            return
        try:
            self._begin(HTTPStatus.OK, {"Content-Type": "text/event-stream; charset=utf-8"})
            self.wfile.write(b"retry: 1000\n\n")
            number, last = 0, False
            while not last:
                number, message, last = self.server.feed.after(number, SILENCE)
                text = ": still here" if message is None else f"data: {json.dumps(message(), separators=(',', ':'))}"
                self.wfile.write(f"{text}\n\n".encode())
            self.wfile.write(b"event: end\ndata: {}\n\n")
        finally:
            self.server.watched(-1)

    def _refuse(self, status: HTTPStatus, why: str, **headers: str) -> None:
        self._answer(status, "text/plain; charset=utf-8", f"{why}\n".encode(), **headers)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, **headers: str) -> None:
        self._begin(status, {"Content-Type": kind, "Content-Length": str(len(body)), **headers})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
