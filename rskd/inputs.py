"""The paths that a configuration names, before what is made from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rskd.config import DistillConfig
from rskd.corpus.sources import list_files, located
from rskd.errors import MissingOutputError
from rskd.models.files import check_model


@contextmanager
def inputs_first(config: DistillConfig) -> Iterator[None]:
    """Where an output turns out to be missing, report a corpus source or teacher that is missing too: ConfigError.

    Neither is needed where the output is there: a student is trained from a cache far from the text.
    """
    try:
        yield
    except MissingOutputError:
        list_files(located(config.corpus.source))
        check_model(config.teacher.model)
        raise
