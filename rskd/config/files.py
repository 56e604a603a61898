"""Configurations from YAML files and from plain mappings; what is wrong with one is said in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rskd.config.distillation import DistillConfig, merge
from rskd.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> DistillConfig:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML), and validate.

    Raises ConfigError, with one line, for anything that is wrong with the file, an override or a value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"config {path} cannot be read ({reason}): name an existing YAML file") from None
    data = _parse_yaml(text, f"config {path}")
    if not isinstance(data, dict):
        raise ConfigError(f"config {path} is not a mapping of sections: see flows/configs for examples")
    for override in overrides:
        data = _override(data, override)
    return validate_config(data, origin=str(path))


def validate_config(data: dict[str, Any], *, origin: str = "config") -> DistillConfig:
    """Validate a plain mapping; ConfigError names the first wrong value in one line."""
    try:
        return DistillConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first_line(error)}") from None


def _first_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key, remove it or correct its spelling"
    if first["type"] == "missing":
        return f"{where}: missing, give it a value"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin} is not valid YAML{where}: {getattr(error, 'problem', error)}") from None


def _override(data: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: write section.key=value")
    nested: Any = _parse_yaml(value, f"--set {override}")
    if key == "name" and not isinstance(nested, str):
        nested = value  # a name that YAML reads as something else, as null or 2024
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return merge(data, nested)
