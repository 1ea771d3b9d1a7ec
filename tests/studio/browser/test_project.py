"""The folder of a studio, its input, its commands and who may ask its server, without a browser."""

import asyncio
import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from understudy import make
from understudy.cli import main
from understudy.core import UserError
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.studio.browser import live
from understudy.studio.browser.jobs import LOG, Job, JobRunner
from understudy.studio.browser.live import AdjustableClock, PageInput, TakeoverInput
from understudy.studio.browser.pictures import RecordedPictures, action_chart_svg, interval_svg, picture_svg
from understudy.studio.browser.project import Edits, Project

ONE = np.ones(2)


def recorded(folder, *episodes):
    """A project with sittings of so many episodes each."""
    for number, count in enumerate(episodes, 1):
        out = folder / "demonstrations" / str(number)
        assert main(["record", "fork", "--out", str(out), "--episodes", str(count), "--seed", str(number)]) == 0
    return Project(folder, "fork")


def run(project, commands, monkeypatch):
    monkeypatch.chdir(project.folder)
    for words in commands:
        assert main(words) == 0


@pytest.mark.parametrize("sittings", [(4,), (1, 3)])
def test_edits_are_views_that_can_be_read_again(tmp_path, monkeypatch, sittings):
    project = recorded(tmp_path / "project", *sittings)
    before = [len(e.episode) for e in project.episodes()]
    assert project.edits() == Edits() and len(before) == 4
    edits = Edits(frozenset({1}), {0: (2, 5), 3: (0, before[3] - 1)}, {2: False}, {1: "is left out", 3: "5"})
    run(project, project.edit(edits), monkeypatch)
    edits = replace(edits, notes={3: "5"})  # what is left out has no note in the view
    assert project.edits() == edits and project.edit_history() == [Edits(), edits]
    shown = project.episodes()
    assert [e.is_used for e in shown] == [True, False, True, True] and shown[2].success is False
    assert [(e.start, e.stop) for e in shown] == [(2, 5), (0, before[1]), (0, before[2]), (0, before[3] - 1)]
    commands, data = project.training_data()
    learned = open_dataset(project.folder / data)
    assert commands == [] and [len(e) for e in learned] == [3, before[2], before[3] - 1]
    assert [e.metadata["success"] for e in learned] == [True, False, True]
    assert [project.project_number(n) for n in range(3)] == [0, 2, 3]
    # A further sitting is learned, too, and what was left out stays out.
    further = project.new_sitting()
    assert main(["record", "fork", "--out", str(further), "--episodes", "2", "--seed", "9"]) == 0
    commands, data = project.training_data()
    run(project, commands, monkeypatch)
    assert len(open_dataset(project.folder / data)) == 5 and project.edits() == edits


