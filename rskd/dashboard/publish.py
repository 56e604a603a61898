"""The page as a file, or on a port of this machine."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rskd.dashboard.gather import gather
from rskd.errors import ConfigError, RskdError
from rskd.pages.dashboard import dashboard_page
from rskd.storage import Store

FILE = "dashboard.html"  # under the root
_HOST = "127.0.0.1"
_SECONDS_KEPT = 15  # a page that was made just now is shown again


def write_dashboard(root: str, file: Path | None = None, *, tracking_uri: str | None = None) -> dict[str, Any]:
    """Write the page of everything under `root` to a local file, <root>/dashboard.html by default.

    Returns dashboard (where it is), how many distillations, caches, students and champions are in it, and notes.
    Raises ConfigError for a root that does not exist, or a file that cannot be written.
    """
    found = gather(root, tracking_uri)
    page = dashboard_page(found).encode()
    if file is None:
        store = Store(root)
        store.write(FILE, page)
        return {"dashboard": f"{store.absolute_uri}/{FILE}"} | _counts(found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(page)
    except OSError as error:
        raise ConfigError(f"--out {file} cannot be written ({error.strerror}): name another file") from None
    return {"dashboard": str(file.absolute())} | _counts(found)


def serve_dashboard(root: str, port: int, *, tracking_uri: str | None = None) -> dict[str, Any]:
    """Serve the page, made anew when it is asked for, until interrupted.

    Raises ConfigError for a root that does not exist, or a port that is in use.
    """
    pages = _Pages(root, tracking_uri)
    pages.newest()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/":
                    self._answer(*_page_or_reason(pages))
                case "/health":
                    self._answer(b"well", 200, "text/plain")
                case _:
                    self.send_error(404)

        def _answer(self, page: bytes, status: int, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            """Say nothing of each request."""

    try:
        server = ThreadingHTTPServer((_HOST, port), Handler)
    except OSError as error:
        raise ConfigError(f"--serve {port} cannot be used ({error.strerror}): name another port") from None
    print(f"dashboard of {root} on http://{_HOST}:{server.server_port}", flush=True)
    with server:
        server.serve_forever()
    return {}


def _page_or_reason(pages: _Pages) -> tuple[bytes, int, str]:
    try:
        return pages.newest(), 200, "text/html"
    except RskdError as error:
        return str(error).encode(), 500, "text/plain"


class _Pages:
    """Makes the page at most once in a while, whoever asks."""

    def __init__(self, root: str, tracking_uri: str | None):
        self._root, self._tracking_uri = root, tracking_uri
        self._page, self._made = b"", -float("inf")
        self._lock = threading.Lock()

    def newest(self) -> bytes:
        with self._lock:
            if time.monotonic() - self._made > _SECONDS_KEPT:
                self._page = dashboard_page(gather(self._root, self._tracking_uri)).encode()
                self._made = time.monotonic()
            return self._page


def _counts(found: dict[str, Any]) -> dict[str, Any]:
    counts = {kind: len(found[kind]) for kind in ("distillations", "caches", "students", "champions")}
    return counts | ({"notes": "; ".join(found["notes"])} if found["notes"] else {})
