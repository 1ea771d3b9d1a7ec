"""What a screen reader finds on the page of the studio: Chromium's accessibility tree."""

import shutil

import pytest
from fixtures.studios import press, served, tab

from understudy.cli import main

pytest.importorskip("nicegui", reason="extra studio not installed")
from understudy.studio.browser.project import Project  # noqa: E402

pytestmark = pytest.mark.slow
EVERYWHERE = {"application", "button", "tab", "tablist", "tabpanel"}  # "application": the live picture takes keys
NAMED = EVERYWHERE | {"checkbox", "combobox", "image", "radio", "slider", "spinbutton", "switch", "textbox"}


@pytest.fixture
def folder(tmp_path):
    """A project with two demonstrations and two policies."""
    project = Project(tmp_path / "project", "fork")
    data, run = project.folder / "demonstrations" / "1", project.folder / "runs" / "1"
    main(["record", "fork", "--episodes", "2", "--out", str(data)])
    main(["train", "bc-gmm", str(data), "--out", str(run), "--steps", "1"])
    shutil.copytree(run, run.parent / "2")
    return project.folder


def test_everything_on_the_page_has_a_name(page, folder):
    with served(None, env=str(folder)) as address:
        page.goto(address)
        tree = page.context.new_cdp_session(page)

        def roles(step):
            """The roles in a step. All that need a name have one."""
            page.get_by_role("tabpanel", name=step).wait_for()
            nodes = [n for n in tree.send("Accessibility.getFullAXTree")["nodes"] if not n["ignored"]]
            names = [(n["role"]["value"], n["name"]["value"]) for n in nodes if n["role"]["value"] in NAMED]
            assert all(name.strip() for _, name in names), (step, names)
            assert {role for role, _ in names} >= EVERYWHERE
            return {role for role, _ in names}

        page.get_by_text("Show commands").click()
        page.get_by_role("button", name="Copy the commands").wait_for()
        read = roles("Show")
        tab(page, "Check")
        press(page, "Look at demonstration 2")
        page.get_by_role("textbox", name="Note").wait_for()
        read |= roles("Check")
        tab(page, "Train")
        page.get_by_role("combobox", name="Method").wait_for()
        read |= roles("Train")
        tab(page, "Watch")
        press(page, "Watch")
        page.get_by_text("the policy acts").wait_for()
        read |= roles("Watch")
        press(page, "Stop watching")
        tab(page, "Compare")
        page.get_by_role("spinbutton", name="Starts").wait_for()
        page.get_by_text("Take it elsewhere").click()
        page.get_by_role("button", name="Demonstrations for LeRobot").wait_for()
        read |= roles("Compare")
        assert read >= EVERYWHERE | {"checkbox", "combobox", "image", "slider", "spinbutton", "textbox"}
