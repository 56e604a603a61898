"""The pictures of the project's README, from the dashboard of a root: `make pictures`, after `make demo`.

rskd dashboard .rskd ─► Chromium, light and dark ─► boxes of its views ─► dashboards/pictures/<name>-<scheme>.png
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from rskd.dashboard.publish import write_dashboard

FOLDER = Path(__file__).parent / "pictures"
BOXES = {
    "figures": ("students", "Figures"),
    "calibration": ("students", "Calibration"),
    "frontier": ("frontier", "What a byte buys"),
    "tokens": ("tokens&student=rskd", "Where the student differs"),
}
_WIDTH, _HEIGHT, _SCALE, _COLORS = 860, 2400, 1.5, 128
_MOST_HEIGHT = "section { max-height: 560px; overflow: hidden }"  # the page scrolls, a picture does not


def main() -> None:
    """Draw every box in both schemes."""
    root = sys.argv[1] if len(sys.argv) > 1 else ".rskd"
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        sys.exit("no Chromium: apt install chromium")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        address = Path(write_dashboard(root, Path(folder, "dashboard.html"))["dashboard"]).as_uri()
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": _WIDTH, "height": _HEIGHT}, device_scale_factor=_SCALE, color_scheme=scheme
            )
            for name, (view, title) in BOXES.items():
                page.goto(f"{address}#view={view}")
                _write(_picture(page, title), FOLDER / f"{name}-{scheme}.png")
        browser.close()


def _picture(page: Page, title: str) -> bytes:
    page.reload()
    page.add_style_tag(content=_MOST_HEIGHT)
    box = page.locator("section", has=page.get_by_role("heading", name=title, exact=True))
    page.wait_for_timeout(1000)  # Plotly draws in steps
    return box.screenshot()


def _write(picture: bytes, file: Path) -> None:
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(_COLORS).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
