"""The voting page in a browser: 200 pairs by the keyboard give the ranking that the votes were made from."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from voted_runs import write_grey_evaluation, write_voted

from rlcm_cli.learning.preferences import COLUMNS
from rlcm_cli.rewards import RewardSpec
from rlcm_cli.store.manifest import read_manifest
from rlcm_cli.store.rollouts import read_rewards
from rlcm_cli.store.votes import list_voters, read_votes, standing_votes

webdriver = pytest.importorskip("selenium.webdriver", reason="the browser is driven by selenium, of the extra `dev`")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
LONGEST = 120  # seconds; a loaded machine starts a process slowly

pytestmark = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
    ),
    pytest.mark.skipif(os.name != "posix", reason="a signal is sent to a process"),
]

LEFT, RIGHT, DOWN, BACKSPACE = "\ue012", "\ue014", "\ue015", "\ue003"
GREY = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
return ["left", "right"].map((side) => {
  canvas.drawImage(document.getElementById(side), 0, 0);
  return canvas.getImageData(1, 1, 1, 1).data[0];
});
"""
"""The greys of the two images that are shown."""
VOTER = f"""
const tell = arguments[0];
const greys = () => {{ {GREY} }};
let voted = 0;
function vote() {{
  const state = document.documentElement.dataset.state;
  if (state === "done" || voted === 20) {{
    observer.disconnect();
    tell(voted);
  }} else if (state === "ready") {{
    voted += 1;
    const [left, right] = greys();
    const key = left > right ? "ArrowLeft" : "ArrowRight";
    document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true, cancelable: true }}));
  }}
}}
const observer = new MutationObserver(vote);
observer.observe(document.documentElement, {{ attributeFilter: ["data-state"] }});
vote();
"""
"""Presses the key of the brighter image as soon as two are shown, up to 20 times, and tells how often it did."""


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(LONGEST)
    yield driver
    driver.quit()


