"""What dashboards/ asks of Prometheus: the expressions of its panels and alert rules, and the series they select."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

DASHBOARDS = Path(__file__).parents[1] / "dashboards"
PROMETHEUS = DASHBOARDS / "prometheus"
GRAFANA = sorted((DASHBOARDS / "grafana" / "dashboards").glob("*.json"))

_SELECTOR = re.compile(r"\b((?:rskd|ray)_\w+)(\{[^}]*\})?")


def panels(file: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard, without rows."""
    return [panel for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]


def panel_expressions() -> dict[str, str]:
    """Every expression of every panel by where it stands, with all of each variable chosen."""
    return {
        f"{file.stem}: {panel['title']} {target['refId']}": re.sub(
            r"\$(distillation|stage|student)\b", ".*", target["expr"]
        )
        for file in GRAFANA
        for panel in panels(file)
        for target in panel["targets"]
    }


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return group["rules"]


def rule_expressions() -> dict[str, str]:
    return {rule["alert"]: rule["expr"] for rule in rules()}


def selectors(expression: str) -> set[str]:
    """What it selects, `rskd_failures_total{error="…"}`, each without functions and ranges around it."""
    return {name + (labels or "") for name, labels in _SELECTOR.findall(expression)}


def names(expression: str) -> set[str]:
    return {name for name, _ in _SELECTOR.findall(expression)}
