"""The dashboard in a real browser: its views, filters and links work, and nothing leaves the file."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_distillations import copy_distillation
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny_runs import tiny_settings, write_texts

from rskd.config import DistillConfig, validate_config
from rskd.dashboard.gather import gather
from rskd.dashboard.publish import write_dashboard
from rskd.jobs.cache import cache_logits
from rskd.jobs.evaluate import evaluate_students
from rskd.jobs.pack import pack_corpus
from rskd.jobs.promote import promote_student
from rskd.jobs.train import train_student

pytestmark = pytest.mark.browser

STUDENTS = {
    "ce": {"objective": {"kind": "ce"}},
    "full": {"objective": {"kind": "full_kd"}},
    "kd": {},
    "kd-seed-1": {"train": {"seed": 1}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher_dir: Path) -> DistillConfig:
    root = tmp_path_factory.mktemp("page")
    write_texts(root / "text")
    config = validate_config(
        tiny_settings(
            root, tiny_teacher_dir, students=STUDENTS, evaluate={"max_windows": 8}, tracking={"enabled": True}
        )
    )
    pack_corpus(config)
    cache_logits(config)
    for student in STUDENTS:
        train_student(config, student)
    evaluate_students(config)
    promote_student(config, "kd")
    return config


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    assert binary, "no Chromium: apt install chromium"
    switches = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=[*switches, "--disable-component-update"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not write to its console, nor ask for anything but itself."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    yield page
    assert complaints == []
    page.close()


@pytest.fixture(scope="module")
def address(finished: DistillConfig) -> str:
    return Path(write_dashboard(finished.storage.root)["dashboard"]).as_uri()


def test_every_view_has_the_distillation_in_it(page: Page, address: str):
    page.goto(address)
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr")).to_contain_text("tiny")
    page.get_by_role("link", name="Caches").click()
    expect(page.locator("tbody tr")).to_contain_text("tiny/default")
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    page.get_by_role("link", name="Students").click()
    expect(page.locator("tbody tr")).to_have_count(len(STUDENTS))
    expect(page.locator(".js-plotly-plot")).to_have_count(4)
    page.get_by_role("link", name="Frontier").click()
    expect(page.locator(".legendtext")).to_have_text(["Pareto line", "labels", "systematic"])
    expect(page.locator(".annotation-text")).to_have_text(["tiny/full: full KD"])
    page.get_by_role("link", name="Tokens").click()
    expect(page.locator(".passage span")).to_have_count(16)
    page.get_by_role("link", name="Champions").click()
    expect(page.locator("tbody tr").first).to_contain_text("PROMOTE")
    page.locator("summary").click()
    expect(page.locator("details tbody tr").first).to_contain_text("LM loss")


def test_the_token_under_the_pointer_shows_what_both_would_have_said(page: Page, address: str, finished: DistillConfig):
    shown = gather(finished.storage.root)["passages"]["tiny"]
    at, strings = 3, shown["strings"]
    width = len(shown["models"]["kd"]["likeliest"]) // len(shown["windows"])
    page.goto(f"{address}#view=tokens&student=kd")
    page.locator(".passage span").nth(at).hover()
    detail = page.locator(".detail")
    kl = shown["models"]["kd"]["kl"][at]
    expect(detail).to_contain_text(f"KL to the teacher {float(f'{kl:.3g}'):g} nats")
    for table, model in enumerate(("teacher", "kd")):
        first = strings[shown["models"][model]["likeliest"][at * width]].replace("\n", "⏎")
        cell = page.locator(".pair table").nth(table).locator("td").first
        assert (cell.text_content() or "").replace("␣", " ") == first


def test_arrow_keys_walk_through_a_passage_and_keep_their_place(page: Page, address: str):
    page.goto(f"{address}#view=tokens&t=4")
    page.locator("#passage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".passage [aria-current]")).to_have_attribute("data-at", "6")
    assert "t=6" in page.url
    expect(page.locator("#passage")).to_be_focused()


def test_a_link_shows_what_its_sender_saw(page: Page, address: str):
    page.goto(f"{address}#view=students")
    page.keyboard.press("/")
    page.keyboard.type("tiny/kd")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_role("button", name="tokens/s").click()
    page.get_by_label("select tiny/kd-seed-1").check()
    expect(page.locator(".legendtext", has_text="tiny/")).to_have_count(3)  # in the curves and in both calibrations
    shown, link = page.locator("table").inner_text(), page.url
    page.goto("about:blank")
    page.goto(link)
    assert page.locator("table").inner_text() == shown
    expect(page.get_by_label("select tiny/kd-seed-1")).to_be_checked()
    expect(page.get_by_role("button", name="tokens/s ▲")).to_be_visible()


def test_sorting_puts_what_is_unknown_last(page: Page, address: str):
    page.goto(f"{address}#view=students")
    loss = page.get_by_role("button", name="LM loss")
    losses = page.locator("tbody tr td:nth-child(8)")
    loss.click()
    up = losses.all_inner_texts()
    loss.click()
    down = losses.all_inner_texts()
    assert up == sorted(up, key=lambda text: float(text.split()[0]))
    assert down == up[::-1]


def test_a_narrow_dark_screen(browser: Browser, address: str):
    page = browser.new_page(viewport={"width": 380, "height": 800}, color_scheme="dark")
    page.goto(f"{address}#view=students")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    page.close()


def test_an_empty_root_says_what_to_run(page: Page, tmp_path: Path):
    address = Path(write_dashboard(str(tmp_path))["dashboard"]).as_uri()
    commands = {
        "overview": "rskd pack",
        "caches": "rskd cache",
        "students": "rskd train",
        "frontier": "rskd evaluate",
    } | {"tokens": "rskd evaluate"}
    for view, command in (commands | {"champions": "flows.retrain"}).items():
        page.goto(f"{address}#view={view}")
        expect(page.locator(".empty code")).to_contain_text(command)


def test_two_thousand_students(page: Page, finished: DistillConfig, tmp_path: Path):
    copy_distillation(Path(finished.home), tmp_path, distillations=200, students=10, steps=1000)
    began = time.monotonic()
    told = write_dashboard(str(tmp_path))
    seconds = time.monotonic() - began
    assert told["students"] == 2000
    file = Path(told["dashboard"])
    assert file.stat().st_size < 25e6
    began = time.monotonic()
    page.goto(f"{file.as_uri()}#view=students")
    expect(page.locator(".js-plotly-plot")).to_have_count(4)
    opened = time.monotonic() - began
    print(f"written in {seconds:.1f} s, {file.stat().st_size / 1e6:.1f} MB, opened in {opened:.1f} s")
    assert seconds < 20
    assert opened < 3
