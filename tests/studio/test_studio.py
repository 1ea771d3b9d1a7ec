"""The studio in a browser: a person shows a task, leaves an episode out, trains, takes over, improves and compares."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from understudy.data.formats import open_dataset

CHROMIUM = shutil.which("chromium")
pytest.importorskip("nicegui", reason="extra studio not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]
WAIT = 120_000  # ms


@contextmanager
def served(folder, env="fork"):
    """The address of a studio in a process group of its own, which is killed at the end."""
    server = subprocess.Popen([sys.executable, "-m", "understudy", "studio", env, "--out", str(folder), "--no-browser",
                               "--port", "0"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield re.search(r"http://\S+/", server.stdout.readline())[0]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


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


def test_the_whole_loop(page, tmp_path):
    folder = tmp_path / "project"
    with served(folder) as address:
        page.goto(address)
        press(page, "Start showing")
        for count in range(1, 4):
            drive_around(page, count)
        press(page, "Stop showing")
        tab(page, "Check")
        page.get_by_text("Demonstration 3").wait_for()
        press(page, "Leave out")
