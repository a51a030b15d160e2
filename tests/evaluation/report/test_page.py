"""The page in a real browser: `make test-pages`; skipped where Chromium or selenium is missing."""

import base64
import shutil

import pytest

from hear_m2d.evaluation.report.report import write_report

pytestmark = [
    pytest.mark.pages,
    pytest.mark.skipif(
        not shutil.which("chromium") or not shutil.which("chromedriver"),
        reason="needs Chromium (Debian, Ubuntu: apt-get install chromium chromium-driver)",
    ),
]

TASKS = (
    ("esc50-v2.0.0-full", 0.85, "top1_acc", (0.84, 0.86)),
    ("libricount-v1.0.0-hear2021-full", 0.7),
    ("tfds_crema_d-1.0.0-full", None),
    ("esc10-v1-full", 0.9),
)
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--hide-scrollbars",
)


@pytest.fixture
def page(write_run, tmp_path):
    runs = [write_run("first <run>", *TASKS), write_run("second", *TASKS[:2], grid="fast")]
    write_report([str(run) for run in runs], html=tmp_path / "page.html")
    return (tmp_path / "page.html").as_uri()


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    for option in OPTIONS:
        options.add_argument(option)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", OFFLINE)
    yield driver
    driver.quit()


STYLES = (("main", "color"), ("body", "backgroundColor"), ("#chart .ytick text", "fill"))
OFFLINE = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}


def column(browser, table, index, group=0):
    """The texts of a column of one group of rows."""
    rows = "[...document.querySelector(arguments[0]).tBodies[arguments[2]].rows]"
    script = f"return {rows}.map(row => row.cells[arguments[1]].innerText)"
    return browser.execute_script(script, table, index, group)


def click(browser, table, index):
    head = "document.querySelector(arguments[0]).tHead.rows[0].cells[arguments[1]]"
    browser.execute_script(f"{head}.querySelector('button').click()", table, index)


def test_the_page_draws_the_chart_offline_without_console_messages(browser, page):
    browser.get(page)
    assert browser.get_log("browser") == []
    points = browser.execute_script("return document.querySelectorAll('#chart .scatterlayer .point').length")
    assert points == 34 + 34 + 1 + 3 + 2  # ESC-50, LibriCount, MSM-MAE, both runs; CREMA-D failed
    names = browser.execute_script(
        "return [...document.querySelectorAll('#chart .legendtext')].map(t => t.textContent)"
    )
    assert "first <run>" in names
    assert "second †" in names


def test_sorting_goes_up_and_down_by_value_with_missing_ones_last(browser, page):
    browser.get(page)
    click(browser, "table.tasks", 3)
    scores = column(browser, "table.tasks", 3)
    assert scores == ["70.0", "70.0", "85.0 ± 1.4", "85.0 ± 1.4", "90.0", "–"]
    click(browser, "table.tasks", 3)
    assert column(browser, "table.tasks", 3) == [*scores[:-1][::-1], "–"]
    click(browser, "table.tasks", 1)
    assert column(browser, "table.tasks", 1) == ["first <run>"] * 4 + ["second †"] * 2
    sorts = browser.execute_script(
        "return [...document.querySelectorAll('[aria-sort]')].map(h => h.innerText)"
    )
    assert len(sorts) == 1


def test_published_and_measured_rows_are_sorted_apart(browser, page):
    browser.get(page)
    click(browser, "table.wide", 1)
    assert column(browser, "table.wide", 0, group=1) == ["first <run>", "second †"]
    published = [float(score) for score in column(browser, "table.wide", 1, group=3) if score != "–"]
    assert published == sorted(published)
    assert len(published) == 34


def test_dark_and_light_follow_the_system(browser, page):
    looks = {}
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(page)
        looks[scheme] = [
            browser.execute_script(
                "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", part, property
            )
            for part, property in STYLES
        ]
    for scheme, (ink, background, label) in looks.items():
        assert ink == label
        assert (brightness(ink) > brightness(background)) == (scheme == "dark")
        assert abs(brightness(ink) - brightness(background)) > 400


def brightness(color):
    """The sum of red, green and blue."""
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))


def test_a_narrow_page_does_not_scroll_sideways(browser, page):
    size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390


def test_the_page_prints_to_pdf(browser, page):
    browser.get(page)
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF")
    assert browser.get_log("browser") == []
