"""YAML as a configuration needs it: PyYAML's safe loader without its silent surprises.

- A key that is given twice in one mapping is refused; PyYAML keeps the last. Merge keys (`<<`) and anchors work.
- Numbers are those of YAML 1.2: `1e-3` is one, `010` is ten, `1:30` and `2026-11-26` are text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from rskd.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INT = re.compile(rf"[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|{_DIGITS})\Z")
_FLOAT = re.compile(
    rf"(?:[-+]?(?:\.{_DIGITS}|{_DIGITS}(?:\.(?:{_DIGITS})?)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)

_KEPT = [f"{_TAG}{name}" for name in ("bool", "null", "merge")]  # of what PyYAML recognises without quotes


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML document. Raises ConfigError, with one line that begins with `origin`."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise _explained(error, origin) from None
    except RecursionError:
        raise ConfigError(f"{origin} nests its values too deeply: flatten it") from None


def parse_value(text: str, origin: str) -> Any:
    """A value as it is typed after `--set key=`: a YAML list, mapping or quoted string, or else one scalar.

    A scalar, and what is no YAML, is taken whole: `a #b.jsonl`, `*.jsonl` and `[a].jsonl` are paths.
    """
    try:
        node = yaml.compose(text, _Loader)
    except _DuplicateKeyError as error:
        raise _explained(error, origin) from None
    except (yaml.YAMLError, RecursionError):
        node = None
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None):
        return _plain(text.strip())
    return parse_yaml(text, origin)


def dump_yaml(value: Any) -> str:
    """A YAML document that `parse_yaml` reads as `value`: text that it would take for a number is in quotes."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _explained(error: yaml.YAMLError, origin: str) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    if isinstance(error, _DuplicateKeyError):
        return ConfigError(f"{origin}: {problem}")
    return ConfigError(f"{origin} is not valid YAML{where}: {problem}")


def _plain(text: str) -> Any:
    """What YAML makes of an unquoted scalar."""
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_document(yaml.ScalarNode(tag, text))


class _DuplicateKeyError(yaml.YAMLError):
    """A mapping with one key twice."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the rules of this module."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML's own)
        letter: [(tag, regexp) for tag, regexp in resolvers if tag in _KEPT]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a repeated key here, where merge keys are not resolved yet."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == f"{_TAG}merge":
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"at line {line}" if line == lines[name] else f"at lines {lines[name]} and {line}"
                raise _DuplicateKeyError(f"key {key.value!r} is given twice, {where}: keep one")
            lines[name] = line
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what _Loader does not read as text."""


def _int(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, 0) if node.value.lstrip("-+")[:2] in ("0x", "0o") else int(node.value)


def _float(_: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(f"{_TAG}int", _int)
_Loader.add_constructor(f"{_TAG}float", _float)
for _kind, _numbers, _first in (("int", _INT, "-+0123456789"), ("float", _FLOAT, "-+.0123456789")):
    for _reader_or_writer in (_Loader, _Dumper):
        _reader_or_writer.add_implicit_resolver(f"{_TAG}{_kind}", _numbers, list(_first))
