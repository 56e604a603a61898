import pytest

from rskd.difference import first_difference


@pytest.mark.parametrize(
    ("made", "wanted", "text"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({}, {}, None),
        ({"a": 1, "b": 2}, {"b": 3, "a": 2}, "b=2, not 3"),
        ({"train": {"lr": 0.1, "steps": 3}}, {"train": {"lr": 0.1, "steps": 4}}, "train.steps=3, not 4"),
        ({"a": {"b": {"c": [1]}}}, {"a": {"b": {"c": [1, 2]}}}, "a.b.c=[1], not [1, 2]"),
        ({"a": 1}, {}, "a=1, not None"),
        ({}, {"a": 1}, "a=None, not 1"),
        ({"a": None}, {}, None),
        ({"a": {}}, {"a": 1}, "a={}, not 1"),
    ],
)
def test_the_first_difference_by_its_dotted_name(made, wanted, text):
    found = first_difference(made, wanted)
    assert (found and str(found)) == text


def test_a_long_value_is_shortened():
    found = first_difference({"a": "word " * 1000}, {"a": 1})
    assert found is not None
    assert len(str(found)) < 300
    assert str(found).endswith("…, not 1")
