"""The parts of an HTML page that needs no network: sections, tables of numbers, definitions, plotly figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs


def html_page(kind: str, title: str, sections: Sequence[str], made_from: str = "") -> str:
    """The whole page; `title` is text, `kind` and `sections` are HTML, `made_from` a digest that is not shown."""
    title = escape(title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="made-from" content="{made_from}">
<title>{title} · rskd</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<main>
<header><p class="kind">{kind}</p><h1>{title}</h1></header>
{"".join(sections)}
</main>
</body>
</html>
"""


def section(title: str, body: str, note: str = "") -> str:
    """A box with a heading, its HTML, and a note below; all three are HTML."""
    explained = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{body}{explained}</section>\n"


def definitions(facts: dict[str, str]) -> str:
    """Names with their values side by side; values are text."""
    return "<dl>" + "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()) + "</dl>"


def table(head: Sequence[str], rows: Iterable[Iterable[str]], *, num_text: int) -> str:
    """A table whose first `num_text` columns are text; the others are numbers, aligned to the right. Cells are HTML."""

    def row(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(
            f"<{tag}{'' if index < num_text else ' class=number'}>{cell}</{tag}>" for index, cell in enumerate(cells)
        )

    body = "".join(row("td", cells) for cells in rows)
    return f'<div class="wide"><table><thead>{row("th", head)}</thead><tbody>{body}</tbody></table></div>'


def figure_html(figure: go.Figure) -> str:
    """A figure for a page that `html_page` makes: that brings plotly along."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False})


_STYLE = """
:root { color-scheme: light; --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --accent: #0072b2; }
body { margin: 0; background: #f6f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
header { border-left: 4px solid var(--accent); padding-left: 16px; margin-bottom: 24px; }
h1 { margin: 0; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
.kind { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .04em; text-transform: uppercase; }
section, details { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 22px; margin: 0 0 18px; }
h2 { margin: 0 0 10px; font-size: 18px; }
dl { display: flex; flex-wrap: wrap; gap: 10px 36px; margin: 0; }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 8px 12px 8px 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
small { display: block; color: var(--soft); font-size: 12px; font-weight: 400; }
b { color: var(--accent); }
.note { margin: 10px 0 0; color: var(--soft); font-size: 13px; max-width: 80ch; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: 13px; }
"""
