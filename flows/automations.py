"""Declared automations: what the Prefect server does by itself when an event comes, or comes no more.

    no heartbeat for a quarter of an hour ─► that run is Crashed
    rskd.source.changed                   ─► a run of watch-source

Registering again updates what is declared here and leaves whether a user has disabled one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ActionTypes, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.crash_dead_runs import HEARTBEAT, HEARTBEAT_SECONDS, TAG
from flows.watch_source import SOURCE, SOURCE_CHANGED

_SILENCE = timedelta(seconds=15 * HEARTBEAT_SECONDS)
_RESOURCE = "prefect.resource.id"


def register_automations(client: SyncPrefectClient) -> list[str]:
    """Create or update the automations, once the deployments are registered; their names."""
    watch_source = client.read_deployment_by_name("watch-source/watch-source")
    automations = [_crash_silent_runs(), _source_changed(watch_source)]
    for declared in automations:
        known: Sequence[Any] = client.read_automations_by_name(declared.name)
        if known:
            # An update sends what was given and leaves out defaults, such as the kind of a trigger: so all is given.
            given = declared.model_dump(exclude={"owner_resource"}) | {"enabled": known[0].enabled}
            client.update_automation(known[0].id, AutomationCore.model_validate(given))
        else:
            client.create_automation(declared)
    return [declared.name for declared in automations]


def _crash_silent_runs() -> AutomationCore:
    """What Prefect documents against zombies (https://docs.prefect.io/v3/advanced/detect-zombie-flows)."""
    trigger = EventTrigger(
        posture=Posture.Proactive,
        match={_RESOURCE: "prefect.flow-run.*"},
        match_related={_RESOURCE: f"prefect.tag.{TAG}", "prefect.resource.role": "tag"},
        for_each={_RESOURCE},
        after={HEARTBEAT},
        expect={"prefect.flow-run.*"},  # a heartbeat, or another state
        within=_SILENCE,
    )
    minutes = _SILENCE.seconds // 60
    crash: ActionTypes = ChangeFlowRunState.model_validate(
        {"state": StateType.CRASHED, "message": f"no heartbeat for {minutes} minutes: start it again, it resumes"}
    )
    return AutomationCore(
        name="rskd-crash-silent-runs",
        description=f"Crashed: a run that was heard of and then, for {minutes} minutes, is not. The deployment"
        " crash-dead-runs is faster and looks at the process, but needs a worker.",
        tags=[TAG],
        trigger=trigger,
        actions=[crash],
    )


def _source_changed(watch_source: DeploymentResponse) -> AutomationCore:
    """An event may carry a configuration; without one it is about that of the deployment's form."""
    parameters = parameters_from_event(watch_source.parameters)
    run: ActionTypes = RunDeployment.model_validate(
        {"source": "selected", "deployment_id": watch_source.id, "parameters": parameters}
    )
    return AutomationCore(
        name="rskd-source-changed",
        description=f"The event {SOURCE_CHANGED} starts watch-source, which starts retrain where files are new.",
        tags=[TAG],
        trigger=EventTrigger(match={_RESOURCE: f"{SOURCE}*"}, expect={SOURCE_CHANGED}),
        actions=[run],
    )


def parameters_from_event(form: dict[str, Any]) -> dict[str, Any]:
    """Parameters in Prefect's templates: the payload's, or the form's where the event is about its configuration.

    Otherwise they are empty, and the run is refused.
    """
    own = f"{SOURCE}{form['config']['name']}"
    return {key: _template(key, json.dumps(form.get(key)), own) for key in ("config", "student")}


def _template(key: str, default: str, own: str) -> dict[str, Any]:
    template = (
        f"{{% if event.payload.config %}}{{{{ event.payload.{key} | default(none) | tojson }}}}"
        f"{{% elif event.resource.id == '{own}' %}}{{% raw %}}{default}{{% endraw %}}{{% endif %}}"
    )
    return {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": template}}
