"""The errors that rskd raises on purpose. The command line prints their one line and exits with `exit_code`."""


class RskdError(Exception):
    """Something that rskd can explain in one line: the rule, the value, the fix."""

    exit_code = 1

    def __str__(self) -> str:
        """The one line, without what a framework appended on the way (Ray Data adds advice on retries)."""
        return super().__str__().partition("\n")[0]


class ConfigError(RskdError):
    """The configuration or the call is wrong, or a path that it names does not exist."""

    exit_code = 2


class NonFiniteLogitsError(ConfigError, ValueError):
    """A teacher's logits are NaN or infinite: its dtype is too narrow for it, or its weights are damaged."""

    def __init__(self, *args: object) -> None:  # the arguments are those of a pickled one
        message = (
            "logits must be finite or -inf, with one finite in each row: set teacher.dtype to bfloat16 or float32, or "
            "download the teacher again"
        )
        super().__init__(*(args or (message,)))


class OutputError(RskdError):
    """Something that rskd wrote, or its store, is not as it must be."""

    exit_code = 3


class MissingOutputError(OutputError):
    """An output of an earlier stage is missing or unfinished: the message names the command that makes it."""


class CacheMismatchError(OutputError):
    """A corpus, cache, teacher or tokenizer does not belong to the others that it is used with."""


class CorruptPartError(OutputError):
    """A file that rskd wrote is not what it was when it was written."""


class StoreAccessError(OutputError):
    """The object store refuses the credentials, or cannot be reached."""


class BiasWarning(UserWarning):
    """A loss whose mean gradient over sampled targets is not that of full KD."""


def printable(name: str) -> str:
    """The name of a file for a message: on one line, and with what no terminal shows escaped."""
    return repr(name)[1:-1]


def explained_by(error: BaseException) -> RskdError | None:
    """The innermost RskdError behind an error that Ray or Prefect wrapped on its way, or None."""
    causes = [
        getattr(error, "cause", None),  # ray.exceptions.RayTaskError
        *getattr(error, "worker_failures", {}).values(),  # ray.train's failures, by rank
        error.__cause__,
    ]
    for cause in causes:
        known = explained_by(cause) if isinstance(cause, BaseException) and cause is not error else None
        if known is not None:
            return known
    return error if isinstance(error, RskdError) else None


def first_line(error: BaseException | str, length: int = 160) -> str:
    """What an error of another library says, as one line; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line), type(error).__name__)
    if said.endswith(":") and len(lines) > 1:  # a heading
        said = " ".join(filter(None, lines[:3]))
    return said if len(said) <= length else said[: length - 2] + " …"
