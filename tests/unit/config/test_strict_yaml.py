"""YAML for configurations: repeated keys, numbers, and what is typed after --set."""

from typing import Any

import pytest

from rskd.config.strict_yaml import dump_yaml, parse_value, parse_yaml
from rskd.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice, at lines 1 and 3"),
        ("a: 1\n'a': 2\n", "'a' is given twice, at lines 1 and 2"),
        ("a:\n  b: 1\n  b: 2\n", "'b' is given twice, at lines 2 and 3"),
        ("- {x: 1}\n- [{y: 1, y: 1}]\n", "'y' is given twice, at line 2"),
        ("a: {<<: &m {k: 1, k: 2}}\n", "'k' is given twice"),
    ],
)
def test_a_key_given_twice_is_refused_at_any_depth(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_yaml(text, "config c.yaml")
    assert str(error.value).startswith("config c.yaml: ")
    with pytest.raises(ConfigError, match=message):
        parse_value(text, "--set")


def test_values_nested_too_deeply_are_refused() -> None:
    text = "[" * 3000 + "]" * 3000
    with pytest.raises(ConfigError, match=r"^config c\.yaml nests its values too deeply"):
        parse_yaml(f"a: {text}", "config c.yaml")
    assert parse_value(text, "--set") == text


def test_merge_keys_and_anchors_work() -> None:
    text = "a: &a {k: 1, j: 2}\nb: {<<: *a, k: 3}\nc: {<<: [*a, {z: 4}]}\nd: *a\n"
    found = parse_yaml(text, "config")
    assert found["b"] == {"k": 3, "j": 2}
    assert found["c"] == {"k": 1, "j": 2, "z": 4}
    assert found["d"] == {"k": 1, "j": 2}


SCALARS: list[tuple[str, Any]] = [
    ("1e-3", 0.001),
    ("4e-4", 4e-4),
    ("1E5", 1e5),
    ("-.5", -0.5),
    ("1_000", 1000),
    ("010", 10),
    ("0x1F", 31),
    ("0o17", 15),
    ("-.inf", float("-inf")),
    ("1:30", "1:30"),
    ("2026-11-26", "2026-11-26"),
    ("true", True),
    ("null", None),
    ("'1e-3'", "1e-3"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_are_the_same_in_a_file_and_after_set(text: str, value: Any) -> None:
    for found in (parse_yaml(f"a: {text}", "config")["a"], parse_value(text, "--set")):
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("text", ["a #b.jsonl", "*.jsonl", "[a].jsonl", "%20", "@x", "~/data", "5 # five"])
def test_text_after_set_is_taken_whole(text: str) -> None:
    assert parse_value(text, "--set") == text


def test_lists_and_mappings_after_set() -> None:
    assert parse_value("[0.9, 1e-1]", "--set") == [0.9, 0.1]
    assert parse_value("{k: 5}", "--set") == {"k": 5}
    assert parse_value("", "--set") is None


@pytest.mark.parametrize(
    "value",
    [
        "1e-3",
        "010",
        "1:30",
        "2026-11-26",
        "no",
        "null",
        "~",
        "a #b",
        "x: y",
        "α\nβ",
        "",
        1e-3,
        1e16,
        6e-5,
        -7,
        None,
        True,
    ],
)
def test_what_is_dumped_is_read_again_as_it_was(value: Any) -> None:
    dumped = dump_yaml({"key": value, "list": [value], str(value): {"nested": value}})
    read = parse_yaml(dumped, "config")
    assert read == {"key": value, "list": [value], str(value): {"nested": value}}
    assert type(read["key"]) is type(value)
