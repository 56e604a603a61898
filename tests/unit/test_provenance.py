"""The command that a report tells: one that makes the figure again."""

import sys
from pathlib import Path

import pytest

from rskd.provenance import provenance

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([f"{ROOT}/rskd/reproduction/__main__.py", "--scale", "tiny"], "python -m rskd.reproduction --scale tiny"),
        ([f"{ROOT}/flows/reproduce_paper.py"], "python -m flows.reproduce_paper"),
        (["tests/bench/bench_loss.py", "--rounds", "3"], "python tests/bench/bench_loss.py --rounds 3"),
        (["/usr/local/bin/rskd", "synthetic"], "rskd synthetic"),
    ],
)
def test_the_command_is_one_that_can_be_typed_again(argv, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance()["command"] == command
