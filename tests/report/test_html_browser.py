"""The report in a browser: it loads from a file, asks for nothing, and its sliders and tables work by keyboard."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from reported_runs import PROMPTS, make_metrics, write_reported, write_rollout

from rlcm_cli.report.compare.runs import open_compared
from rlcm_cli.report.html.page import write_report
from rlcm_cli.store.layout import RunLayout

pytest.importorskip("vl_convert", reason="the report's charts need the extra `report`")
webdriver = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium, of the extra `dev`")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)

HOSTILE = '<img src=x onerror="window.hacked=1">'
BREAKING = "</script><script>window.hacked=2</script>"


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def report(*roots: Path, out: Path) -> Path:
    return write_report([open_compared(root, root.name) for root in roots], out)


def visit(browser, path: Path) -> float:
    """Open a report and wait until its charts are drawn; give the seconds until it was loaded."""
    browser.get_log("browser"), browser.get_log("performance")
    started = time.perf_counter()
    browser.get(path.as_uri())
    loaded = time.perf_counter() - started
    while browser.execute_script("return document.documentElement.dataset.state") != "drawn":
        assert time.perf_counter() - started < 30
        time.sleep(0.05)
    return loaded


def messages(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def requests(browser) -> list[str]:
    """Addresses that the page asked for; what is within it is none."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith(("data:", "blob:"))]


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def press(browser, selector: str, *keys: str):
    element = browser.find_element("css selector", selector)
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.send_keys(*keys)
    return element


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    run = write_reported(folder / "run", prompts=(HOSTILE, BREAKING, "cow", "bee"))
    return report(run.root, out=folder / "report.html")


@pytest.fixture
def opened(browser, page):
    visit(browser, page)
    return browser


def test_it_loads_from_a_file_without_an_error_or_a_request(browser, page):
    visit(browser, page)
    assert messages(browser) == []
    assert requests(browser) == [page.as_uri()]
    charts = browser.execute_script(
        "const shown = [...document.querySelectorAll('.chart')].filter(place => place.checkVisibility());"
        "return shown.map(place => !!place.querySelector('svg'))"
    )
    assert len(charts) >= 10
    assert all(charts)


def test_prompts_are_text_and_run_nothing(opened):
    assert opened.execute_script("return window.hacked") is None
    assert any(HOSTILE in text for text in texts(opened, "figcaption b"))
    assert any(BREAKING in text for text in texts(opened, "table.sortable td.text"))
    assert opened.execute_script("return document.images.length") == opened.execute_script(
        "return [...document.images].filter(image => image.src.startsWith('data:image/webp')).length"
    )


def test_the_policy_of_the_page_lets_nothing_else_run_or_load(opened):
    opened.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 3'; document.body.append(s);"
        "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i);"
    )
    time.sleep(0.2)
    assert opened.execute_script("return window.hacked") is None
    refused = [message for message in messages(opened) if "Content Security Policy" in message]
    assert len(refused) == 2


def test_the_slider_goes_through_the_checkpoints_by_keyboard(opened):
    def shown():
        return opened.execute_script(
            "const images = [...document.querySelectorAll('.pairs figure:first-child img')];"
            "return images.filter(image => !image.hidden).map(image => image.alt)"
        )

    slider = press(opened, "input.checkpoint", "")
    assert [alt.rpartition(" ")[2] for alt in shown()] == ["0", "4"]
    slider.send_keys("\ue012")  # arrow left
    assert [alt.rpartition(" ")[2] for alt in shown()] == ["0", "2"]
    assert slider.get_attribute("aria-valuetext") == "checkpoint 2"
    assert texts(opened, ".through output") == ["checkpoint 2 of 4"]
    slider.send_keys("\ue011")  # home
    assert [alt.rpartition(" ")[2] for alt in shown()] == ["0", "0"]
    assert texts(opened, ".pairs figure:first-child .values")[0] == "0 → 0"


def test_the_histogram_follows_its_slider(opened):
    def bars():
        return opened.execute_script(
            "const bars = document.querySelectorAll('.detail:not([hidden]) .bars .mark-rect path');"
            "return [...bars].map(bar => bar.getAttribute('d'))"
        )

    before = bars()
    slider = press(opened, ".detail:not([hidden]) input.iteration", "\ue011")
    time.sleep(0.2)
    assert texts(opened, ".detail:not([hidden]) output")[0] == "iteration 1 of 4"
    assert bars() != before
    slider.send_keys("\ue010")  # end
    time.sleep(0.2)
    assert bars() == before


