"""What a job is to do and what came of it: two sealed files in the home of the distillation.

    jobs/<job>.json          stage, arguments, working directory, the page of the run that submitted it
    jobs/<job>.result.json   its result, or its error by kind, message and exit code

Configurations are in them and credentials are not, as in every file of rskd.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from rskd import errors, records
from rskd.config import DistillConfig, RayConfig, validate_config
from rskd.errors import ConfigError, MissingOutputError, OutputError, RskdError, explained_by, first_line
from rskd.jobs.one_at_a_time import described
from rskd.storage import Store

_FOLDER, _RESULT = "jobs", ".result.json"
_CONFIG = "config"


@dataclass(frozen=True)
class Call:
    """A stage with its arguments, as JSON; paths of outputs are absolute, and Ray is that of the job."""

    stage: str  # module:function
    args: list[Any]
    directory: str  # that relative paths of inputs start from
    tags: dict[str, str]  # of its run in MLflow

    @classmethod
    def of(cls, stage: Callable[..., Any], args: list[Any], tags: dict[str, str]) -> Call:
        """ConfigError where the outputs of a job would stay on its node."""
        return cls(f"{stage.__module__}:{stage.__name__}", [_to_json(arg) for arg in args], str(Path.cwd()), tags)

    def __call__(self) -> Any:
        module, _, name = self.stage.partition(":")
        if not module.startswith("rskd."):
            raise ConfigError(f"stage {self.stage} is none of rskd's: submit the job again")
        return getattr(import_module(module), name)(*map(_from_json, self.args))

    @cached_property
    def home(self) -> str:
        return _from_json(self.args[0]).home

    @cached_property
    def doing(self) -> str:
        """The work, whatever its settings: two jobs of one name must not run at the same time."""
        config, *others = map(_from_json, self.args)
        return f"{described(self.stage.partition(':')[2], others)} of {config.home}"

    @cached_property
    def digest(self) -> str:
        """Of the work and its settings."""
        return records.digest({"stage": self.stage, "args": self.args})


def _to_json(value: Any) -> Any:
    if not isinstance(value, DistillConfig):
        return value
    tracking, root = value.tracking, value.home.rpartition("/")[0]
    if tracking.enabled and tracking.uri is None and not Store(root).is_local:
        raise ConfigError(
            "tracking.uri is not set, and a job's runs would stay on its node: name a server that the cluster reaches, "
            "or set tracking.enabled=false"
        )
    there = value.model_copy(
        update={"storage": value.storage.model_copy(update={"root": root}), "ray": RayConfig(address="auto")}
    )
    return {_CONFIG: there.model_dump(mode="json", exclude_unset=True)}


def _from_json(value: Any) -> Any:
    return validate_config(value[_CONFIG]) if isinstance(value, dict) and value.keys() == {_CONFIG} else value


@dataclass(frozen=True)
class Outcome:
    """What came of a job: the JSON of its result, or an error."""

    result: str | None = None
    kind: str = ""
    message: str = ""
    exit_code: int = 0

    @classmethod
    def of_result(cls, result: Any) -> Outcome:
        return cls(json.dumps(result, default=str))

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """One that rskd explains in its line; any other in its first line, and its traceback on stderr."""
        known = explained_by(error)
        if known is not None:
            return cls(None, type(known).__name__, str(known), known.exit_code)
        traceback.print_exception(error)
        return cls(None, RskdError.__name__, f"{type(error).__name__}: {first_line(error)}", RskdError.exit_code)

    def value(self) -> Any:
        """The result; raises what the stage did, of the same class or of the one with that exit code."""
        if self.result is not None:
            return json.loads(self.result)
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, RskdError)):
            kind = {ConfigError.exit_code: ConfigError, OutputError.exit_code: OutputError}.get(
                self.exit_code, RskdError
            )
        raise kind(self.message)


def write_call(call: Call, job: str) -> str:
    """The URI of its file, for `read_call`."""
    folder = Store(call.home).child(_FOLDER)
    records.write(folder, f"{job}.json", asdict(call))
    return f"{folder.uri}/{job}.json"


def read_call(uri: str) -> Call:
    """MissingOutputError where this machine does not find the file."""
    folder, _, name = uri.rpartition("/")
    found = records.read(Store(folder), name)
    if found is None:
        raise MissingOutputError(f"{uri} does not exist here: set storage.root to one that all nodes reach")
    return Call(**found)


def write_outcome(uri: str, outcome: Outcome) -> None:
    """Beside the call at `uri`."""
    folder, _, name = uri.rpartition("/")
    records.write(Store(folder), name.removesuffix(".json") + _RESULT, asdict(outcome))


def read_outcome(home: str, job: str) -> Outcome | None:
    """None where the job has not ended, or was killed."""
    found = records.read(Store(home).child(_FOLDER), f"{job}{_RESULT}")
    return None if found is None else Outcome(**found)


def known_jobs(home: str) -> set[str]:
    """Jobs of a distillation, whether their cluster still knows them or not."""
    names = Store(home).list(_FOLDER)
    return {name.removesuffix(".json") for name in names if not name.endswith(_RESULT)}
