"""The page in a real browser: drawn, and with values under the pointer."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from apr_train.artifact.report.page import report_page
from apr_train.run.record import read_records

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000"),
)
HOVER = """<script>
window.onerror = (message) => document.body.setAttribute("data-fault", message);
const area = document.querySelectorAll(".area")[1], box = area.getBoundingClientRect();
area.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 9, bubbles: true}));
</script>"""
PRESS = '<script>document.querySelector(".legend button").click()</script>'

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="no Chromium is installed")]


@pytest.fixture
def browse(tmp_path):
    """Open HTML from the disk in a browser without a past; returns what it wrote to its output."""

    def open_page(html, *arguments):
        (tmp_path / "report.html").write_text(html, encoding="utf-8")
        profile = tmp_path / f"profile-{len(list(tmp_path.iterdir()))}"
        browser = next(filter(None, map(shutil.which, NAMES)))
        command = [browser, *FLAGS, f"--user-data-dir={profile}", *arguments, (tmp_path / "report.html").as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    return open_page


def body(page):
    """What was drawn, without the sources of style and script."""
    return re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)


@pytest.fixture
def html(make_run_folder):
    return report_page(read_records([make_run_folder("one"), make_run_folder("two", seed=1, lr=2e-3)]))


@pytest.mark.parametrize("window", ["1280,1600", "500,1600"])
def test_a_screenshot_shows_curves_in_the_colours_of_both_runs(browse, html, tmp_path, window):
    image = pytest.importorskip("matplotlib.image")
    browse(html, f"--screenshot={tmp_path / 'shot.png'}", f"--window-size={window}", "--blink-settings=preferredColorScheme=1")
    pixels = np.round(image.imread(tmp_path / "shot.png")[..., :3] * 255).astype(int)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    for colour in ((0x25, 0x63, 0xEB), (0xE8, 0x59, 0x0C)):
        rows, columns = np.nonzero((np.abs(pixels - colour) < 12).all(axis=-1))
        assert len(rows) > 500
        assert np.ptp(columns) > 0.5 * pixels.shape[1]
    assert pixels.shape[1] == int(window.split(",")[0])


def test_the_document_holds_the_curves_and_the_pointer_shows_values(browse, html):
    found = body(browse(html.replace("</body>", f"{HOVER}</body>"), "--dump-dom", "--window-size=1280,1600"))
    assert found.count('class="curve run-0"') == found.count('class="curve run-1"') == 5
    assert "data-fault" not in found
    assert found.count('class="cursor"') == 5
    assert "step 100" in found
    assert "(ppl " in found


def test_pressing_a_name_hides_its_curves(browse, html):
    found = body(browse(html.replace("</body>", f"{PRESS}</body>"), "--dump-dom"))
    assert found.count('class="curve run-0 hidden"') == 5
    assert 'class="curve run-1 hidden"' not in found
    assert found.count('aria-pressed="false"') == 1
