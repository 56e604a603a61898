"""What of the environment keeps the pieces of rskd from working: proxies, temporary folders, homes, busy neighbours.

What is changed are variables of this process and of those that it starts; entry points call `prepare`.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rskd.errors import ConfigError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LONGEST_SOCKET = 107  # bytes of the path of a Unix socket, on Linux
_RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000000/sockets/plasma_store_00000"


def prepare() -> None:
    """Loopback without a proxy, a home for libraries where HOME has none, and threads that sleep while they wait.

    OpenMP's threads spin otherwise: where a neighbour takes a core, a step of training takes many times as long.
    """
    _reach_loopback_directly()
    _find_a_home()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, which comes later


def _reach_loopback_directly() -> None:
    """Add this machine to NO_PROXY where a proxy is set: Prefect, MLflow and object stores listen on loopback."""
    if not any(os.environ.get(name) for scheme in ("http", "https", "all") for name in _spellings(f"{scheme}_proxy")):
        return
    known = next((os.environ[name] for name in _spellings("no_proxy") if os.environ.get(name)), "")
    hosts = [host.strip() for host in known.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in _LOOPBACK if host not in hosts]
    for name in _spellings("no_proxy"):
        os.environ[name] = ",".join(hosts)


def _spellings(name: str) -> tuple[str, str]:
    return name, name.upper()


def _find_a_home() -> None:
    """Point the libraries that write into HOME to the temporary folder where HOME is missing or cannot be written."""
    home = os.environ.get("HOME")
    if home and _is_writable(Path(home)):
        return
    folder = _own_folder("home")
    if folder is None:
        raise ConfigError(
            f"HOME={home} cannot be written, nor can {tempfile.gettempdir()}: set HOME to a folder of yours"
        )
    if not (home and Path(home).is_dir()):
        os.environ["HOME"] = str(folder)  # else it is read from, as for ~/.aws
    names = {"HF_HOME": "huggingface", "PREFECT_HOME": "prefect", "MPLCONFIGDIR": "matplotlib"}
    if home and Path(home, ".cache", "huggingface").is_dir():
        del names["HF_HOME"]  # models that were downloaded there are found
    for variable, name in names.items():
        os.environ.setdefault(variable, str(folder / name))


def ray_temporary_folder() -> str | None:
    """Folder for Ray's sockets and logs; None where its own choice will do.

    Batch systems give long TMPDIRs, in which the path of a socket would be too long: then it is a folder under /tmp.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    if variable is None:
        return None
    value = Path(os.environ[variable])
    fits = len(os.fsencode(value / _RAY_SOCKET)) <= _LONGEST_SOCKET
    if fits and _is_writable(value / "ray"):
        return None
    folder = _own_folder("ray", "/tmp")
    if folder is None or (variable == "RAY_TMPDIR" and fits):
        problem = "cannot be written" if fits else "is too long a path for Ray's sockets, and /tmp cannot be written"
        raise ConfigError(f"{variable}={value} {problem}: set RAY_TMPDIR to a folder of yours with a short path")
    return str(folder)


def _own_folder(purpose: str, parent: str | None = None) -> Path | None:
    """A folder of this user under the temporary one; None where none can be made, or somebody else made it."""
    folder = Path(parent or tempfile.gettempdir(), f"rskd-{purpose}-{os.getuid()}")
    return folder if _is_writable(folder) and folder.stat().st_uid == os.getuid() else None


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
