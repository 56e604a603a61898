"""Who started a stage: a page that its run in MLflow leads back to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_TAG, _NOTE = "rskd.started_by", "mlflow.note.content"  # the note is Markdown, so that one can click on it
_tags: ContextVar[dict[str, str] | None] = ContextVar("started_by", default=None)


@contextmanager
def started_by(name: str, url: str) -> Iterator[None]:
    """Runs of stages that begin within the block lead to `url`, the page of `name`."""
    token = _tags.set({_TAG: url, _NOTE: f"Started by [{name}]({url})."})
    try:
        yield
    finally:
        _tags.reset(token)


def tags() -> dict[str, str]:
    """Tags of a run that begins now."""
    return _tags.get() or {}
