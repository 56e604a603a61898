"""Chat completions of an OpenAI-compatible endpoint. The only module with httpx, and the only one that sees the key.

    body ─► POST <endpoint>/chat/completions ─┬─► Reply(text, tokens)
                                              ├─► 408, 409, 425, 429, 5xx, timeout, dropped, no JSON: again, later
                                              ├─► 401, 403, 404: ConfigError; 402: RskdError
                                              └─► other 4xx: RefusedError, of this request alone

A pause is what Retry-After asks for, or doubles from a second to a minute with a random part.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rskd.config import JudgeConfig
from rskd.errors import ConfigError, RskdError, first_line

_AGAIN = {408, 409, 425, 429}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LONGEST_ASKED_FOR_S = 600.0  # by Retry-After
_CONNECT_S = 10.0
_BYTES_PER_TOKEN = 3  # of English a token has about 4: what is estimated is rather too many


class RefusedError(RskdError):
    """The endpoint refuses one request, as too long or against its rules; another attempt would not help."""


class StoppedError(RskdError):
    """The request was given up, since the run ends."""


@dataclass(frozen=True)
class Reply:
    """What the judge said, and the tokens that it cost."""

    text: str
    tokens: int


class JudgeClient:
    """A connection pool to the endpoint of `config`; it can be used from several threads."""

    def __init__(self, config: JudgeConfig):
        """Raises ConfigError where the environment has no key."""
        self._config = config
        self._key = api_key(config)
        self._stopped = threading.Event()
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s)),
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )

    def stop(self) -> None:
        """Let requests that wait for another attempt give up."""
        self._stopped.set()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def complete(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a chat completion.

        Raises RefusedError for this request, ConfigError for all, StoppedError after `stop`, and RskdError where the
        endpoint does not answer in `max_retries` further attempts.
        """
        problem = ""
        for attempt in range(self._config.max_retries + 1):
            if self._stopped.is_set():
                break
            asked_for = None
            try:
                response = self._http.post(f"{self._config.endpoint}/chat/completions", json=dict(body))
                reply = self._reply(response, body)
                if reply is not None:
                    return reply
                problem, asked_for = self._problem(response), _retry_after(response)
            except httpx.RequestError as error:
                problem = f"{type(error).__name__} {self._hidden(first_line(error))}".strip()
            if attempt < self._config.max_retries:
                self._stopped.wait(_pause(attempt) if asked_for is None else asked_for)
        if self._stopped.is_set():
            raise StoppedError(f"a request was given up ({problem or 'not sent'})")
        raise RskdError(
            f"judge.endpoint {self._config.endpoint} does not rate: {self._config.max_retries + 1} attempts at a "
            f"request failed, the last with {problem}; see that it is up, or raise judge.max_retries"
        )

    def _reply(self, response: httpx.Response, body: Mapping[str, Any]) -> Reply | None:
        """The reply in a response; None where another attempt may help."""
        status = response.status_code
        if status in _AGAIN or status >= 500:
            return None
        if status in (401, 403):
            source = f"the key in {self._config.api_key_env}" if self._key else "requests without a key"
            raise ConfigError(
                f"judge.endpoint {self._config.endpoint} refuses {source} ({status}): set judge.api_key_env to the "
                "variable that holds a valid one"
            )
        if status == 404 or 300 <= status < 400:
            raise ConfigError(
                f"judge.endpoint {self._config.endpoint} has no chat completions of {self._config.model} "
                f"({self._problem(response)}): correct judge.endpoint or judge.model"
            )
        if status == 402:
            raise RskdError(
                f"judge.endpoint {self._config.endpoint} wants to be paid ({self._problem(response)}): add credit"
            )
        if status >= 400:
            raise RefusedError(self._problem(response))
        try:
            content = response.json()
            text = content["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return None
        if not isinstance(text, str | None):
            return None
        return Reply(self._hidden(text or ""), _tokens(content, body))

    def _problem(self, response: httpx.Response) -> str:
        """What is wrong with a response, in the endpoint's words where it has any; never with the key."""
        try:
            error = response.json()["error"]
            said = error["message"] if isinstance(error, dict) else error
        except (ValueError, LookupError, TypeError):
            said = "" if response.status_code >= 400 else "no chat completion in its body"
        return self._hidden(f"status {response.status_code} {first_line(str(said)) if said else ''}".strip())

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def api_key(config: JudgeConfig) -> str | None:
    """The key from the environment; None where none is asked for. ConfigError where it is missing or no header."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        state = "is not set" if not key else "holds no key (it has characters that no key has)"
        raise ConfigError(
            f"the environment variable {config.api_key_env} {state}: set it to the key of {config.endpoint}, or set "
            "judge.api_key_env=null for an endpoint that takes none"
        )
    return key


def estimated_tokens(body: Mapping[str, Any], reply: str | None = None) -> int:
    """What a request costs, rather too much; before there is a reply, with the longest that it may have."""
    text = "".join(message["content"] for message in body["messages"])
    prompt = -(-len(text.encode()) // _BYTES_PER_TOKEN)
    return prompt + (body["max_tokens"] if reply is None else -(-len(reply.encode()) // _BYTES_PER_TOKEN))


def _tokens(content: Mapping[str, Any], body: Mapping[str, Any]) -> int:
    """The tokens that a response says it cost; estimated where it does not say."""
    usage = content.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    if isinstance(total, int) and total >= 0:
        return total
    return estimated_tokens(body, content["choices"][0]["message"]["content"] or "")


def _pause(attempt: int) -> float:
    """Seconds before the next attempt; a random half keeps requests that failed together apart."""
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * (0.5 + random.random() / 2)


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds that a response asks to wait, of which ten minutes are granted."""
    asked = response.headers.get("Retry-After", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_ASKED_FOR_S) if seconds == seconds else None
