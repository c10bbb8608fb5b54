"""The pages in a real browser: Debian's ``chromium`` and ``chromium-driver``, without a network.

Skipped where they are missing; with ``MEDMDM_REQUIRE_CHROMIUM=1``, as in continuous integration, that is a failure.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmdm.reports import write_comparison, write_report
from tests.reports.runs import change, change_case, picture, picture_run, study, volume_run

selenium = pytest.importorskip("selenium", reason="NO BROWSER TEST OF THE REPORTS: pip install selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

pytestmark = pytest.mark.slow  # starts a browser

BAD = "<b>bad</b> & 'worse'"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("browser")
    other = picture_run(root / "pictures", cases=16, name="other", shift=3)
    run = picture_run(root / "pictures", cases=16)
    study(run / "study.csv", ["case_0", "case_1", "case_2"])
    change(run, study="study.csv")
    change_case(run, 3, case=BAD)
    # A case without a score: neither truth nor prediction.
    for file in ("data/case_4_label.png", "run/masks/case_4.png", "run/instances/case_4.png"):
        picture(root / "pictures" / file, np.zeros((40, 56), np.uint8))
    return {
        "pictures": write_report(run),
        "volumes": write_report(volume_run(root / "volumes")),
        "comparison": write_comparison([run, other], root / "comparison"),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        message = "NO BROWSER TEST OF THE REPORTS: apt-get install chromium chromium-driver"
        if os.environ.get("MEDMDM_REQUIRE_CHROMIUM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--window-size=1280,900",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as running:
        yield running


@pytest.fixture
def report(browser: webdriver.Chrome, pages: dict[str, Path]) -> Iterator[webdriver.Chrome]:
    """The page of the pictures, opened anew; whatever a test does must leave the console empty."""
    browser.get(pages["pictures"].as_uri())
    yield browser
    assert browser.get_log("browser") == []


def find(browser: webdriver.Chrome, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def column(browser: webdriver.Chrome, heading: str) -> tuple[Any, int]:
    """The button of a heading, and the number of its column."""
    headings = browser.find_elements("css selector", "#cases thead th")
    (number,) = [i for i, h in enumerate(headings) if h.get_property("textContent") == heading]
    return headings[number].find_element("css selector", "button"), number


def cells(browser: webdriver.Chrome, number: int) -> list[str]:
    script = "return [...document.querySelectorAll('#cases tbody tr')].map(r => r.cells[arguments[0]].textContent)"
    return list(browser.execute_script(script, number))


def is_open(browser: webdriver.Chrome) -> bool:
    return bool(browser.execute_script("return document.getElementById('case-dialog').open"))


def title(browser: webdriver.Chrome) -> str:
    return str(find(browser, "#case-title").text)


def pixels(frame: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(frame.screenshot_as_png)).convert("RGB")).astype(int)


def test_sorting_by_click_and_by_keyboard(report: webdriver.Chrome) -> None:
    button, number = column(report, "Dice")
    original = cells(report, number)
    for press, falling in ((button.click, False), (lambda: button.send_keys(Keys.ENTER), True)):
        press()
        *scores, last = cells(report, number)
        values = [float(cell) for cell in scores]
        assert values == sorted(values, reverse=falling)
        assert len(set(values)) > 5
        assert last == "\N{EN DASH}"  # the case without a score stays last
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    names, first = column(report, "Case")
    names.click()
    assert cells(report, first)[1:4] == ["case_0", "case_1", "case_2"]  # by number: 2 before 10
    assert len(report.find_elements("css selector", "#cases th[aria-sort]")) == 1
    assert sorted(cells(report, number)) == sorted(original)


def test_a_case_opens_by_click_and_shows_its_picture(report: webdriver.Chrome) -> None:
    find(report, "#cases tbody tr[data-case='5'] td:last-child").click()
    assert is_open(report)
    assert title(report) == "case_5"
    frames = report.find_elements("css selector", "#case-content svg.frame")
    assert len(frames) == 2  # with its uncertainty
    assert pixels(frames[0]).shape[0] > 150
    assert pixels(frames[0]).std() > 30  # not an empty box
    assert "SECRET" not in report.page_source
    assert "Object Dice" in find(report, "#case-content").text
    find(report, "#close").click()
    assert not is_open(report)
    find(report, "#cases tr[data-case='3'] .open").click()
    assert title(report) == BAD  # names from files are text


def test_a_case_opens_by_keyboard_and_the_arrows_follow_the_table(report: webdriver.Chrome) -> None:
    column(report, "Dice")[0].click()
    rows = report.execute_script("return [...document.querySelectorAll('#cases .open')].map(b => b.textContent)")
    opener = report.find_elements("css selector", "#cases .open")[2]
    opener.send_keys(Keys.ENTER)
    assert title(report) == rows[2]
    for key, place in ((Keys.ARROW_RIGHT, 3), (Keys.ARROW_LEFT, 2), (Keys.ARROW_LEFT, 1)):
        report.switch_to.active_element.send_keys(key)
        assert title(report) == rows[place]
    report.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not is_open(report)
    assert report.switch_to.active_element == opener  # where the reader was


def test_cases_open_from_galleries_and_charts(report: webdriver.Chrome) -> None:
    worst = find(report, ".gallery button")
    worst.send_keys(Keys.SPACE)
    assert title(report) == worst.find_element("css selector", ".caption").text.splitlines()[1]
    find(report, "#close").click()
    point = report.find_elements("css selector", ".points circle")[0]
    number = point.get_attribute("data-case")
    report.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", point)
    assert title(report) == report.execute_script(f"return document.getElementById('case-{number}').dataset.title")


def test_layers_are_switched_off_and_on(report: webdriver.Chrome) -> None:
    find(report, "#cases tr[data-case='5'] .open").click()

    def shown() -> np.ndarray:
        return pixels(find(report, "#case-content svg.frame"))

    def changed(before: np.ndarray) -> bool:
        return int((abs(shown() - before).max(axis=-1) > 100).sum()) > 200  # smoothing alone changes pixels a little

    whole = shown()
    for layer in ("image", "truth", "pred"):
        box = find(report, f"[data-layer={layer}]")
        box.click()
        assert changed(whole), layer
        box.click()
        assert not changed(whole), layer
    find(report, "[data-layer=truth]").click()
    without = shown()
    for button in ("#next", "#previous"):
        find(report, button).click()
    assert not changed(without)  # stays off for the next case


def test_filter(report: webdriver.Chrome) -> None:
    for words, number in (("malignant", 8), ("no such case", 0)):
        find(report, "#filter").clear()
        find(report, "#filter").send_keys(words)
        assert sum(row.is_displayed() for row in report.find_elements("css selector", "#cases tbody tr")) == number
        assert find(report, "#shown").text == f"{number} of 16 shown"


def test_everything_is_reached_with_the_tab_key(report: webdriver.Chrome) -> None:
    report.execute_script(
        "window.reached = []; document.addEventListener('focusin', e => window.reached.push("
        "e.target.dataset.case || e.target.id || e.target.textContent))"
    )
    ActionChains(report).send_keys(Keys.TAB * 90).perform()
    reached = set(report.execute_script("return window.reached"))
    assert {str(i) for i in range(16)} <= reached
    assert {"filter", "Dice"} <= reached


@pytest.mark.parametrize("name", ["pictures", "volumes", "comparison"])
@pytest.mark.parametrize("width", [1280, 420])
def test_pages_fit_the_window_and_load_nothing(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, width: int
) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(pages[name].as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    fetched = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert browser.execute_script(fetched) == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert browser.get_log("browser") == []


def test_comparisons_are_sorted_too(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    browser.get(pages["comparison"].as_uri())
    button, number = column(browser, "Dice B")
    button.click()
    values = [float(cell) for cell in cells(browser, number)]
    assert values == sorted(values)
    assert browser.get_log("browser") == []


def test_the_page_prints_with_all_cases_and_is_complete_without_scripts(report: webdriver.Chrome) -> None:
    printed = report.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    box = "return (e => e.scrollHeight <= e.clientHeight)(document.querySelector('.tall'))"
    assert report.execute_script(box)  # nothing is hidden in a box that scrolls
    assert not find(report, "#filter").is_displayed()
    report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    report.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    report.refresh()
    assert len(report.find_elements("css selector", ".gallery svg.frame")) >= 30
    assert find(report, ".gallery svg.frame use").rect["width"] > 100
    report.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
