"""Who started a stage: a page that its run in MLflow leads back to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

_TAG, _NOTE = "rskd.started_by", "mlflow.note.content"  # the note is Markdown, so that one can click on it
_tags: ContextVar[dict[str, str] | None] = ContextVar("started_by", default=None)


def started_by(name: str, url: str) -> AbstractContextManager[None]:
    """Runs of stages that begin within the block lead to `url`, the page of `name`."""
    return tagged({_TAG: url, _NOTE: f"Started by [{name}]({url})."})


@contextmanager
def tagged(tags: dict[str, str]) -> Iterator[None]:
    """Runs of stages that begin within the block have these tags: those that `tags` gave in another process."""
    token = _tags.set(tags)
    try:
        yield
    finally:
        _tags.reset(token)


def tags() -> dict[str, str]:
    """Tags of a run that begins now."""
    return _tags.get() or {}
