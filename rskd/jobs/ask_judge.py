"""Requests to a judge, a few at once and within a budget, whose replies are kept one by one.

requests ─► budget ─► threads ─► JudgeClient ─► PaidReplies
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from rskd.config import JudgeConfig
from rskd.errors import ConfigError, RskdError
from rskd.evaluation.judge_client import JudgeClient, RefusedError, StoppedError, estimated_tokens
from rskd.evaluation.ratings import PaidReplies
from rskd.progress import progress_bar

_REFUSED_AT_FIRST = 10  # without any reply: then the requests are not to blame one by one

_logger = logging.getLogger(__name__)

Requests = Mapping[str, Callable[[], dict[str, Any]]]  # what makes the body, by its digest


class Budget:
    """What may still be spent, in tokens; requests under way count with an estimate."""

    def __init__(self, cap: int | None, spent: int):
        self._cap, self._spent, self._lock = cap, spent, threading.Lock()

    def take(self, tokens: int) -> None:
        """Reserve tokens. Raises RskdError where they would exceed the cap."""
        with self._lock:
            if self._cap is not None and self._spent + tokens > self._cap:
                raise RskdError(
                    f"judge.max_tokens_spent={self._cap} is reached ({self._spent} tokens are spent or under way, the "
                    f"next request may cost {tokens}): raise it"
                )
            self._spent += tokens

    def settle(self, reserved: int, tokens: int) -> None:
        """Count what a request did cost."""
        with self._lock:
            self._spent += tokens - reserved


def ask_judge(
    settings: JudgeConfig, requests: Requests, paid: PaidReplies, *, rated: int, spent: int, title: str
) -> None:
    """Pay for the replies to `requests`, as far as the endpoint and the cap allow; `spent` tokens count already.

    `rated` further requests of this kind have replies already. The requests go out in an order that mixes prompts;
    those that the endpoint refuses as such are warned about. Raises ConfigError where it refuses all, the key or the
    model, and RskdError where it does not answer or the cap is reached; what has come until then is kept.
    """
    client, budget, stopped = JudgeClient(settings), Budget(settings.max_tokens_spent, spent), threading.Event()

    def ask(digest: str) -> None:
        if stopped.is_set():
            raise StoppedError
        body = requests[digest]()
        reserved, cost = estimated_tokens(body), 0
        budget.take(reserved)
        try:
            reply = client.complete(body)
            cost = reply.tokens
            paid.add(digest, reply)
        finally:
            budget.settle(reserved, cost)

    def stop(*, wait: bool) -> None:
        stopped.set()
        client.stop()
        pool.shutdown(wait=wait, cancel_futures=True)

    pool = ThreadPoolExecutor(settings.concurrency, "judge")
    try:
        with progress_bar(title, len(requests)) as advance:
            _await([pool.submit(ask, digest) for digest in sorted(requests)], advance, rated)
    except RskdError as error:
        stop(wait=True)  # what is under way is paid for
        paid.gather()
        if isinstance(error, ConfigError):
            raise
        came = sum(digest in paid for digest in requests)
        raise RskdError(
            f"{error}; {came} of {len(requests)} ratings have come and are kept, run rskd judge again to go on"
        ) from None
    except BaseException:  # ctrl-C: nobody waits
        stop(wait=False)
        raise
    pool.shutdown()
    client.close()
    paid.gather()


def _await(futures: Sequence[Future[None]], advance: Callable[[], None], came: int) -> None:
    """Wait for all replies, `came` of which were there before. Raises the first error that is not of one request."""
    refusals = []
    for future in as_completed(futures):
        try:
            future.result()
            came += 1
        except RefusedError as error:
            refusals.append(str(error))
        advance()
        if not came and len(refusals) >= min(_REFUSED_AT_FIRST, len(futures)):
            raise ConfigError(f"judge.endpoint refuses every request ({refusals[0]}): correct the section judge")
    if refusals:
        _logger.warning(
            "judge.endpoint refuses %d of %d requests (%s): these answers are counted, and not in the score",
            len(refusals),
            len(futures),
            refusals[0],
        )
