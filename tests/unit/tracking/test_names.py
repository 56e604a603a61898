import string

from mlflow.utils.validation import _validate_logged_model_name, _validate_metric_name

from rskd.tracking.names import escaped, model_name, shortened


def test_every_character_is_escaped_into_a_name_of_its_own() -> None:
    names = [f"a{character}b/loss" for character in string.printable + "éα学🙂\u0301" if character != "/"]
    found = [escaped(name) for name in names]
    for name in found:
        _validate_metric_name(name)
    assert len(set(found)) == len(names)
    assert escaped("tokens_per_s") == "tokens_per_s"
    assert escaped("t=0.8/ece") == "t:3d:0.8/ece"


def test_long_names_differ() -> None:
    first, second = escaped("学=" * 200 + "a"), escaped("学=" * 200 + "b")
    assert len(first) == len(second) == 250
    assert first != second


def test_names_of_models_and_values() -> None:
    for name in ("a.b", "50%", "kd+ce", "it's"):
        _validate_logged_model_name(model_name(name))
    assert shortened("x" * 6000) == "x" * 6000
    assert shortened("x" * 6001) == "x" * 5999 + "…"