def test_a_folder_of_another_environment_or_that_cannot_be_made_is_refused(tmp_path):
    recorded(tmp_path / "project", 1)
    with pytest.raises(UserError, match=r"about fork, not push(.|\n)*another folder"):
        Project(tmp_path / "project", "push")
    assert Project(tmp_path / "project").env == "fork"
    with pytest.raises(UserError, match=r"not the folder of a project(.|\n)*understudy studio push"):
        Project(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be made(.|\n)*--out FOLDER"):
        Project(tmp_path / "file", "fork")


@pytest.mark.parametrize("env, words", [
    ("particle", "keys move actions of one or two numbers"), ("arms", "keys move actions of one or two numbers"),
    ("words", "keys move actions of one or two numbers"), ("nowhere", "nowhere"),
    ("gym:CartPole-v1", "not trusted")])
def test_an_environment_that_keys_cannot_move_is_refused_before_a_folder_is_made(tmp_path, monkeypatch, capsys, env,
                                                                                 words):
    pytest.importorskip("nicegui", reason="extra studio not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["studio", env, "--no-browser"]) == 2 and words in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_without_its_package_the_studio_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert main(["studio"]) == 2 and "pip install 'understudy[studio]'" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_two_studios_do_not_open_one_project(tmp_path):
    project = Project(tmp_path / "project", "fork")
    with (project.locked(), pytest.raises(UserError, match="another studio has this project open"),
          Project(tmp_path / "project").locked()):
        pass
    with Project(tmp_path / "project").locked():
        pass


@pytest.fixture
def now(monkeypatch):
    """The time of the module, in seconds, as a list of one number."""
    seconds = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: seconds[0])
    return seconds


def test_levels_of_keys_and_axes(now):
    person = PageInput(np.array([-2, -0.5]), np.array([1, 0.5]))
    assert person.read() is None  # waits for the first movement
    person.receive(["ArrowLeft", "w", "q"], (0.0, 0.0))
    assert np.allclose(person.read(), [-2, 0.5])
    person.receive([], (0.5, -1.0))
    assert np.allclose(person.read(), [0.5, -0.5])
    person.receive([], (0.0, 0.0))
    assert np.allclose(person.read(), 0)
    one = PageInput(-ONE[:1], ONE[:1])
    one.receive(["ArrowUp"], (0.0, 0.0))
    assert np.allclose(one.read(), [1])
    now[0] += 0.6  # the page is silent
    assert person.read() is None and not person.moves


def test_what_was_held_before_does_not_begin_the_next_episode(now):
    person = PageInput(-ONE, ONE)
    person.receive(["ArrowUp"], (0.0, 0.0))
    assert person.read() is not None
    person.command("enter")
    assert person.commands() == ["enter"] and person.read() is None
    person.receive(["ArrowUp", "ArrowLeft"], (0.0, 0.0))
    assert np.allclose(person.read(), [-1, 1])


def test_an_ended_episode_leads_to_the_next_one_after_a_second(now):
    person = PageInput(-ONE, ONE, ended_at=now[0])
    person.receive([], (0.0, 0.0))
    assert person.commands() == []
    now[0] += 1.1
    assert person.commands() == ["enter"] and person.ended_at is None


def test_takeover_by_holding_pause_and_silence(now):
    person = TakeoverInput(-ONE, ONE)
    takeover = person.takeover

    def obey(*held):
        person.receive(held, (0.0, 0.0))
        takeover.obey(person.commands())
        return takeover.is_person, takeover.is_held
    assert obey() == (False, False)
    assert obey("ArrowUp") == (True, False) and takeover.n_takeovers == 1
    assert obey("ArrowUp") == (True, False) and takeover.n_takeovers == 1
    assert obey() == (False, False) and takeover.n_returns == 1
    person.command("pause")
    assert obey() == (False, True)
    person.command("step")
    assert obey() == (False, False)  # for one step
    assert obey() == (False, True)
    person.command("pause")
    assert obey() == (False, False)
    now[0] += 0.6  # the connection is lost: nobody acts
    takeover.obey(person.commands())
    assert takeover.is_held and not takeover.is_over
    now[0] += live.LOST_SECONDS
    takeover.obey(person.commands())
    assert takeover.is_over and takeover.success is None


def test_a_clock_that_runs_faster(now):
    clock = AdjustableClock()
    now[0] += 1
    clock.set_speed(2.0)
    now[0] += 3
    assert clock() == 1 + 2 * 3


def test_pictures_of_recorded_steps(tmp_path):
    project = recorded(tmp_path / "project", 1)
    episode, env = project.episodes()[0].episode, make("fork", 1)
    shapes = RecordedPictures("fork").shapes(episode, 3)
    (x, y), side = env.square
    position = episode.steps["observation.state"][3]
    assert np.allclose(shapes[-1]["at"], [(position[0] - x) / side, 1 - (position[1] - y) / side], atol=1e-4)
    assert picture_svg(shapes, 44).count("<circle") == len(shapes)
    chart = action_chart_svg(episode, 2, len(episode), 3)
    assert chart.count("<polyline") == 2 and "Step 3 is marked" in chart
    assert 'width="0.0" height="120"' in chart  # nothing is left out at the end
    assert f'width="{0.25 * 544:.1f}"' in interval_svg(0.25, 0.1, 0.5)


def test_the_failures_of_a_comparison(tmp_path, monkeypatch):
    project = Project(tmp_path / "project", "fork")
    monkeypatch.chdir(project.folder)
    assert project.comparison() is None and project.exports() == []
    words, output = project.compare("runs/1", "runs/2", 4)
    assert words[words.index("--save") + 1] == "rollouts/1" and output == "reports/1.json"
    for name in ("runs_1", "runs_2"):
        assert main(["record", "fork", "--episodes", "4", "--out", f"rollouts/1/{name}"]) == 0
    (project.folder / output).write_text(json.dumps({"policies": [{"name": "runs/1"}, {"name": "runs/2"}]}))
    assert project.compare("runs/1", "runs/2", 4)[1] == "reports/2.json"
    (project.folder / "rollouts" / "2").mkdir()  # that comparison is interrupted
    assert project.compare("runs/1", "runs/3", 4)[1] == "reports/3.json"
    comparison = project.comparison()
    assert [len(data) for data in comparison.rollouts] == [4, 4] and comparison.failures() == {}
    outcomes = [(True, True), (False, False), (True, False), (False, True)]
    policies = [[Episode({"action": np.zeros((1, 2))}, {"success": won[k]}) for won in outcomes] for k in (0, 1)]
    failures = replace(comparison, rollouts=tuple(policies)).failures()
    assert list(failures.items()) == [(2, outcomes[2]), (3, outcomes[3]), (1, outcomes[1])]  # what differs comes first


def ended(folder, job):
    """Runs a job until it has ended."""
    async def go():
        done = asyncio.Event()
        runner = JobRunner(folder, lambda job: done.set())
        runner.start(job)
        await done.wait()
        return runner
    return asyncio.run(go())


def test_a_job_logs_its_commands_and_its_end(tmp_path):
    job = Job("Check", [["record", "fork", "--out", "demos", "--episodes", "2"],
                        ["audit", "demos", "--json"]], output="reports/audit.json")
    runner = ended(tmp_path, job)
    assert job.state == "done" and json.loads((tmp_path / "reports" / "audit.json").read_text())["findings"] == []
    assert runner.history() == ["understudy record fork --out demos --episodes 2", "understudy audit demos --json"]
    assert JobRunner(tmp_path, lambda job: None).job.state == "done"


def test_a_failed_job_keeps_its_last_lines(tmp_path):
    job = Job("Train", [["train", "bc", "nowhere", "--out", "run"]])
    ended(tmp_path, job)
    assert job.state == "failed" and any(line.startswith("  -> ") for line in job.tail)


def test_an_interrupted_job_is_continued_without_what_is_there(tmp_path):
    first = ["record", "fork", "--out", "demos", "--episodes", "2"]
    view = ["view", "make", "demos", "--out", "few.json", "--delete", "0"]
    assert main([*first[:3], str(tmp_path / "demos"), *first[4:]]) == 0
    entry = {"title": "Check", "commands": [first, view], "run": None, "steps": None, "output": None}
    (tmp_path / LOG).write_text(json.dumps(entry) + "\n" + '{"ended": "do')  # the disk was full
    runner = JobRunner(tmp_path, lambda job: None)
    assert runner.job.state == "interrupted"

    async def go():
        done = asyncio.Event()
        again = JobRunner(tmp_path, lambda job: done.set())
        again.resume()
        await done.wait()
        return again.job
    job = asyncio.run(go())
    assert job.state == "done" and job.commands == [view] and len(open_dataset(tmp_path / "few.json")) == 1
    assert JobRunner(tmp_path, lambda job: None).job.state == "done"


def test_the_log_of_a_view_that_was_written_says_done(tmp_path):
    entry = {"title": "Check", "commands": [["view", "make", "demos", "--out", "few.json"]], "run": None,
             "steps": None, "output": None}
    (tmp_path / LOG).write_text(json.dumps(entry) + "\n")
    assert JobRunner(tmp_path, lambda job: None).job.state == "interrupted"
    (tmp_path / "few.json").write_text("{}")
    assert JobRunner(tmp_path, lambda job: None).job.state == "done"
