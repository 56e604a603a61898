"""Containers of the manifests as processes of this machine, with the rights that their pod gives them.

    network of its own, shared by all pods: names of services lead to 127.0.0.1
    └─ a container: mounts and processes of its own
       └─ root file system: this machine's under an overlay, read-only; an empty folder for each volume
          └─ user 10001, no capabilities, the environment of the image and of the manifest, and its command

It needs root. What it cannot show is what images and a cluster add: the image's packages, several addresses, policies.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from cluster_manifests import DOCKERFILE, ROOT

from infra.kubernetes.lint import Object

_USER = 10001
_VENV = Path(sys.prefix).resolve()
_CODE = [_VENV, ROOT, Path(sys.base_prefix)]  # what the image would have
_IMAGE = dict(re.findall(r"([A-Z_]+)=(\S+)", "".join(re.findall(r"^ENV (?:.*\\\n)*.*", DOCKERFILE, re.M))))
_ASK = """
import json, sys, urllib.error, urllib.request
url, headers = sys.argv[1], json.loads(sys.argv[2])
try:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        print(answer.status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError:
    print(0)
"""


def can_sandbox() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "--net", "--mount", "true"]).returncode == 0


class Pods:
    """Starts containers; ends all of them with the block. `values` are those of secrets and of ConfigMaps, by key."""

    def __init__(self, folder: Path, services: list[str], values: dict[str, str]):
        self.folder, self.services, self.values = folder, services, values
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Pods:
        script = "ip link set lo up && exec sleep infinity"
        self.network = subprocess.Popen(["unshare", "--net", "sh", "-c", script])
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in [*self.processes.values(), self.network]:
            process.kill()
            process.wait()

    def start(self, container: Object, command: list[str] | None = None) -> subprocess.Popen:
        """Its process; what it prints is in `log(name)`."""
        name = container["name"]
        inside = ["env", "-i", *(f"{key}={value}" for key, value in self._environment(container).items())]
        inside += [self._expanded(container, word) for word in command or container["args"]]
        words = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups", "--no-new-privs"]
        words += ["--bounding-set=-all", *inside]
        script = self._script(name, [mount["mountPath"] for mount in container["volumeMounts"]], words)
        around = ["nsenter", f"--net=/proc/{self.network.pid}/ns/net", "unshare", "--mount", "--pid", "--fork"]
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                [*around, "--kill-child", "sh", "-ec", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")

    def status(self, port: int, path: str, **headers: str) -> int:
        """The HTTP status of a GET from within the network; 0 where nobody answers."""
        url = f"http://127.0.0.1:{port}{path}"
        command = ["nsenter", f"--net=/proc/{self.network.pid}/ns/net", sys.executable, "-c", _ASK]
        asked = subprocess.run([*command, url, json.dumps(headers)], capture_output=True, text=True, check=True)
        return int(asked.stdout)

    def probe(self, container: Object, kind: str) -> int:
        """The status that a kubelet would see: it asks by the pod's address."""
        asked = container[kind]["httpGet"]
        (port,) = [each["containerPort"] for each in container["ports"] if each["name"] == asked["port"]]
        return self.status(port, asked["path"], Host=f"10.1.2.3:{port}")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _environment(self, container: Object) -> dict[str, str]:
        ours = {**_IMAGE, "PATH": f"{_VENV}/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": "/home/rskd"}
        for entry in container.get("env", []):
            source = entry.get("valueFrom", {})
            reference = source.get("secretKeyRef") or source.get("configMapKeyRef")
            if "fieldRef" in source:
                ours[entry["name"]] = f"{container['name']}-0"
            elif reference is None:
                ours[entry["name"]] = entry["value"]
            elif not reference.get("optional"):
                ours[entry["name"]] = self.values[reference["key"]]
        return ours

    def _expanded(self, container: Object, word: str) -> str:
        return re.sub(r"\$\((\w+)\)", lambda found: self._environment(container)[found[1]], word)

    def _script(self, name: str, mounts: list[str], words: list[str]) -> str:
        root = self.folder / name
        root.mkdir()
        new = root / "root"
        parents = sorted({parent for path in _CODE for parent in path.parents} - {Path("/")})
        return "\n".join(
            [
                "mount --make-rprivate /",
                f"mount -t tmpfs tmpfs {root}",
                f"mkdir {root}/upper {root}/work {new}",
                f"mount -t overlay overlay -o lowerdir=/,upperdir={root}/upper,workdir={root}/work {new}",
                *(f"mount --rbind {path} {new}{path}" for path in ("/dev", "/sys")),
                f"mount -t proc proc {new}/proc",
                f"mount -t tmpfs -o mode=1777 tmpfs {new}/dev/shm",
                *(f"echo 127.0.0.1 {host} >> {new}/etc/hosts" for host in ("localhost", *self.services)),
                f"echo rskd:x:{_USER}:{_USER}::/home/rskd:/bin/sh >> {new}/etc/passwd",
                *(
                    f"mkdir -p {new}{path}; mount -t tmpfs -o mode=2770,gid={_USER} tmpfs {new}{path}"
                    for path in mounts
                ),
                *(f"mkdir -p {new}{path}" for path in _CODE),
                *(f"chmod a+rx {new}{path}" for path in parents),
                *(f"mount --rbind {path} {new}{path}" for path in _CODE),
                f"mount -o remount,ro {new}",
                f"exec chroot {new} sh -c {shlex.quote(f'cd /work 2>/dev/null || cd /; exec {shlex.join(words)}')}",
            ]
        )
