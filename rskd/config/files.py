"""Configurations from YAML files and from plain mappings; what is wrong with one is said in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rskd.config.distillation import DistillConfig, merge
from rskd.config.strict_yaml import dump_yaml, parse_value, parse_yaml
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
    data = parse_yaml(text, f"config {path}")
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
        raise ConfigError(f"{origin}: {_first_line(error, data)}") from None


def to_yaml(config: DistillConfig) -> str:
    """What `config` sets, as a file that `load_config` reads."""
    return dump_yaml(config.model_dump(mode="json", exclude_unset=True))


def _first_line(error: ValidationError, data: dict[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    path = first["loc"]
    or_auto = ""
    if len(error.errors()) > 1 and error.errors()[1]["loc"] == (*path[:-1], "literal['auto']"):
        path, or_auto = path[:-1], ", or auto"
    where, value = ".".join(str(part) for part in path), first["input"]
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key, {_place_of(str(path[-1])) or 'remove it or correct its spelling'}"
    if first["type"] == "missing":
        return f"{where}: missing, give it a value"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{where}: {message}{_inherited(path, message, data)}" if where else message
    advice = ": put it in quotes" if first["type"] == "string_type" and isinstance(value, bool | int | float) else ""
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}{or_auto}, not {_shortened(repr(value))}{advice}"


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _place_of(key: str) -> str | None:
    """Where a key belongs that stands in the wrong section; None where no section has it."""
    sections = {name: field.annotation for name, field in DistillConfig.model_fields.items()}
    owners = [name for name, kind in sections.items() if key in getattr(kind, "model_fields", ())]
    return f"write {' or '.join(f'{owner}.{key}' for owner in owners)}" if owners else None


def _inherited(path: tuple[int | str, ...], message: str, data: dict[str, Any]) -> str:
    """What else to say of an option that a student has from the top level, and its own method does not use."""
    option, unused, _ = message.partition("=")
    if not unused or " is not used by " not in message or path[0] != "students" or len(path) < 3:
        return ""
    own = data["students"][path[1]]
    if isinstance(own, dict) and option in (own.get(path[2]) or {}):
        return ""
    return f" from {path[2]} at the top level, and give it to the students that use it"


def _override(data: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: write section.key=value")
    nested: Any = parse_value(value, f"--set {override}")
    if key == "name" and not isinstance(nested, str):
        nested = value  # a name that YAML reads as something else, as null or 2024
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return merge(data, nested)  # pyright: ignore[reportArgumentType] (a key has a part at least)