@contextlib.contextmanager
def voting(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `rlcm vote ARGUMENTS`; gives the process and the address of the page."""
    command = [sys.executable, "-m", "rlcm_cli", "vote", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str]) -> dict:
    """Press Ctrl-C; give the result that is printed."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONGEST)
    assert (process.returncode, err) == (0, "")
    return json.loads(out)


def state(browser) -> str:
    return browser.execute_script("return document.documentElement.dataset.state")


def wait(browser, *states: str) -> str:
    started = time.monotonic()
    while state(browser) not in states:
        assert time.monotonic() - started < LONGEST, (state(browser), messages(browser))
        time.sleep(0.01)
    return state(browser)


def messages(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def press(browser, key: str) -> str:
    """Press a key and wait for what the page does then; give its state."""
    browser.find_element("css selector", "body").send_keys(key)
    return wait(browser, "ready", "done", "failed")


def shown(browser, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def begin(browser, url: str, selector: str = "#voters .main") -> None:
    messages(browser)
    browser.get("about:blank")
    browser.get(url)
    wait(browser, "start")
    browser.find_element("css selector", selector).click()
    wait(browser, "ready", "done")


def test_200_pairs_give_the_ranking_that_the_votes_were_made_from(browser, tmp_path):
    draw = random.Random(7)  # noqa: S311
    greys = [draw.sample(range(256), 5) for _ in range(20)]  # 10 pairs each
    run = write_voted(tmp_path / "run", greys=greys, shards=3)
    with voting(run.layout.root, "--pairs", tmp_path / "pairs.csv") as (process, url):
        begin(browser, url)
        voted = 0
        while state(browser) != "done":
            voted += browser.execute_async_script(VOTER)
        assert (voted, messages(browser)) == (200, [])
        result = stop(process)
    assert (result["votes"], result["voters"], result["pairs"]) == (200, 1, 200)
    manifest = read_manifest(run.layout.manifest(0))
    scores = read_rewards(run.layout, manifest, RewardSpec("votes").directory, ["compression"]).reshape(20, 5)
    for row, own in zip(scores, greys, strict=True):
        assert row.argsort().tolist() == sorted(range(5), key=own.__getitem__)
    flat = [grey for own in greys for grey in own]
    heading, *rows = (tmp_path / "pairs.csv").read_text().splitlines()
    assert heading == ",".join(COLUMNS)
    for line in rows:
        iteration, chosen, rejected = map(int, line.split(","))
        assert iteration == 0
        assert flat[chosen] > flat[rejected]
    # The sides were drawn: who always takes the left one says nothing.
    sides = [vote.answer for vote in read_votes(run.layout)[list_voters(run.layout)[0]]]
    assert 65 < sides.count("left") < 135


def test_checkpoints_are_compared_blindly_with_ties_skips_and_changed_minds_by_two_voters(browser, tmp_path):
    run = write_voted(tmp_path / "run", rewards=("compressibility",))
    write_grey_evaluation(run, 0, [10] * 6)
    write_grey_evaluation(run, 4, [200] * 6)
    with voting(run.layout.root, "--most", 5) as (process, url):
        begin(browser, url)
        assert re.fullmatch(r"prompt \d", shown(browser, "#prompt"))
        page = browser.execute_script("return document.documentElement.outerHTML")
        assert not re.search(r"checkpoint|evaluation|run\b|\.png", page.lower().replace("rlcm vote", ""))
        for key in (LEFT, "s", DOWN, LEFT):
            press(browser, key)
        assert shown(browser, "#count") == "4 of 5"
        press(browser, BACKSPACE)
        left, right = browser.execute_script(GREY)
        press(browser, LEFT if left > right else RIGHT)
        assert shown(browser, "#count") == "4 of 5"
        browser.refresh()  # a page that is closed resumes where it was
        wait(browser, "start")
        assert shown(browser, "#voters .main") == "Resume (4 of 5 answered)"
        browser.find_element("css selector", "#voters .main").click()
        assert wait(browser, "ready", "done") == "ready"
        browser.find_element("css selector", ".answers [data-answer=right]").click()
        assert wait(browser, "done") == "done"
        begin(browser, url, "#voters button:last-child")
        assert shown(browser, "#count") == "0 of 5"
        browser.find_element("css selector", ".image[data-answer=left]").click()
        wait(browser, "ready")
        assert messages(browser) == []
        result = stop(process)
    votes = read_votes(run.layout)
    assert sorted(map(len, votes.values())) == [1, 6]
    answers = [vote.answer for vote in standing_votes(votes)]
    assert (answers.count("skip"), answers.count("tie"), len(answers)) == (1, 1, 6)
    assert (result["votes"], result["skipped"], result["ties"], result["voters"]) == (5, 1, 1, 2)
    (found,) = result["comparisons"]
    assert (found["contender"], found["against"]) == ("checkpoint 4", "checkpoint 0")


def test_a_stopped_program_an_unknown_key_and_held_keys_lose_and_add_nothing(browser, tmp_path):
    run = write_voted(tmp_path / "run", greys=[(1, 2)] * 6)
    with voting(run.layout.root) as (process, url):
        browser.get("about:blank")
        browser.get(url.partition("#")[0])
        wait(browser, "failed")
        assert "whole address" in shown(browser, "#fault")
        browser.get("about:blank")
        browser.get(f"{url}x")
        wait(browser, "failed")
        assert "whole address" in shown(browser, "#fault")
        begin(browser, url)
        browser.execute_script(
            "for (const repeat of [false, true, true, true])"
            " document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true, repeat}))"
        )
        wait(browser, "ready")
        assert shown(browser, "#count") == "1 of 6"
        stop(process)
    press(browser, RIGHT)
    assert state(browser) == "failed"
    assert "has stopped. Every vote so far is stored" in shown(browser, "#fault")
    assert len(standing_votes(read_votes(run.layout))) == 1


def test_the_page_asks_nobody_else_and_fits_a_phone(browser, tmp_path):
    hostile = '<img src=x onerror="window.hacked=1">'
    run = write_voted(tmp_path / "run", rewards=("compressibility",))
    for checkpoint in (0, 1):
        write_grey_evaluation(run, checkpoint, [10, 20], [hostile, "long " * 200])
    with voting(run.layout.root) as (process, url):
        browser.get_log("performance")
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 380, "height": 700, "deviceScaleFactor": 1, "mobile": True}
        )
        begin(browser, url)
        for _ in range(2):
            assert shown(browser, "#prompt") in (hostile, "long " * 200)
            width, height = browser.execute_script(
                "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight]"
            )
            assert (width, height) == (380, 700)
            press(browser, DOWN)
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        root = url.partition("#")[0]
        assert [one for one in asked if not one.startswith((root, "data:", "blob:", "about:"))] == []
        assert browser.execute_script("return window.hacked") is None
        assert messages(browser) == []
        stop(process)
