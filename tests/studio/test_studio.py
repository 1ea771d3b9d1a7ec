"""The studio in a browser: a person shows a task, leaves an episode out, trains, takes over, improves and compares."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from fixtures.waiting import wait_until

from understudy.data.formats import open_dataset

CHROMIUM = shutil.which("chromium")
pytest.importorskip("nicegui", reason="extra studio not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]
WAIT = 60_000  # ms


@contextmanager
def served(folder, env="fork"):
    """The address of a studio in a process group of its own, which is killed at the end."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}  # NiceGUI acts otherwise in tests
    server = subprocess.Popen([sys.executable, "-m", "understudy", "studio", env, "--out", str(folder), "--no-browser",
                               "--port", "0"], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environ)
    try:
        address = re.search(r"http://\S+/", server.stdout.readline())[0]
        wait_until(lambda: answers(address), 60)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(WAIT)
    return page


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def hold(page, key, until):
    """Holds a key until a condition of the shapes is true. The agent is the last shape."""
    page.keyboard.down(key)
    page.wait_for_function(f"() => {{ const at = document.querySelector('.live').shapes.at(-1).at; return {until}; }}")
    page.keyboard.up(key)


def drive_around(page, count):
    """Passes the pillar above and goes to the goal, which ends the episode."""
    hold(page, "ArrowUp", "at[1] < 0.2")
    hold(page, "ArrowRight", "at[0] > 0.87")
    page.keyboard.down("ArrowDown")
    page.get_by_text(f"{count} shown").wait_for()
    page.keyboard.up("ArrowDown")
    page.get_by_text(f"episode {count}, step 0").wait_for()


def take_over(page, count):
    """Takes over by holding a key, gives back by releasing it, and ends the episode as a success."""
    page.get_by_text("the policy acts").wait_for()
    page.keyboard.down("ArrowUp")
    page.get_by_text("you act").wait_for()
    page.keyboard.up("ArrowUp")
    page.get_by_text("the policy acts").wait_for()
    page.keyboard.press("y")
    page.get_by_text(f"of {count} succeeded").wait_for()


def test_the_whole_loop(page, tmp_path):
    folder = tmp_path / "project"
    with served(folder) as address:
        page.goto(address)
        press(page, "Start showing")
        for count in range(1, 4):
            drive_around(page, count)
        press(page, "Stop showing")
        data = open_dataset(folder / "demonstrations" / "1")
        assert len(data) == 3 and all(e.metadata["success"] and e.metadata["by"] == "browser" for e in data)

        tab(page, "Check")
        page.get_by_role("button", name="Leave out").first.click()  # the newest stands first
        page.get_by_role("button", name="Take back").wait_for()
        assert len(open_dataset(folder / "views" / "1.json")) == 2

        tab(page, "Train")
        page.get_by_label("Updates").fill("200")
        press(page, "Train")
        page.get_by_text("Train: done.").wait_for()

        tab(page, "Watch")
        press(page, "Watch")
        for count in (1, 2):
            take_over(page, count)
        press(page, "Stop watching")
        page.get_by_text("watched episodes are stored").wait_for()
        press(page, "Learn from them")
        page.get_by_text("Improve: done.").wait_for()
        rounds = open_dataset(folder / "runs" / "1-1" / "collection" / "000000")
        assert len(rounds) >= 2 and all(e.steps["intervention"].any() for e in rounds[:2])

        tab(page, "Compare")
        page.get_by_role("button", name=re.compile("^Compare on")).click()
        report = folder / "reports" / "1.json"
        page.get_by_text("Compare: done.").wait_for()
        stored = json.loads(report.read_text())
        page.get_by_text(stored["verdict"]).wait_for()
        shown = page.inner_text("body")
        assert all(f"{p['success']['estimate']:.0%} [{p['success']['low']:.0%} to" in shown for p in stored["policies"])
    with served(folder) as address:  # the server was killed: all is there
        page.goto(address)
        page.get_by_text("2 shown").wait_for()
        tab(page, "Compare")
        page.get_by_text(stored["verdict"]).wait_for()
