"""The errors that rskd raises on purpose. The command line prints their one line and exits with `exit_code`."""


class RskdError(Exception):
    """Something that rskd can explain in one line: the rule, the value, the mend."""

    exit_code = 1


class ConfigError(RskdError):
    """The configuration or the call is wrong, or a path that it names does not exist."""

    exit_code = 2


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
