"""What an event makes of the form of watch-source, rendered as Prefect's server does."""

from typing import Any

import pytest
from prefect.events import Event, Resource
from prefect.utilities.schema_tools.hydration import HydrationContext, HydrationError, hydrate

from flows.automations import parameters_from_event

FORM = {"config": {"name": "demo", "text": "{{ braces }} 'quotes' {% end %}", "deep": {"empty": {}}}, "student": "rskd"}


def rendered(resource: str, payload: dict[str, Any]) -> dict[str, Any]:
    event = Event(event="rskd.source.changed", resource=Resource({"prefect.resource.id": resource}), payload=payload)
    context = HydrationContext(raise_on_error=True, render_jinja=True, jinja_context={"event": event})
    return hydrate(parameters_from_event(FORM), context)


def test_the_configuration_in_the_event():
    mine = {"name": "mine", "corpus": {"bos": None, "flag": True, "sign": "<&'"}}
    assert rendered("rskd.source.mine", {"config": mine}) == {"config": mine, "student": None}
    assert rendered("rskd.source.mine", {"config": mine, "student": "ce"}) == {"config": mine, "student": "ce"}


def test_without_one_that_of_the_form():
    assert rendered("rskd.source.demo", {}) == FORM
    assert rendered("rskd.source.demo", {"student": "ce"}) == FORM


def test_another_name_without_one_is_refused():
    with pytest.raises(HydrationError, match="Invalid JSON"):
        rendered("rskd.source.other", {})
