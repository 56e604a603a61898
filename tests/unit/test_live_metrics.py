"""The metrics that jobs declare, and what dashboards/ makes of them."""

import json
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import yaml
from live_metrics import DASHBOARDS, GRAFANA, PROMETHEUS, names, panel_expressions, panels, rule_expressions, rules
from live_metrics import selectors as selected

from rskd.jobs import metrics
from rskd.jobs.metrics import LABELS, METRICS, Live, exported
from rskd.progress import progress_bar

EXPRESSIONS = panel_expressions() | rule_expressions()


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_expressions_know_no_other_metrics_and_labels(where):
    for selector in selected(EXPRESSIONS[where]):
        name, _, labels = selector.partition("{")
        if name.startswith("rskd_"):
            known = (*LABELS, *METRICS[name].labels)
            assert set(re.findall(r"(\w+)\s*(?:=|!)", labels)) <= set(known)


def test_every_metric_is_in_a_panel():
    assert set().union(*map(names, panel_expressions().values())) >= set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_names_follow_the_conventions_of_prometheus(name):
    assert re.fullmatch(r"rskd_[a-z]+(_[a-z]+)*", name)
    assert name.endswith("_total") == (METRICS[name].kind == "counter")
    assert METRICS[name].help


@pytest.mark.parametrize("file", GRAFANA, ids=lambda file: file.stem)
def test_a_dashboard_is_whole(file):
    board = json.loads(file.read_text())
    assert [variable["name"] for variable in board["templating"]["list"]] == ["datasource", *LABELS]
    identifiers = [panel["id"] for panel in board["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    for panel in panels(file):
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie on one another"
    assert max(x for x, _ in cells) == 23


def test_dashboards_are_told_apart_and_lead_to_each_other():
    boards = [json.loads(file.read_text()) for file in GRAFANA]
    uids = {board["uid"] for board in boards}
    assert len(uids) == len(boards) == 2
    for board in boards:
        assert {link["url"].removeprefix("/d/") for link in board["links"]} == uids - {board["uid"]}


def test_provisioning_is_what_grafana_reads():
    folder = DASHBOARDS / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "rskd.yaml").read_text())["providers"]
    assert (source["type"], source["url"]) == ("prometheus", "${RSKD_PROMETHEUS_URL}")
    assert (provider["type"], provider["options"]) == ("file", {"path": "${RSKD_GRAFANA_DASHBOARDS}"})


def test_each_rule_says_what_to_do():
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_each_rule_is_tested():
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one.get("exp_alerts")}
    assert fired == set(rule_expressions())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: apt install prometheus")
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_promtool_agrees(command):
    done = subprocess.run(["promtool", *command.split()], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_lists_the_metrics():
    rows = [
        f"| `{name}` | {metric.kind} | {metric.help}{''.join(f'; label `{label}`' for label in metric.labels)} |"
        for name, metric in METRICS.items()
    ]
    assert "\n".join(rows) in (DASHBOARDS / "README.md").read_text()


def test_without_ray_nothing_is_exported_nor_imported(tmp_path):
    code = f"""
import sys
from rskd.jobs.metrics import exported
from rskd.progress import progress_bar
with exported("d", "train", "s", disk={str(tmp_path)!r}) as live, progress_bar("steps", 2) as advance:
    advance()
    live.add("rskd_tokens_total", 3)
    live.step(1, dict(loss=1.0, lr=1e-3, grad_norm=1.0, data_wait=0.0, tokens_per_s=9.0))
    live.restarted()
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What is set and added, in order, as if Ray ran."""
    calls: list[tuple] = []
    monkeypatch.setattr(Live, "set", lambda live, name, value: calls.append((name, value)))
    monkeypatch.setattr(Live, "add", lambda live, name, value=1, **labels: calls.append((name, labels or value)))
    return calls


@pytest.mark.parametrize(
    ("error", "state", "failures"),
    [(None, "finished", []), (ValueError, "failed", ["ValueError"]), (KeyboardInterrupt, "stopped", [])],
)
def test_an_attempt_is_counted_by_how_it_ends(monkeypatch, tmp_path, error, state, failures):
    calls = recorded(monkeypatch)
    try:
        with exported("d", "cache", None, disk=str(tmp_path)):
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert ("rskd_attempts_total", {"state": "started"}) in calls
    assert calls[-1] == ("rskd_attempts_total", {"state": state})
    assert [labels["error"] for name, labels in calls if name == "rskd_failures_total"] == failures


def test_gauges_of_a_stage_that_waits_are_set_again_until_it_ends(monkeypatch):
    """Else Ray would forget the heartbeat of a stage that hangs, which is when it is needed."""
    beats: queue.Queue[float] = queue.Queue()
    gauge = SimpleNamespace(set=lambda value, labels: beats.put(value), inc=lambda value, labels: None)
    ray = threading.Event()
    monkeypatch.setattr(metrics, "_ray_runs", ray.is_set)
    monkeypatch.setattr(metrics, "_made", lambda name: gauge)
    monkeypatch.setattr(metrics, "_SECONDS", 0.01)
    with exported("d", "cache", None, disk=None) as live:
        time.sleep(0.1)
        assert beats.empty()
        ray.set()  # a training starts it when it has begun
        first = beats.get(timeout=10)
        assert [beats.get(timeout=10) for _ in range(3)] == [first] * 3
        assert live.gauges == {"rskd_heartbeat_timestamp_seconds": first}
    while not beats.empty():
        beats.get()
    time.sleep(0.1)
    assert beats.empty()


def test_progress_is_exported(monkeypatch):
    calls = recorded(monkeypatch)
    with exported("d", "cache", None, disk=None), progress_bar("windows", 8) as advance:
        advance(2)
        advance(6)
    assert [value for name, value in calls if name == "rskd_progress_ratio"] == [0.25, 1.0]
    assert len([name for name, _ in calls if name == "rskd_heartbeat_timestamp_seconds"]) == 3
