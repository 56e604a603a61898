"""Replies of a judge on storage, each under the digest of its request: what was paid for once is never asked again.

    <name>/judgements/<model>/paid/pending/<sha256 of the request>.json    a reply, committed as soon as it has come
                             /paid/replies-<first 12 hex of its sha256>.parquet    many of them: request, reply, tokens
                             /<prompt set>.parquet    prompt, generation, order, reference, answer (scores), request
                             /verdict.json            the verdict on each prompt set, sealed

The digest is of the whole body of a request: judge, question, reference, answer, order and settings.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rskd import records
from rskd.config import DistillConfig, JudgeConfig
from rskd.errors import CorruptPartError
from rskd.evaluation.judge_client import Reply
from rskd.storage import Store

_PENDING_AT_MOST = 256
_REPLIES = pa.schema([("request", pa.string()), ("reply", pa.string()), ("tokens", pa.int64())])
_VERDICT_FILE = "verdict.json"


class PaidReplies:
    """The replies in a folder; they can be added from several threads."""

    def __init__(self, store: Store):
        """Read what is there. Raises CorruptPartError for a file that was damaged."""
        self._store, self._lock = store, threading.Lock()
        self._replies: dict[str, Reply] = {}
        for name in store.list():
            if name.startswith("replies-"):
                self._replies.update(_read_replies(store, name))
        self._pending: list[str] = []
        for request in (name.removesuffix(".json") for name in store.list("pending")):
            found = records.read(store, _pending_file(request))
            if found is not None:  # else another process has just gathered it
                self._replies[request] = Reply(found["text"], found["tokens"])
                self._pending.append(request)

    def __contains__(self, request: str) -> bool:
        return request in self._replies

    def __getitem__(self, request: str) -> Reply:
        return self._replies[request]

    @property
    def tokens(self) -> int:
        """What all of them cost."""
        with self._lock:
            return sum(reply.tokens for reply in self._replies.values())

    def add(self, request: str, reply: Reply) -> None:
        """Commit a reply."""
        self._store.create(_pending_file(request), records.seal(asdict(reply)))
        with self._lock:
            self._replies[request] = reply
            self._pending.append(request)
            if len(self._pending) >= _PENDING_AT_MOST:
                self._gather()

    def gather(self) -> None:
        """Move the replies that have files of their own into one."""
        with self._lock:
            if self._pending:
                self._gather()

    def _gather(self) -> None:
        rows = [
            {"request": request, "reply": self._replies[request].text, "tokens": self._replies[request].tokens}
            for request in sorted(set(self._pending))
        ]
        data = _parquet(pa.Table.from_pylist(rows, _REPLIES))
        self._store.create(f"replies-{_short_digest(data)}.parquet", data)
        for request in self._pending:
            self._store.remove(_pending_file(request))
        self._pending.clear()


def tokens_spent(config: DistillConfig) -> int:
    """What all replies of a distillation cost, of every model."""
    judgements = Store(f"{config.home}/judgements")
    return sum(PaidReplies(judgements.child(f"{model}/paid")).tokens for model in judgements.folders())


def write_ratings(store: Store, prompt_set: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write each rating of a set, for people and Parquet tools; the bytes of the file."""
    data = _parquet(pa.Table.from_pylist([dict(row) for row in rows]))
    store.write(f"{prompt_set}.parquet", data)
    return len(data)


def judge_recipe(settings: JudgeConfig) -> dict[str, Any]:
    """What verdicts depend on of the section `judge`."""
    return settings.model_dump(mode="json", include={"model", "both_orders", "max_new_tokens"})


def write_verdicts(store: Store, content: Mapping[str, Any]) -> None:
    """Write the verdicts on all sets, as `read_judgements` gives them."""
    records.write(store, _VERDICT_FILE, content)


def read_judgements(config: DistillConfig) -> dict[str, dict[str, Any]]:
    """What `rskd judge` found last, by model: {judge, generate, answers, sets, warnings}.

    `sets` has the Verdict on each as a dict, `answers` what tells the answers that were rated from others.

    CorruptPartError for a file that was changed.
    """
    judgements = Store(f"{config.home}/judgements")
    found = {model: records.read(judgements.child(model), _VERDICT_FILE) for model in judgements.folders()}
    return {model: verdicts for model, verdicts in found.items() if verdicts is not None}


def _pending_file(request: str) -> str:
    return f"pending/{request}.json"


def _read_replies(store: Store, name: str) -> dict[str, Reply]:
    data = store.read(name)
    if name != f"replies-{_short_digest(data)}.parquet":
        raise CorruptPartError(
            f"{store.uri}/{name} is not what was written: restore it, or remove it and pay for its ratings again"
        )
    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    return {row["request"]: Reply(row["reply"], row["tokens"]) for row in rows}


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _short_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
