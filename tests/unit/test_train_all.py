"""Students side by side: how many, what becomes of those that fail, and of an interrupt. The training is a stand-in."""

import os
import signal
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from rskd import interrupts
from rskd.config import DistillConfig, validate_config
from rskd.errors import ConfigError, MissingOutputError, RskdError
from rskd.jobs.train_all import at_once, train_all
from rskd.plan import Resources, plan_student, students_at_once

NAMES = ["a", "b", "c"]


run = partial(train_all, start=lambda ray: None)


def config_of(**train: Any) -> DistillConfig:
    return validate_config(
        {
            "name": "n",
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "m"},
            "train": train,
            "students": {name: {} for name in NAMES},
        }
    )


def test_as_many_as_are_configured_run_at_the_same_time():
    config, running, most, both = config_of(at_once=2), [], [], threading.Barrier(2, timeout=10)

    def train(config: DistillConfig, student: str) -> str:
        running.append(student)
        most.append(len(running))
        if student != "c":
            both.wait()
        running.remove(student)
        return f"{student} is trained"

    found = run(config, NAMES, train)
    assert found == {name: f"{name} is trained" for name in NAMES}
    assert list(found) == NAMES
    assert max(most) == 2


def test_on_the_cpu_one_at_a_time_in_this_thread():
    if at_once(config_of(), NAMES) != 1:
        pytest.skip("there are GPUs")
    threads = run(config_of(), NAMES, lambda config, student: threading.current_thread())
    assert set(threads.values()) == {threading.current_thread()}


@pytest.mark.parametrize("num", [1, 2])
def test_one_that_fails_stops_none_of_the_others(num: int):
    tried = []

    def train(config: DistillConfig, student: str) -> None:
        tried.append(student)
        if student == "a":
            raise MissingOutputError("cache x is missing: run rskd cache")
        if student == "b":
            raise KeyError("surprise")

    with pytest.raises(MissingOutputError) as raised:
        run(config_of(at_once=num), NAMES, train)
    assert sorted(tried) == NAMES
    assert str(raised.value) == "student a: cache x is missing: run rskd cache; student b: KeyError: 'surprise'"
    assert raised.value.exit_code == 3


def test_what_all_fail_by_is_said_once():
    def train(config: DistillConfig, student: str) -> None:
        raise ConfigError("teacher m does not exist: correct it")

    with pytest.raises(ConfigError, match=r"^teacher m does not exist: correct it$"):
        run(config_of(at_once=2), NAMES, train)


def test_an_error_that_nobody_explained_names_its_student():
    def train(config: DistillConfig, student: str) -> None:
        if student == "c":
            raise ValueError("shapes")

    with pytest.raises(RskdError, match=r"^student c: ValueError: shapes$") as raised:
        run(config_of(at_once=3), NAMES, train)
    assert raised.value.exit_code == 1


def test_of_a_single_student_the_error_is_its_own():
    def train(config: DistillConfig, student: str) -> None:
        raise ValueError("shapes")

    with pytest.raises(ValueError, match=r"^shapes$"):
        run(config_of(), ["a"], train)


@pytest.mark.parametrize("waits", [lambda: interrupts.result_of(Future()), lambda: interrupts.pause(60)])
def test_an_interrupt_stops_all_of_them(waits):
    stopped, begun = [], threading.Barrier(3, timeout=10)

    def train(config: DistillConfig, student: str) -> None:
        try:
            begun.wait()
            waits()
        except KeyboardInterrupt:
            stopped.append(student)
            raise

    def interrupt() -> None:
        begun.wait()
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with interrupts.stoppable(), pytest.raises(KeyboardInterrupt):  # whatever this process does with SIGINT otherwise
        run(config_of(at_once=2), NAMES, train)
    assert sorted(stopped) == ["a", "b"]  # c had not begun


@pytest.mark.parametrize(
    ("train", "there", "students"),
    [
        ({}, Resources(gpus=8, cores=64), 1),  # each takes all GPUs
        ({"workers": 2}, Resources(gpus=8, cores=64), 3),  # 4 would fit
        ({"workers": 4}, Resources(gpus=8, cores=64), 2),
        ({"workers": 4}, Resources(gpus=8, cores=7), 1),  # for want of cores
        ({"workers": 4}, Resources(gpus=2, cores=64), 1),
        ({"workers": 4, "gpus_per_worker": 0}, Resources(gpus=8, cores=64), 1),  # on the CPU
        ({"workers": 0}, Resources(gpus=8, cores=64), 1),
        ({"at_once": 2}, Resources(cores=4), 2),
        ({"at_once": 9}, Resources(cores=4), 3),
    ],
)
def test_how_many_go_around(train: dict[str, Any], there: Resources, students: int):
    assert students_at_once(config_of(**train), NAMES, there) == students


def test_those_side_by_side_share_the_gpus():
    there = Resources(gpus=8, cores=64)
    assert plan_student(config_of(at_once=2), "a", there, lambda cap, plan: 8).workers == 4
    assert plan_student(config_of(at_once=3), "a", there, lambda cap, plan: 8).workers == 2
    assert plan_student(config_of(), "a", there, lambda cap, plan: 8).workers == 8
