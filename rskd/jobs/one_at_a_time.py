"""Two runs of one stage of one distillation take turns: the second waits, and then finds the work done.

The lock is a file in storage.root (of an object store: in the temporary folder of this machine), which the operating
system frees when its holder ends. Stages of one student exclude each other by student. On an object store, runs on two
machines are not kept apart: packing and caching then end equal, since every part has one content and one commit;
training one student twice at once does not.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from rskd import interrupts
from rskd.config import DistillConfig
from rskd.file_lock import file_lock
from rskd.storage import Store

P = ParamSpec("P")
T = TypeVar("T")

_logger = logging.getLogger(__name__)


def one_at_a_time(stage: Callable[Concatenate[DistillConfig, P], T]) -> Callable[Concatenate[DistillConfig, P], T]:
    """`stage`, which waits for a run with the same config and arguments that is at work; says so in a line."""

    @functools.wraps(stage)
    def alone(config: DistillConfig, *args: P.args, **kwargs: P.kwargs) -> T:
        given = inspect.signature(stage).bind(config, *args, **kwargs)
        given.apply_defaults()
        what = described(stage.__name__, list(given.arguments.values())[1:])

        def on_wait() -> None:
            _logger.warning("another process is running %s of %s: waiting for it to end", what, config.home)

        with ExitStack() as stack:
            with suppress(OSError):  # a root that cannot be written is for the stage to explain
                stack.enter_context(file_lock(_lock_path(config, what), on_wait))
            stack.enter_context(interrupts.recognised())
            return stage(config, *args, **kwargs)

    return alone


def described(stage: str, others: Sequence[object]) -> str:
    """A stage and its arguments after the config, whatever the settings in them: two of one name take turns."""
    return " ".join([stage, *(other.home if isinstance(other, DistillConfig) else str(other) for other in others)])


def _lock_path(config: DistillConfig, what: str) -> Path:
    root = Store(config.storage.root)
    folder = Path(root.path if root.is_local else tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(f"{Store(config.home).absolute_uri} {what}".encode(errors="surrogateescape")).hexdigest()[:16]
    return folder / f".lock-{name}"
