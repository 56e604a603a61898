"""An OpenAI-compatible endpoint on loopback that replies, and fails, as a test tells it to, and keeps the requests."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[int, dict[str, Any]], Any]
_ANSWERS = re.compile(r"\[The Start of Assistant \d's Answer\]\n(.*?)\n\[The End of Assistant \d's Answer\]", re.DOTALL)


class ScriptedJudge:
    """What a server was asked, and how it is to reply: `script(number, body)` gives the reply of the judge's model.

    A script may also return (status, headers, body as bytes), a number of seconds to sleep before a dropped connection,
    or None for a connection that is dropped at once.
    """

    def __init__(self, script: Script):
        self.script, self.bodies, self.keys = script, [], set()
        self.seconds, self.tokens = 0.0, 100
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""


def answers_in(body: dict[str, Any]) -> tuple[str, str]:
    """The texts of Assistant 1 and 2 in a request."""
    first, second = _ANSWERS.findall(body["messages"][-1]["content"])
    return first, second


@contextmanager
def scripted_judge(script: Script) -> Iterator[ScriptedJudge]:
    """A running server."""
    judge = ScriptedJudge(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                number = len(judge.bodies)
                judge.bodies.append(body)
                judge.keys.add(self.headers.get("Authorization"))
                judge.at_once += 1
                judge.most_at_once = max(judge.most_at_once, judge.at_once)
            time.sleep(judge.seconds)
            reply = judge.script(number, body)
            with judge.lock:
                judge.at_once -= 1
            self._send(reply)

        def _send(self, reply: Any) -> None:
            if reply is None or isinstance(reply, float):
                time.sleep(reply or 0)
                self.close_connection = True
                return
            if isinstance(reply, str):
                choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
                content = {"choices": [choice], "usage": {"total_tokens": judge.tokens}}
                reply = (200, {}, json.dumps(content).encode())
            status, headers, data = reply
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