def test_another_reward_is_chosen_by_keyboard(opened):
    press(opened, ".choice input:checked", "\ue014")  # arrow right
    time.sleep(0.5)
    visible = opened.execute_script("return [...document.querySelectorAll('.detail')].map(e => !e.hidden)")
    assert visible == [False, True]
    assert opened.execute_script("return !!document.querySelector('.detail:not([hidden]) .bars svg')")


def test_tables_are_sorted_by_keyboard_and_click(opened):
    table = ".detail:not([hidden]) table.sortable"

    def column(number):
        return texts(opened, f"{table} tbody td:nth-child({number})")

    heading = press(opened, f"{table} th:nth-child(4) button", "\ue007")  # return
    upward = [float(text.replace("−", "-")) for text in column(4)]
    assert upward == sorted(upward)
    assert heading.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    heading.click()
    assert [float(text.replace("−", "-")) for text in column(4)] == upward[::-1]
    press(opened, f"{table} th:nth-child(1) button", " ")
    assert len(column(1)) == len(PROMPTS)
    assert column(1)[-1].strip() == "cow"
    assert opened.execute_script(f"return document.querySelectorAll('{table} th[aria-sort]').length") == 1


def test_a_chart_tells_its_numbers_to_a_pointer(opened):
    chart = opened.find_element("css selector", ".chart svg")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    webdriver.ActionChains(opened).move_to_element(chart).pause(0.3).perform()
    (text,) = texts(opened, "#vg-tooltip-element.visible")
    assert re.search(r"iteration.*mean.*std.*best", text)


def test_light_and_dark_are_the_readers_choice(opened):
    grounds = []
    for scheme in ("light", "dark"):
        opened.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        line = "getComputedStyle(document.querySelector('.mark-line path')).stroke"
        colours = f"[getComputedStyle(document.body).backgroundColor, {line}]"
        grounds.append(opened.execute_script(f"return {colours}"))
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds[0][0] != grounds[1][0]
    assert grounds[0][1] != grounds[1][1]  # the charts, too, without being drawn again


def test_it_prints(opened):
    data = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"]
    assert len(data) > 50_000


def test_a_narrow_window_needs_no_sideways_scrolling(opened):
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    opened.refresh()
    time.sleep(1)
    width = opened.execute_script("return document.documentElement.scrollWidth")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 380


def test_runs_are_compared_and_each_opens(browser, tmp_path):
    runs = [write_reported(tmp_path / name, seed=seed).root for name, seed in (("a-1", 1), ("a-2", 2))]
    visit(browser, report(*runs, out=tmp_path / "report.html"))
    assert texts(browser, "h1") == ["2 runs compared"]
    assert [text.strip() for text in texts(browser, "table.sortable td.run")] == ["a-1", "a-2"]
    assert "a (2 seeds)" in " ".join(texts(browser, ".keys li"))
    press(browser, "details.run > summary", "\ue007")
    time.sleep(1.5)
    assert browser.execute_script("return document.querySelectorAll('details[open] .chart svg').length") >= 8
    assert messages(browser) == []


@pytest.mark.parametrize("missing", ["rollouts", "evaluations", "metrics"])
def test_a_run_without_a_part_has_a_page(browser, tmp_path, missing):
    layout = write_reported(
        tmp_path / "run",
        rollouts=0 if missing == "rollouts" else 2,
        checkpoints=() if missing == "evaluations" else (0, 4),
        iterations=0 if missing == "metrics" else 4,
    )
    visit(browser, report(layout.root, out=tmp_path / "report.html"))
    assert messages(browser) == []
    assert "What is missing" in " ".join(texts(browser, ".callout"))


@pytest.mark.slow
def test_a_thousand_iterations_stay_small_and_open_fast(browser, tmp_path):
    layout = write_reported(tmp_path / "run", iterations=1, checkpoints=range(12))
    (layout.root / "metrics" / "000001.json").unlink()
    lines = [json.dumps({"format_version": 1, **make_metrics(number).as_row()}) for number in range(1000)]
    layout.metrics_jsonl.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number in range(1, 40):
        write_rollout(RunLayout(layout.root), number)
    path = report(layout.root, out=tmp_path / "report.html")
    assert path.stat().st_size < 15e6
    assert visit(browser, path) < 3
