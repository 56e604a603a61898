from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rskd.config import DistillConfig, validate_config
from rskd.costs import Costs
from rskd.pages.report import Findings, render

CACHE = {
    "tokens": 40960,
    "bytes": 2**20,
    "bytes_per_token": 25.6,
    "unique_per_token": 10.37,
    "histograms": {"num_unique": {"low": 0.0, "width": 1.0, "counts": [0, 3, 5]}},
}


def make_config(root: Path, *students: str) -> DistillConfig:
    return validate_config(
        {
            "name": "tiny",
            "storage": {"root": str(root)},
            "corpus": {"source": {"kind": "python_docs"}},
            "teacher": {"model": "a<b>teacher"},
            "students": {name: {"objective": {"kind": "ce"}} for name in students},
        }
    )


def make_model(lm_loss: float) -> dict[str, Any]:
    return {
        "lm_loss": lm_loss,
        "ece": 0.0432,
        "top1_agreement": 0.5,
        "acceptance": 0.6,
        "kl_to_teacher": 0.7,
        "standard_error": {"lm_loss": 0.01},
        "reliability": {"count": [0, 4], "confidence": [None, 0.8], "accuracy": [None, 0.75]},
    }


def make_evaluation(**losses: float) -> dict[str, Any]:
    return {"models": {name: make_model(loss) for name, loss in losses.items()}, "windows": 3, "tokens": 96}


def make_log() -> list[dict[str, float]]:
    return [{"step": step, "tokens": 32 * step, "loss": 5.0 / step} for step in range(1, 4)]


class Page(HTMLParser):
    """The text of the table cells, what is bold, and what the page would load from elsewhere."""

    def __init__(self, page: str):
        super().__init__()
        self.cells: list[str] = []
        self.bold: list[str] = []
        self.loaded: list[str] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.loaded += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "td" in self._open:
            self.cells.append(data)
        if "b" in self._open:
            self.bold.append(data)


def test_shows_every_model_and_marks_the_best_student(tmp_path: Path):
    config = make_config(tmp_path, "a", "b")
    evaluation = make_evaluation(teacher=1.0, a=3.25, b=3.5)
    cache = CACHE | {"sampling": {"method": "systematic", "num_samples": 22, "temperature": 1.0}}
    page = Page(render(Findings(config, evaluation, {"default": cache}, {"a": make_log(), "b": make_log()})))
    assert {"teacher", "a", "b", "1.000", "3.250", "3.500", "± 0.010", "4.3"} <= set(page.cells)
    assert {"systematic, N = 22", "40,960", "1.0", "25.6", "10.37"} <= set(page.cells)
    assert "3.250" in page.bold
    assert not {"1.000", "3.500"} & set(page.bold)


def test_says_what_each_student_learned_from(tmp_path: Path):
    config = make_config(tmp_path, "ghost", "mse", "full").model_dump(mode="json", exclude_unset=True)
    objectives = ({"residual": "ghost"}, {"divergence": "mse", "ce_weight": 0.1}, {"kind": "full_kd"})
    config["samplings"] = {"top_k": {"method": "top_k", "k": 12}}
    config["students"] = {
        name: {"sampling": "top_k", "objective": objective} for name, objective in zip(config["students"], objectives)
    }
    logs = {name: make_log() for name in config["students"]}
    evaluation = make_evaluation(teacher=1.0, ghost=3.0, mse=3.0, full=3.0)
    page = Page(render(Findings(validate_config(config), evaluation, {}, logs)))
    assert {"KD", "top_k, k = 12, rest: ghost", "0.1·CE + 0.9·KD (mse)", "teacher online"} <= set(page.cells)


def test_shows_what_each_stage_cost(tmp_path: Path):
    config = make_config(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    costs = {"cache": Costs(40960, 10.0, 60.0, 0.0, 2**20), "train a": Costs(96, 1800.0, 3600.0, 0.0, 5)}

    def page(prices: dict[str, float]) -> str:
        with_prices = validate_config(config | {"costs": prices})
        evaluation = make_evaluation(teacher=1.0, a=3.0)
        return render(Findings(with_prices, evaluation, {}, {"a": make_log()}, costs))

    priced = page({"price_per_core_hour": 1.2})
    assert {"train a", "60.0", "1,048,576", "0.0200", "1.20", "total", "1.22"} <= set(Page(priced).cells)
    assert "Prices: 1.2 a core-hour." in priced
    assert "–" in Page(page({})).cells
    assert "Prices: none." in page({})


def test_needs_no_network(tmp_path: Path):
    page = render(Findings(make_config(tmp_path, "a"), make_evaluation(teacher=1.0, a=3.0), {}, {"a": make_log()}))
    assert Page(page).loaded == []
    assert "Plotly.newPlot" in page


def test_names_are_text_and_never_markup(tmp_path: Path):
    page = render(Findings(make_config(tmp_path, "a"), make_evaluation(teacher=1.0, a=3.0), {}, {"a": make_log()}))
    assert "a<b>teacher" not in page
    assert "a&lt;b&gt;teacher" in page
