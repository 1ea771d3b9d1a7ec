"""Commands on data with the user's own column names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures.own_columns import LENGTHS, arrays, check, own_table, table, write_arrays, write_csv

from understudy.audit import audit
from understudy.cli import main
from understudy.core import DataError
from understudy.data.formats import open_dataset
from understudy.data.formats.parts.episode_table import frame_rate
from understudy.data.opening.column_selection import open_columns, parse_columns

STATE, ACTION = "observation.state", "action"
COLUMNS = ("state=q1,q2", "action=u1,u2")
TRAIN = ("--steps", "1", "--device", "cpu")
OWN = ("--columns", "state=q1,q2", "action=u", "episode=run")


def times(*rates, steps=10):
    return np.concatenate([np.arange(steps) / rate for rate in rates])


@pytest.mark.parametrize(("columns", "options", "text"), [
    ({"t": times(*[10] * 12, *[20] * 8)}, ["timestamp=t"],
     "the frame rate differs: 10 Hz in 12 episodes and 20 Hz in 8"),
    ({"t": times(*[1 / 100] * 20)}, ["timestamp=t"], "timestamps are 100 apart, and are read as seconds"),
    ({"q1": np.append(np.zeros(199), 1e30)}, [], "observation.state: values as large as 1e+30"),
    ({"u": np.full(200, 1.5)}, [], "action: 1 component of 1 never changes"),
    ({"u": np.arange(200) % 3}, [],
     "action has the whole numbers 0, 1, 2, which are read as quantities: a policy may answer with numbers between "
     "them. If they are classes: --columns action=u:classes")])
def test_training_warns_of_what_the_audit_sees(tmp_path, monkeypatch, capsys, columns, options, text):
    monkeypatch.chdir(tmp_path)
    path = own_table(tmp_path / "own.csv", **columns)
    assert main(["train", "bc", path.name, *OWN, *options, "--out", "run", *TRAIN]) == 0
    assert f"own.csv: {'' if 'whole' in text else 'warning: '}{text}" in capsys.readouterr().err
    assert main(["inspect", path.name, *OWN, *options]) == 0
    output = capsys.readouterr().out
    assert ("quantities" if "whole" in text else text) in output and "jitter" not in output


def test_training_says_nothing_of_plain_data_and_warns_of_one_episode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", t=times(*[10] * 20))
    assert main(["train", "bc", "own.csv", *OWN, "timestamp=t", "--out", "run", *TRAIN]) == 0
    assert "own.csv:" not in capsys.readouterr().err
    assert main(["train", "bc", "own.csv", *OWN[:-1], "--out", "one", *TRAIN]) == 0
    assert "the table is read as one episode, but run has 20 values" in capsys.readouterr().err


def test_ends_inside_one_episode_that_may_be_several(tmp_path, monkeypatch, capsys):
    """To ignore them would join the episodes."""
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", done=np.arange(200) % 10 == 9)
    columns = ("--columns", "state=q1,q2", "action=u", "terminated=done")
    assert main(["train", "bc", "own.csv", *columns, "--out", "run", *TRAIN]) == 2
    error = capsys.readouterr().err
    assert "end-inside: episode 0, step 9, " in error
    assert "reader: the table is read as one episode, but run has 20 values, one after the other. " in error


def test_classes_and_quantities_name_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", u=np.arange(200) % 3)
    q, u, ends = np.random.default_rng(0).normal(size=(200, 2)), np.arange(200) % 3, np.arange(10, 201, 10)
    np.savez(tmp_path / "own.npz", observations=q, actions=u, episode_ends=ends)
    assert main(["train", "bc", "own.npz", "--out", "classes", *TRAIN]) == 0
    assert ("action has the whole numbers 0, 1, 2, which are read as classes, without an order. If they are "
            "quantities: --columns action=action:quantities") in capsys.readouterr().err
    assert main(["train", "bc", "own.npz", "--out", "quantities", *TRAIN, "--columns", "action=action:quantities"]) == 0
    capsys.readouterr()
    assert main(["eval", "classes", "own.csv", *OWN]) == 2
    err = capsys.readouterr().err
    assert "the policy was trained on classes, and here are quantities" in err
    assert "if these are classes too, add --columns action=COLUMN:classes" in err
    assert "--columns action=COLUMN:quantities" in err
    assert main(["eval", "quantities", "own.csv", *OWN]) == 0
    assert main(["eval", "classes", "own.csv", *OWN[:2], "action=u:classes", "episode=run"]) == 0


@pytest.mark.parametrize(("gaps", "rate"), [
    ([np.full(9, 0.1)] * 3, 10), ([np.full(9, 0.105)] * 2, 9.524),
    ([np.array([0.1, 0.102, 0.098, 0.13, 0.1, 0.2, 0.1])], 10),
    ([np.full(9, 0.1), np.full(9, 0.05)], None), ([np.zeros(3)], None), ([], None)])
def test_a_column_of_times_gives_the_rate(gaps, rate):
    assert frame_rate([np.append(0, np.cumsum(g)) for g in gaps]) == rate


def test_near_names_ignore_case_and_name_the_readings(tmp_path):
    path = write_csv(tmp_path / "runs.csv", table())
    for columns, hint in ((["state=Q1", "action=u1"], "did you mean 'q1'"),
                          (["state=q1", "action=u1:class"], "did you mean 'u1'. :classes and :quantities may follow")):
        with pytest.raises(DataError, match=hint):
            open_columns(path, parse_columns(columns))


def test_a_run_remembers_how_its_data_were_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "cart.csv", u=np.arange(200) % 3, t=times(*[10] * 20))
    own_table(tmp_path / "other.csv", u=(np.arange(200) // 2) % 3, t=times(*[10] * 20))
    columns = [*OWN[:2], "action=u:classes", "episode=run", "timestamp=t"]
    train = ["train", "bc", "cart.csv", "--out", "run", *TRAIN]
    assert main([*train, *columns]) == 0
    reading = json.loads((tmp_path / "run/checkpoints/000001/provenance.json").read_text())["data"]["reading"]
    assert reading == {"columns": {STATE: ["q1", "q2"], ACTION: ["u:classes"], "episode": ["run"], "timestamp": ["t"]}}
    capsys.readouterr()
    assert main(["eval", "run", "other.csv", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["episodes"]) == 20
    again = "--columns state=q1,q2 action=u:classes episode=run timestamp=t"
    assert f"other.csv: read as the data of run were: {again}" in err
    assert main(["eval", "run", "other.csv", *OWN]) == 2  # what is given wins
    assert "trained on classes, and here are quantities" in capsys.readouterr().err
    assert main(train) == 0  # the same run, which is complete
    assert main(["train", "bc", "other.csv", "--from", "run", "--out", "more", *TRAIN]) == 0
    assert again in capsys.readouterr().err
    provenance = json.loads((tmp_path / "more/checkpoints/000001/provenance.json").read_text())
    assert len(provenance["episodes"]["digests"]) == 20
    (tmp_path / "short.csv").write_text("run,q1,u,t\n0,1,1,0\n0,2,1,0.1\n")
    assert main(["eval", "run", "short.csv"]) == 2
    assert "there is no column 'q2'" in capsys.readouterr().err
    assert main(["eval", "run", "fork", "--demonstrations", "other.csv"]) == 2
    assert "no column has a name" not in capsys.readouterr().err


def test_inspect_leads_to_training_on_several_action_columns(shared, capsys):
    path = str(shared / "fixtures/minari/closed/dict-v0")
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert f"understudy inspect {path} --columns action=action.arm,action.grip" in out and "one column action" in out
    assert "There are no actions" not in out
    assert main(["inspect", path, "--columns", "action=action.arm,action.grip"]) == 0
    out = capsys.readouterr().out
    assert f"understudy train bc-gmm {path} --columns action=action.arm,action.grip" in out


def test_other_names_lead_to_the_option(tmp_path, capsys):
    np.savez(tmp_path / "one.npz", q=np.zeros((8, 2)), u=np.zeros((8, 2)))
    for path, names in ((write_csv(tmp_path / "runs.csv", table()), "run, timestamp, q1, q2, u1, u2"),
                        (tmp_path / "one.npz", "q, u")):
        for command in (("inspect",), ("train", "bc", "--out", str(tmp_path / "run"))):
            assert main([*command, str(path)]) == 2
            err = capsys.readouterr().err
            assert f"there are {names}" in err and "--columns state=A,B action=C,D" in err


def test_the_commands_take_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = table(episodes=6)
    write_csv(tmp_path / "runs.csv", rows)
    columns = ("--columns", *COLUMNS, "episode=run")
    assert main(["inspect", "runs.csv", *columns]) == 0
    assert "understudy train bc-gmm runs.csv --columns state=q1,q2 action=u1,u2 episode=run --out run" in (
        capsys.readouterr().out)
    assert main(["audit", "runs.csv", "--json", *columns]) == 0
    assert len(json.loads(capsys.readouterr().out)["scores"]["smoothness"]) == 6
    assert audit("runs.csv", columns=parse_columns(columns[1:])).ok
    assert main(["convert", "runs.csv", "demos", *columns]) == 0
    assert "rate" not in capsys.readouterr().out
    write_csv(tmp_path / "seconds.csv", rows, "run,seconds,q1,q2,u1,u2,reward")
    assert main(["convert", "seconds.csv", "unrated", *columns]) == 0
    assert "10 steps per second is written" in (out := capsys.readouterr().out) and "--columns timestamp=COLUMN" in out
    assert json.loads((tmp_path / "unrated/meta/info.json").read_text())["fps"] == 10
    assert main(["convert", "seconds.csv", "rated", *columns, "timestamp=seconds"]) == 0
    assert "rate" not in capsys.readouterr().out.replace("rated", "")
    check(open_dataset("demos"), rows, 6)
    assert main(["train", "bc", "runs.csv", "--out", "run", "--steps", "4", "--val-fraction", "0", "--device", "cpu",
                 *columns]) == 0
    assert "understudy eval run runs.csv\n" in capsys.readouterr().out
    assert main(["eval", "run", "demos", "--json"]) == 0
    converted = json.loads(capsys.readouterr().out)
    assert converted["origin"] == "trained on"
    for column_options in ((), columns):
        assert main(["eval", "run", "runs.csv", "--json", *column_options]) == 0
        assert json.loads(capsys.readouterr().out) == {**converted, "data": "runs.csv"}
    assert main(["eval", "run", "fork", *columns]) == 2
    assert "--columns: names the columns of recorded episodes, and there are none here" in capsys.readouterr().err


def test_what_the_user_has_answered_is_not_asked_again(tmp_path):
    path = write_arrays(tmp_path, "h5", ["ep"])
    data = open_columns(path, parse_columns(["state=q", "action=u", "episode_lengths=ep_len"]))
    assert not data.metadata["warnings"]
    np.savez(tmp_path / "whole.npz", observations=np.zeros((6, 2), int), actions=np.arange(6) - 2, episode_ends=[3, 6])
    path = tmp_path / "whole.npz"
    assert [w.split(":")[0] for w in open_columns(path).metadata["warnings"]] == ["observations", "actions"]
    for columns, asked in ((["action=actions:quantities"], ["observations"]),
                           (["action=action:quantities", "state=observations:quantities"], [])):
        data = open_columns(path, parse_columns(columns))
        assert [w.split(":")[0] for w in data.metadata["warnings"]] == asked
    own = {**arrays(), "ep_len": np.array(LENGTHS)}
    np.savez(tmp_path / "own.npz", **{key: own[key] for key in ("q", "u", "ep_len")})
    with pytest.raises(DataError, match="nothing says where its episodes end(.|\n)*episode_lengths=ep_len"):
        open_columns(tmp_path / "own.npz", parse_columns(["state=q", "action=u"]))


def test_an_audit_of_own_columns_names_the_cell_and_the_way_to_leave_episodes_out(tmp_path, capsys):
    path = own_table(tmp_path / "own.csv", u=np.where(np.arange(200) // 10 == 7, 50, 1) * np.sin(np.arange(200)))
    assert main(["audit", str(path), *OWN]) == 0
    out = capsys.readouterr().out
    assert ": 1 episode: 7\n" in out
    assert f"understudy convert {path} DST --columns state=q1,q2 action=u episode=run" in out
    path.write_text("run,q1,q2,u\n0,1,2,3\n0,,2,3\n0,1,2,3\n")
    assert main(["audit", str(path), *OWN]) == 2
    assert "own.csv, line 3, column q1: the cell is empty" in capsys.readouterr().err


def test_observations_below_zero_are_no_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    q, u = np.arange(200).reshape(100, 2) - 90, np.random.default_rng(0).normal(size=(100, 2))
    np.savez("own.npz", observations=q, actions=u, episode_ends=np.arange(10, 101, 10))
    assert main(["train", "bc", "own.npz", "--out", "run", *TRAIN]) == 2
    err = capsys.readouterr().err
    assert "observation.state has integers from -90 on" in err and "--columns state=COLUMN:quantities" in err
    assert main(["train", "bc", "own.npz", "--out", "run", *TRAIN, "--columns", "state=observations:quantities"]) == 0


def test_data_that_do_not_fit_the_columns_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "cart.csv")
    assert main(["train", "bc", "cart.csv", "--out", "run", *TRAIN, *OWN]) == 0
    text = (tmp_path / "cart.csv").read_text()
    (tmp_path / "other.csv").write_text(text.replace("run,", "trial,", 1))
    capsys.readouterr()
    assert main(["eval", "run", "other.csv"]) == 2
    err = capsys.readouterr().err
    assert "there is no column 'run'" in err
    assert "read as the data of the run were: --columns state=q1,q2 action=u episode=run" in err
    assert main(["eval", "run", "other.csv", *OWN[:3]]) == 0
    assert "is read as one episode, but trial has 20 values" in capsys.readouterr().err


def test_converting_several_rates_does_not_ask_for_the_times(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", t=times(*[10] * 12, *[20] * 8))
    assert main(["convert", "own.csv", "demos", *OWN, "timestamp=t"]) == 0
    out = capsys.readouterr().out
    assert "understudy audit demos says why" in out and "--columns timestamp" not in out
    assert main(["audit", "demos"]) == 0 and "the frame rate differs" in capsys.readouterr().out
    assert main(["view", "make", "demos", "--out", "even.json", "--fps", "10"]) == 0
    data = open_dataset("even.json")
    assert data.fps == 10 and len(data) == 20


def test_times_of_text_are_refused_with_the_cure(tmp_path):
    clock = [f"2026-11-23T10:00:{i % 10:02d}" for i in range(200)]
    named = own_table(tmp_path / "named.csv", timestamp=clock, state=np.arange(200.0), action=np.arange(200.0))
    other = own_table(tmp_path / "other.csv", when=clock)
    for path, columns in ((named, ()), (named, ("episode=run",)), (other, (*OWN[1:], "timestamp=when"))):
        with pytest.raises(DataError, match="the times are text, such as '2026-11-23T10:00:00'(.|\n)*total_seconds"):
            open_columns(path, parse_columns(columns))
    (tmp_path / "thousands.csv").write_text('q,u\n"1,000",2\n"1,001",2\n')
    with pytest.raises(DataError, match="thousands.csv, q, episode 0, step 0: this is not a number: '1,000'"):
        open_columns(tmp_path / "thousands.csv", parse_columns(["state=q", "action=u"]))


def test_small_integers_are_no_text(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = np.frombuffer(b"left\0\0right\0", np.uint8).reshape(2, 6).repeat([100, 100], 0)
    stored = {"actions": np.random.default_rng(0).normal(size=(200, 2)), "episode_ends": np.arange(10, 201, 10)}
    numbers = np.random.default_rng(0).integers(0, 256, (200, 6), dtype=np.uint8)
    for name, values, warned in (("words", words, False), ("numbers", numbers, True)):
        np.savez(f"{name}.npz", observations=values, **stored)
        assert main(["inspect", f"{name}.npz"]) == 0
        assert ("uint8 is read as the bytes of a text" in capsys.readouterr().out) == warned
    assert main(["train", "bc", "numbers.npz", "--out", "run", *TRAIN]) == 0
    assert "--columns state=observation.state:quantities" in capsys.readouterr().err
    data = open_columns("numbers.npz", parse_columns(["state=observation.state:quantities"]))
    assert data.features()[STATE].kind == "vector"
    np.testing.assert_array_equal(np.concatenate([e.steps[STATE] for e in data]), numbers)


def test_actions_of_flags_are_trained_and_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    q = np.random.default_rng(0).normal(size=(200, 2))
    np.savez("flags.npz", observations=q, actions=q > 0, episode_ends=np.arange(10, 201, 10))
    assert main(["train", "bc", "flags.npz", "--out", "run", *TRAIN]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "flags.npz", "--json"]) == 0
    components = json.loads(capsys.readouterr().out)["components"]
    # p of the flags are on, and always p is off by 2 p (1 - p)
    assert [c["average"] for c in components] == [pytest.approx(0.5, abs=0.05)] * 2


def test_hints_about_values_that_are_not_finite_can_be_followed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", u=np.where(np.arange(200) == 15, np.nan, np.sin(np.arange(200))))
    assert main(["convert", "own.csv", "DST", *OWN]) == 2
    assert "understudy audit own.csv --columns state=q1,q2 action=u episode=run explains" in capsys.readouterr().err
    assert main(["train", "bc", "own.csv", "--out", "run", *TRAIN, *OWN]) == 2
    hint = capsys.readouterr().err.split("leave out this episode: ")[1].splitlines()[0]
    for command in hint.split(" and then "):
        assert main(command.split()[1:]) == 0
    assert main(["train", "bc", "finite.json", "--out", "run", *TRAIN]) == 0


def test_a_clock_is_not_the_first_guess_of_a_reward(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", time=np.tile(np.arange(10) / 10, 20), score=np.arange(200) / 7)
    assert main(["train", "iql", "own.csv", *OWN, "--out", "run", *TRAIN]) == 2
    message = capsys.readouterr().err
    assert "under another name (score, time)" in message and "episode=run reward=score. " in message


def test_arrays_of_own_names_lead_to_the_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("walk.npz", state=np.random.default_rng(0).normal(size=(40, 2)), action=np.zeros((40, 2)),
             goal=np.ones((40, 2)), episode_ends=[20, 40])
    assert main(["inspect", "walk.npz"]) == 2
    assert "or say which is which: --columns state=NAME action=NAME" in capsys.readouterr().err
    assert main(["inspect", "walk.npz", "--columns", "state=state", "action=action", "observation.goal=goal"]) == 0
    said = capsys.readouterr().out
    assert "observation.goal looks like a goal" in said and "understudy train gcivl walk.npz --columns" in said


def test_a_missing_reward_is_named_beside_the_columns_that_are_given(tmp_path, monkeypatch, capsys):
    """A view could not open such data."""
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", gain=np.arange(200) / 7, over=np.arange(200) % 10 == 9)
    options = list(OWN)
    for column in ("reward=gain", "terminated=over"):
        assert main(["train", "iql", "own.csv", *options, "--out", "run", *TRAIN]) == 2
        advice = capsys.readouterr().err.rpartition("name it: ")[2].partition(". ")[0]
        options = advice.split()
        assert options[-1] == column
    assert main(["train", "iql", "own.csv", *options, "--out", "run", *TRAIN]) == 0
