"""The page of `rskd dashboard`: rows of plain JSON and the script that shows them, in one file without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

_ASSETS = files("rskd.pages") / "assets"
_VIEWS = ("overview", "caches", "students", "frontier", "tokens", "champions")
_SCRIPTS = ("page", "table", "charts", "columns", *_VIEWS, "dashboard")  # each uses those before it


def dashboard_page(data: Mapping[str, Any]) -> str:
    """The whole page; `data` is what `rskd.dashboard.gather` returns.

    The data is JSON in an element of its own, which the script reads and shows as text alone: nothing in it is run.
    """
    scripts = "\n".join((_ASSETS / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(str(data["root"]))} · rskd</title>
<style>{(_ASSETS / "dashboard.css").read_text("utf-8")}</style>
</head>
<body>
<header><b>rskd</b><nav id="views" aria-label="Views"></nav><small id="made"></small></header>
<main id="view"></main>
<noscript>This page needs JavaScript, from this file alone.</noscript>
<script type="application/json" id="data">{_embedded(data)}</script>
<script>{get_plotlyjs()}</script>
<script>{scripts}</script>
</body>
</html>
"""


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON in which no HTML can end the element that holds it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
