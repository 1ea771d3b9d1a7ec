"""The studio in a browser: a person shows a task, leaves an episode out, trains, takes over, improves and compares."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from fixtures.studios import handle, press, served, start, tab
from fixtures.waiting import wait_until

from understudy import make
from understudy.cli import main
from understudy.data.formats import open_dataset
from understudy.learn.run import Run

pytest.importorskip("nicegui", reason="extra studio not installed")
from understudy.studio.browser.project import Project  # noqa: E402

pytestmark = pytest.mark.slow


def hold(page, key, until):
    """Holds a key until a condition of the shapes is true. The agent is the last shape.

    On a slow machine the time limit may end the demonstration before.
    """
    page.keyboard.down(key)
    page.wait_for_function(f"""() => {{
        const at = document.querySelector('.live').shapes.at(-1).at;
        return {until} || document.querySelector('[role=status]').textContent.startsWith('It ');
    }}""")
    page.keyboard.up(key)


def drive_around(page, count):
    """Passes the pillar above and goes to the goal, which ends the demonstration. It is marked a success."""
    hold(page, "ArrowUp", "at[1] < 0.2")
    page.keyboard.press("y")
    hold(page, "ArrowRight", "at[0] > 0.87")
    page.keyboard.down("ArrowDown")
    page.get_by_text(f"{count} shown").wait_for()
    page.keyboard.up("ArrowDown")
    page.get_by_role("status").filter(has_text="step 0").wait_for()  # the next one waits


def take_over(page):
    """Takes over by holding a key, and gives back by releasing it."""
    page.get_by_text("the policy acts").wait_for()
    page.keyboard.down("ArrowUp")
    page.get_by_text("you act").wait_for()
    page.keyboard.up("ArrowUp")
    page.get_by_text("the policy acts").wait_for()


def show(page, count):
    start(page, "Start showing")
    for number in range(1, count + 1):
        drive_around(page, number)
    press(page, "Stop showing")
    page.get_by_role("button", name="Start showing").wait_for()


def train(page, updates):
    tab(page, "Train")
    page.get_by_label("Updates").fill(str(updates))
    press(page, "Train")


def test_the_whole_loop(page, tmp_path):
    folder = tmp_path / "project"
    with served(folder) as address:
        page.goto(address)
        assert page.title().startswith("understudy")
        show(page, 4)
        data = open_dataset(folder / "demonstrations" / "1")
        assert len(data) == 4 and all(e.metadata["success"] and e.metadata["by"] == "browser" for e in data)

        tab(page, "Check")
        press(page, "Look at demonstration 2")
        page.get_by_text("Demonstration 2, step 0 of").wait_for()
        handle(page, "Step of demonstration 2").press("ArrowRight")
        page.get_by_text(f"Demonstration 2, step 1 of {len(data[1])}").wait_for()
        x, y = page.evaluate("document.querySelector('.live').shapes.at(-1).at")
        assert np.allclose([x, y], fork_picture(data[1].steps["observation.state"][1]), atol=1e-3)
        handle(page, "Steps to learn").press("ArrowRight")
        press(page, "Trim")
        page.get_by_text(f"{len(data[1]) - 1} of {len(data[1])} steps, success").wait_for()
        assert [len(e) for e in open_dataset(folder / "views" / "1.json")] == [
            len(e) - (number == 1) for number, e in enumerate(data)]
        press(page, "It was a failure")
        page.get_by_text("1 of them failed").wait_for()
        press(page, "Undo")
        page.get_by_text("1 of them failed").wait_for(state="hidden")
        page.get_by_role("textbox", name="Note").fill("<b>low</b> way: 1 = 2")
        press(page, "Store note")
        page.get_by_text("success · <b>low</b> way: 1 = 2").wait_for()
        for number in (1, 3):
            page.get_by_role("checkbox", name=f"Choose demonstration {number}").click()
        press(page, "The chosen ones were a failure")
        page.get_by_text("2 of them failed").wait_for()
        press(page, "Choose all")
        press(page, "The chosen ones were a success")
        page.get_by_text("of them failed").wait_for(state="hidden")
        page.get_by_role("button", name="Look at demonstration 4").focus()
        page.keyboard.press("Delete")
        page.get_by_role("button", name="Take back").wait_for()
        kept = open_dataset(folder / "views" / "7.json")
        assert [len(e) for e in kept] == [len(data[0]), len(data[1]) - 1, len(data[2])]
        assert all(e.metadata["success"] for e in kept) and kept[1].metadata["note"] == "<b>low</b> way: 1 = 2"
        press(page, "Choose all")
        press(page, "Leave the chosen ones out")
        page.get_by_text("at least one demonstration must stay").wait_for()
        press(page, "Look for problems")
        page.get_by_text("No problem was found.").wait_for()

        train(page, 200)
        page.get_by_text("Train: done.").wait_for()
        tab(page, "Watch")
        start(page, "Watch")
        press(page, "half speed")
        page.locator(".live").focus()
        watched = folder / "runs" / "1-1" / "collection" / "unfinished-000000"
        for count in (1, 2):
            take_over(page)
            page.keyboard.press("y")
            wait_until(lambda count=count: len([*watched.glob("[0-9]*")]) >= count, 60)
        page.get_by_text(re.compile(r"of \d+ succeeded")).wait_for()
        press(page, "Stop watching")
        press(page, "Learn from them")
        page.get_by_text("Improve: done.").wait_for()
        rounds = open_dataset(folder / "runs" / "1-1" / "collection" / "000000")
        begins = [np.diff(e.steps["intervention"].astype(int), prepend=0) == 1 for e in rounds]
        assert len(rounds) >= 2 and sum(b.sum() for b in begins) >= 2

        tab(page, "Compare")
        page.get_by_label("Starts").fill("20")
        press(page, "Compare")
        page.get_by_text("Compare: done.").wait_for()
        stored = json.loads((folder / "reports" / "1.json").read_text())
        check_comparison(page, stored)
        command = [sys.executable, "-m", "understudy", "compare", "runs/1", "runs/1-1", "--env", "fork", "--episodes",
                   "20", "--json"]
        printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        assert json.loads(printed) == stored
        see_failures(page, folder, stored)
        export(page, folder)
    with served(folder) as address:  # the server was killed: all is there
        page.goto(address)
        page.get_by_text("3 shown").wait_for()
        tab(page, "Compare")
        check_comparison(page, stored)


def check_comparison(page, report):
    page.get_by_text(report["verdict"].replace("runs/", "Policy ").partition(". ")[0] + ".").wait_for()
    shown = page.inner_text("body")
    assert all(f"{p['success']['estimate']:.0%} [{p['success']['low']:.0%} to" in shown for p in report["policies"])


def see_failures(page, folder, report):
    """Looks at the first start from which a policy failed: the picture is that of the stored episodes."""
    rollouts = [open_dataset(folder / "rollouts" / "1" / p["name"].replace("/", "_")) for p in report["policies"]]
    successes = np.array([[e.metadata["success"] for e in data] for data in rollouts])
    assert successes.mean(1).tolist() == [p["success"]["estimate"] for p in report["policies"]]
    if successes.all():
        page.get_by_text("Both succeeded from all starts.").wait_for()
        return
    start = int(np.argsort(~(successes.any(0) & ~successes.all(0)) + 2 * successes.all(0), kind="stable")[0])
    page.get_by_text(f"Start {start + 1}: Policy 1 ").wait_for()
    for picture, data in zip(page.locator(".pair circle:last-of-type").all(), rollouts, strict=True):
        last = data[start].steps["observation.state"][len(data[start]) - 1]
        drawn = [float(picture.get_attribute(name)) for name in ("cx", "cy")]
        assert np.allclose(drawn, fork_picture(last), atol=1e-3)


def export(page, folder):
    page.get_by_text("Take it elsewhere").click()
    press(page, "Demonstrations for LeRobot")
    page.get_by_text("Written to exports/demonstrations-1").wait_for()
    assert len(open_dataset(folder / "exports" / "demonstrations-1")) == 3
    with page.expect_download() as download:
        press(page, "Comparison as a web page")
    assert download.value.path().read_bytes() == (folder / "reports" / "1.html").read_bytes()


def fork_picture(position):
    """Where a point of the fork is in its picture, from the upper left corner."""
    (x, y), side = make("fork", 1).square
    return (position[0] - x) / side, 1 - (position[1] - y) / side


def test_a_kill_in_each_step_loses_nothing(page, tmp_path):
    folder = tmp_path / "project"
    with served(folder) as address:
        page.goto(address)
        start(page, "Start showing")
        for count in (1, 2):
            drive_around(page, count)
        page.keyboard.down("ArrowUp")
        page.get_by_role("status").filter(has_text=re.compile(r"step ([5-9]|\d\d)")).wait_for()
    with served(folder) as address:
        page.goto(address)
        page.get_by_text("2 shown").wait_for()
        page.get_by_text("episode 2 was not finished: its").wait_for()
        recorded = open_dataset(folder / "demonstrations" / "1")
        assert len(recorded) == 3 and len(recorded[2]) >= 5 and recorded[2].metadata["interrupted"]
        train(page, 20_000)
        page.get_by_text("of 20,000 updates, about").wait_for()
        run = Run(folder / "runs" / "1")
        wait_until(run.saved_steps, 60)
    with served(folder) as address:
        page.goto(address)
        tab(page, "Train")
        before = max(run.saved_steps())
        page.get_by_text("Train: interrupted.").wait_for()
        press(page, "Continue: Train")
        page.get_by_text("of 20,000 updates, about").wait_for()
        stop = page.get_by_role("button", name="Stop, keep it").element_handle()
        said = page.get_by_text("of 20,000 updates, about").inner_text()
        page.get_by_text(said).wait_for(state="hidden")  # it has advanced
        stop.click()  # the same button, which fails if it was built again meanwhile
        page.get_by_text("Train: stopped.").wait_for()
        assert max(run.saved_steps()) > before
        tab(page, "Watch")
        start(page, "Watch")
        take_over(page)
    with served(folder) as address:
        page.goto(address)
        tab(page, "Watch")
        page.get_by_text("1 watched episodes are stored").wait_for()
    episode = open_dataset(next((folder / "runs").glob("1-1/collection/*/1000*")) / "episodes.npz")[0]
    assert episode.metadata["interrupted"] and episode.steps["intervention"].any()


def test_one_page_drives_and_others_watch(browser, page, tmp_path):
    page.add_init_script("Navigator.prototype.getGamepads = undefined")  # as of some browsers without TLS
    with served(tmp_path / "project") as address:
        page.goto(address)
        start(page, "Start showing")
        other = browser.new_page()
        other.goto(address)
        other.locator(".live").focus()
        other.keyboard.down("ArrowUp")  # is not heard
        hold(page, "ArrowRight", "at[0] > 0.3")
        other.wait_for_function("() => document.querySelector('.live').shapes.at(-1).at[0] > 0.3")
        assert abs(page.evaluate("document.querySelector('.live').shapes.at(-1).at")[1] - 0.5) < 0.1
        page.close()  # then the other drives
        hold(other, "ArrowUp", "at[1] < 0.3")
        other.close()


GAMEPAD = """
window.pad = {connected: true, axes: [0, 0, 0, 0], buttons: Array.from({length: 16}, () => ({pressed: false}))};
navigator.getGamepads = () => [window.pad];
"""


def test_a_gamepad_and_the_pointer_move(page, tmp_path):
    page.add_init_script(GAMEPAD)
    with served(tmp_path / "project") as address:
        page.goto(address)
        start(page, "Start showing")
        page.evaluate("window.pad.axes = [0, -1, 0, 0]")
        page.wait_for_function("() => document.querySelector('.live').shapes.at(-1).at[1] < 0.3")
        page.evaluate("window.pad.axes = [0, 0, 0, 0]")
        page.evaluate("window.pad.buttons[0].pressed = true")
        page.get_by_text("marked a success").wait_for()
        box = page.locator(".live").bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 400, box["y"] + 200)
        page.wait_for_function("() => document.querySelector('.live').shapes.at(-1).at[0] > 0.6")
        page.mouse.up()


def test_a_failed_training_says_its_last_lines(page, tmp_path):
    with served(tmp_path / "project") as address:
        page.goto(address)
        show(page, 1)
        next((tmp_path / "project" / "demonstrations").rglob("file-000.parquet")).write_text("damaged")
        train(page, 3)
        page.get_by_text("Train failed:").wait_for()
        failed = page.get_by_role("alert").filter(has_text="reading demonstrations/1")
        assert "file-000.parquet" in failed.inner_text() and "\n  -> " in failed.inner_text()


def test_the_buttons_of_a_running_step_stay_when_an_episode_ends(page, tmp_path):
    """A click on a button that is built again at this moment would be lost."""
    project = Project(tmp_path / "project", "fork")
    data, run = project.folder / "demonstrations" / "1", project.folder / "runs" / "1"
    main(["record", "fork", "--episodes", "2", "--out", str(data)])
    main(["train", "bc-gmm", str(data), "--out", str(run), "--steps", "1"])
    with served(None, env=str(project.folder)) as address:
        page.goto(address)
        tab(page, "Watch")
        press(page, "Watch")
        stop = page.get_by_role("button", name="Stop watching").element_handle()
        page.locator(".live").focus()
        for count in (1, 2):
            page.keyboard.press("y")
            page.get_by_text(re.compile(rf"of ([{count}-9]|\d\d+) succeeded")).wait_for()
            assert stop.evaluate("button => button.isConnected")
        stop.click()
        page.get_by_role("button", name="Learn from them").wait_for()
