"""Data with the user's own column names, and tables of several episodes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from understudy.audit import audit
from understudy.cli import main
from understudy.core import ConfigError, DataError, UserError
from understudy.data.column_selection import open_columns, parse_columns
from understudy.data.formats import open_dataset
from understudy.data.formats.episode_table import frame_rate

STATE, ACTION = "observation.state", "action"
COLUMNS = ("state=q1,q2", "action=u1,u2")


def table(episodes=3, steps=8) -> np.ndarray:
    """(N, 7): run, time (s), q1, q2, u1, u2, r. u is the change of q."""
    rng, rows = np.random.default_rng(0), []
    for e in range(episodes):
        q = rng.normal(size=(steps + 1, 2)).cumsum(0)
        rows.append(np.column_stack([np.full(steps, e), np.arange(steps) / 10, q[:-1], np.diff(q, axis=0), q[:-1, 0]]))
    return np.concatenate(rows)


def write_csv(path, rows, names="run,timestamp,q1,q2,u1,u2,reward"):
    path.parent.mkdir(exist_ok=True)
    text = "\n".join(",".join([str(int(r[0])), *map(repr, map(float, r[1:]))]) for r in rows)
    path.write_text(f"{names}\n{text}\n")
    return path


def check(data, rows, episodes=3, steps=8):
    assert [len(e) for e in data] == [steps] * episodes
    for name, columns in ((STATE, slice(2, 4)), (ACTION, slice(4, 6))):
        np.testing.assert_array_equal(np.concatenate([e.steps[name] for e in data]), rows[:, columns])


def test_names_of_columns():
    assert parse_columns(["state=a,b", "action=c", "gripper=d", "reward=e", "episode=run"]) == {
        STATE: ("a", "b"), ACTION: ("c",), "observation.gripper": ("d",), "next.reward": ("e",), "episode": ("run",)}
    assert parse_columns(["state = a, b", " episode= run "]) == {STATE: ("a", "b"), "episode": ("run",)}
    for bad in ("state", "state=", " =a", "=a", "state=a,,b"):
        with pytest.raises(ConfigError, match="--columns state=q1,q2"):
            parse_columns([bad])
    for near in ("episodes=run", "episode_length=n"):
        with pytest.raises(ConfigError, match="did you mean episode"):
            parse_columns(["state=a", near])
    assert parse_columns(["observation.episodes=run"]) == {"observation.episodes": ("run",)}
    with pytest.raises(ConfigError, match="observation.state is given twice"):
        parse_columns(["state=a", "observation.state=b"])


def test_a_csv_table_of_several_episodes(tmp_path):
    rows = table()
    path = write_csv(tmp_path / "runs.csv", rows)
    data = open_columns(path, parse_columns([*COLUMNS, "episode=run"]))
    check(data, rows)
    assert data.features()[STATE].names == ("q1", "q2") and "run" not in data.features() and data.fps == 10
    np.testing.assert_array_equal(data[1].steps["next.reward"], rows[8:16, 6])
    np.testing.assert_allclose(data[2].steps["timestamp"].reshape(-1), np.arange(8) / 10)
    ours = write_csv(tmp_path / "ours.csv", rows, "episode,timestamp,observation.state_0,observation.state_1,action_0,"
                                                  "action_1,reward")
    check(open_dataset(ours), rows)
    order = np.concatenate([rows[:8], rows[16:], rows[8:16]])
    order[8:16, 0], order[16:, 0] = 1, 0
    with pytest.raises(DataError, match="rows of episode 0 are in two places; the second begins in row 17"):
        open_columns(write_csv(tmp_path / "odd.csv", order), parse_columns([*COLUMNS, "episode=run"]))
    with pytest.raises(ConfigError, match="no column 'runs'"):
        open_columns(path, parse_columns([*COLUMNS, "episode=runs"]))


@pytest.mark.parametrize("form", ["{}_{}", "{}.{}", "{}[{}]"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbered_columns_of_a_csv_are_one_vector(tmp_path, form, first):
    def header(state, action):
        return ",".join(["episode", "timestamp", *(form.format(n, i + first) for n in (state, action) for i in (0, 1)),
                         "reward"])

    rows = table()
    path = write_csv(tmp_path / "standard.csv", rows, header("state", "action"))
    check(open_dataset(path), rows)
    data = open_columns(write_csv(tmp_path / "own.csv", rows, header("q", "u")), parse_columns(["state=q", "action=u"]))
    check(data, rows)
    last = form.format("q", 1 + first)
    swapped = open_columns(tmp_path / "own.csv", parse_columns([f"state={last},{form.format('q', first)}", "action=u"]))
    np.testing.assert_array_equal(swapped[1].steps[STATE], rows[8:16, [3, 2]])
    assert (data.features()[STATE].names or ("q_0", "q_1"))[1] == last


@pytest.mark.parametrize(("header", "columns"), [
    ("action,q,q.1", ["action", "q", "q.1"]),  # pandas calls a second column q so
    ("action,q.0,q.2", ["action", "q.0", "q.2"]),
    ("action,q.0,q[1]", ["action", "q.0", "q[1]"]),
    ("action_0,action_1,action.0", ["action", "action.0"]),
])
def test_numbered_columns_that_may_mean_something_else_stay_alone(tmp_path, header, columns):
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\n0.5,0.25,2\n1.5,2.5,3\n")
    assert list(open_dataset(path).features()) == columns


def test_a_table_that_looks_like_several_episodes_is_told_so(tmp_path):
    rows = table()
    path = write_csv(tmp_path / "runs.csv", rows)
    def warnings(data):
        return [w for w in data.metadata["warnings"] if "one episode" in w]
    assert warnings(open_columns(path, parse_columns(COLUMNS))) == [
        "the table is read as one episode, but run has 3 values, one after the other. If it numbers the episodes, say "
        "so: --columns episode=run"]
    assert not warnings(open_columns(path, parse_columns([*COLUMNS, "episode=run"])))
    unnumbered = write_csv(tmp_path / "time.csv", np.column_stack([np.zeros(len(rows)), rows[:, 1:]]))
    assert warnings(open_columns(unnumbered, parse_columns(COLUMNS))) == [
        "the table is read as one episode, but timestamp starts again in row 9. If it has several episodes, name the "
        "column that numbers them: --columns episode=COLUMN"]
    single = write_csv(tmp_path / "single.csv", rows[:8])
    assert not warnings(open_columns(single, parse_columns(COLUMNS)))


def test_a_table_with_semicolons_is_told_so(tmp_path):
    path = write_csv(tmp_path / "runs.csv", table())
    path.write_text(path.read_text().replace(",", ";"))
    for columns in ((), (*COLUMNS, "episode=run")):
        with pytest.raises(UserError, match=r"runs.csv.*separated by ';' instead of commas\n.*pandas.read_csv"):
            open_columns(path, parse_columns(columns))


def test_the_rate_is_that_of_the_selected_time(tmp_path):
    path = write_csv(tmp_path / "runs.csv", table(), "run,seconds,q1,q2,u1,u2,reward")
    assert open_columns(path, parse_columns([*COLUMNS, "episode=run"])).fps is None
    assert open_columns(path, parse_columns([*COLUMNS, "episode=run", "timestamp=seconds"])).fps == 10


def test_a_cell_that_is_not_a_number_is_named(tmp_path):
    path = write_csv(tmp_path / "runs.csv", table())
    text = path.read_text().splitlines()
    cells = text[12].split(",")
    text[12] = ",".join([*cells[:3], "oops", *cells[4:]])
    path.write_text("\n".join(text) + "\n")
    for columns in (COLUMNS, ("state=q1", "reward=q2", "action=u1,u2")):
        with pytest.raises(DataError, match=r"runs.csv, q2, episode 1, step 3: this is not a number: 'oops'"):
            open_columns(path, parse_columns([*columns, "episode=run"]))
    assert open_columns(path, parse_columns(["state=q1", "action=u1,u2", "note=q2", "episode=run"])).features()[
        "observation.note"].kind == "string"


def test_folders_and_arrays_of_any_names(tmp_path):
    rows = table()
    for e in range(3):
        write_csv(tmp_path / "csv" / f"e{e}.csv", rows[e * 8:e * 8 + 8])
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez(tmp_path / "npz" / f"e{e}.npz", q=rows[e * 8:e * 8 + 8, 2:4], u1=rows[e * 8:e * 8 + 8, 4],
                 u2=rows[e * 8:e * 8 + 8, 5])
    np.savez(tmp_path / "all.npz", q=rows[:, 2:4], u=rows[:, 4:6], episode_ends=[8, 16, 24])
    np.savez(tmp_path / "one.npz", q=rows[:8, 2:4], u=rows[:8, 4:6])
    check(open_columns(tmp_path / "csv", parse_columns(COLUMNS)), rows)
    check(open_columns(tmp_path / "npz", parse_columns(["state=q", "action=u1,u2"])), rows)
    check(open_columns(tmp_path / "all.npz", parse_columns(["state=q", "action=u"])), rows)
    check(open_columns(tmp_path / "one.npz", parse_columns(["state=q", "action=u"])), rows[:8], 1)
    swapped = open_columns(tmp_path / "all.npz", parse_columns(["state=q[1],q_0", "action=u"]))
    np.testing.assert_array_equal(swapped[0].steps[STATE], rows[:8, [3, 2]])
    assert swapped.features()[STATE].names == ("q_1", "q_0")
    with pytest.raises(DataError, match="no column 'qq'.*\n.*did you mean 'q'"):
        open_columns(tmp_path / "all.npz", parse_columns(["state=qq", "action=u"]))


def lengths_of(data) -> list[int]:
    return [len(e) for e in data]


LENGTHS = [6, 8, 10]


def arrays() -> dict[str, np.ndarray]:
    rows = table()
    return {"q": rows[:, 2:4], "u": rows[:, 4:6], "ep": np.repeat([4, 5, 6], LENGTHS), "seconds": np.arange(24) / 20,
            "ep_len": np.array(LENGTHS)}


def write_arrays(folder, kind, without=()):
    import h5py

    path, stored = folder / f"own.{kind}", {k: v for k, v in arrays().items() if k not in without}
    if kind == "npz":
        np.savez(path, **stored)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            for key, values in stored.items():
                file[key] = values
    else:
        rows = np.column_stack([stored[k] for k in ("ep", "seconds", "q", "u")])
        path.write_text("ep,seconds,q_0,q_1,u_0,u_1\n" + "\n".join(
            ",".join([str(int(r[0])), *map(repr, map(float, r[1:]))]) for r in rows) + "\n")
    return path


@pytest.mark.parametrize("kind", ["npz", "csv", "h5"])
def test_columns_mean_the_same_in_every_format(tmp_path, kind):
    path = write_arrays(tmp_path, kind, ["ep_len"])
    data = open_columns(path, parse_columns(["state=q", "action=u", "episode=ep", "timestamp=seconds"]))
    assert lengths_of(data) == LENGTHS and data.fps == 20 and "ep" not in data.features()
    for name, key in ((STATE, "q"), (ACTION, "u")):
        np.testing.assert_array_equal(np.concatenate([e.steps[name] for e in data]), arrays()[key])
    for wrong, near in (("epp", "ep"), ("eq", "q"), ("second", "seconds")):
        columns = {"epp": ["state=q", "action=u", "episode=epp"], "eq": ["state=q", "action=u", "goal=eq"],
                   "second": ["state=q", "action=u", "timestamp=second"]}[wrong]
        with pytest.raises(UserError, match=f"there is no (column|array) '{wrong}'(.|\n)*did you mean '{near}'"):
            open_columns(path, parse_columns(columns))
    with pytest.raises(UserError, match="one column tells episodes apart"):
        open_columns(path, parse_columns(["state=q", "action=u", "episode=ep", "episode_lengths=ep_len"]))


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_an_array_of_lengths_says_where_episodes_end(tmp_path, kind):
    path = write_arrays(tmp_path, kind, ["ep"])
    columns = ["state=q", "action=u"]
    data = open_columns(path, parse_columns([*columns, "episode_lengths=ep_len"]))
    assert lengths_of(data) == LENGTHS
    np.testing.assert_array_equal(data[1].steps[STATE], arrays()["q"][6:14])
    with pytest.raises(UserError, match="no column 'ep_lens'(.|\n)*did you mean 'ep_len'"):
        open_columns(path, parse_columns([*columns, "episode_lengths=ep_lens"]))
    assert lengths_of(open_columns(write_arrays(tmp_path, kind), parse_columns([*columns, "episode=ep"]))) == LENGTHS


def test_lengths_that_do_not_add_up_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **{**arrays(), "ep_len": np.array([6, 8, 11])})
    with pytest.raises(DataError, match="the lengths add up to 25 steps, but there are 24"):
        open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u", "episode_lengths=ep_len"]))
    with pytest.raises(DataError, match="whole numbers from 1"):
        open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u", "episode_lengths=q"]))


def test_episodes_without_ends_are_told_which_array_has_them(tmp_path):
    stored = arrays()
    both = {"observations": stored["q"], "actions": stored["u"]}
    for name, hint in (("ep_len", "--columns episode_lengths=ep_len, or save episode_ends=np.cumsum(ep_len)"),
                       ("ep", "--columns episode=ep")):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **both, **{name: stored[name]})
        with pytest.raises(UserError) as error:
            open_columns(path)
        assert "an .npz without episode_ends; it holds" in str(error.value) and hint in str(error.value)
        assert "no column has a name" not in str(error.value)
        option = hint.split()[1].rstrip(",")
        assert lengths_of(open_columns(path, parse_columns([option]))) == LENGTHS
    np.savez(tmp_path / "bare.npz", **both)
    with pytest.raises(UserError, match="episode_ends has the exclusive end of each episode"):
        open_columns(tmp_path / "bare.npz")
    own = write_arrays(tmp_path, "npz", ["ep"])
    with pytest.raises(UserError, match="there are q, u, seconds, ep_len(.|\n)*--columns episode_lengths=ep_len"):
        open_columns(own)
    single = open_columns(write_arrays(tmp_path, "h5"), parse_columns(["state=q", "action=u"]))
    assert any("is read as one episode" in w and "episode_lengths=ep_len" in w for w in single.metadata["warnings"])


def test_formats_that_know_their_episodes_are_not_cut_again(tmp_path, shared):
    rows = table()
    np.savez(tmp_path / "e0.npz", q=rows[:, 2:4], u=rows[:, 4:6], run=rows[:, 0])
    for path, text in ((tmp_path, "each of the 1 files is an episode"),
                       (shared / "fixtures/minari/closed/dict-v0", "minari data say themselves")):
        with pytest.raises(ConfigError, match=text):
            open_columns(path, parse_columns(["state=q", "action=u", "episode=run"]))
    again = open_columns(shared / "fixtures/ogbench/closed-v0.npz", parse_columns(["state=observation.state"]))
    assert len(again) == len(open_dataset(shared / "fixtures/ogbench/closed-v0.npz")) > 1


def test_hdf5_of_ones_own_layout(tmp_path):
    import h5py

    rows, ends = table(), np.cumsum(LENGTHS)
    (tmp_path / "files").mkdir()
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for i, (end, n) in enumerate(zip(ends, LENGTHS, strict=True)):
            part = rows[end - n:end]
            group = file.create_group(f"runs/traj_{i + 8}")
            group["obs/q"], group["u"], group["time"] = part[:, 2:4], part[:, 4:6], np.arange(n) / 25
            group["obs/image"], group["note"] = np.full((n, 4, 5, 3), i, np.uint8), np.arange(3)
            group.attrs["operator"] = "Ada"
            with h5py.File(tmp_path / "files" / f"run{i + 8}.hdf5", "w") as one:
                file.copy(group, one, "all")
                for key in ("obs", "u", "time"):
                    one.move(f"all/{key}", key)
    columns = parse_columns(["state=obs/q[1],obs/q_0", "action=u", "timestamp=time", "images.front=obs/image"])
    for path in (tmp_path / "groups.h5", tmp_path / "files"):
        data = open_columns(path, columns)
        assert lengths_of(data) == LENGTHS and data.fps == 25, path
        np.testing.assert_array_equal(np.concatenate([e.steps[STATE] for e in data]), rows[:, [3, 2]])
        assert (data[2].steps["observation.images.front"] == 2).all()
        with pytest.raises(DataError, match="no array 'obs/qq'(.|\n)*did you mean 'obs/q'"):
            open_columns(path, parse_columns(["state=obs/qq", "action=u"]))
        with pytest.raises(UserError, match="3 episodes already"):
            open_columns(path, parse_columns(["state=obs/q", "action=u", "episode=time"]))
    assert open_columns(tmp_path / "groups.h5", columns)[1].metadata == {"operator": "Ada"}
    with pytest.raises(UserError, match=r"there are note, obs/image, obs/q, time, u\n(.|\n)*--columns state=A,B"):
        open_columns(tmp_path / "groups.h5")


def test_whole_numbers_of_text_are_quantities_unless_the_user_says_classes(tmp_path, capsys):
    path = tmp_path / "servo.csv"
    path.write_text("ep,angle,grip\n" + "".join(f"{i // 10},{i * 7 % 180},{i % 3}\n" for i in range(60)))
    options = ["state=angle", "action=grip", "episode=ep"]
    f = open_columns(path, parse_columns(options)).features()
    assert (f[STATE].kind, f[ACTION].kind, f[ACTION].dtype) == ("vector", "vector", "float64")
    data = open_columns(path, parse_columns(["state=angle", "action=grip:classes", "episode=ep"]))
    f = data.features()
    assert (f[ACTION].kind, f[ACTION].dtype, f[ACTION].num_classes) == ("discrete", "int64", (3,))
    np.testing.assert_array_equal(np.concatenate([e.steps[ACTION] for e in data]), np.arange(60) % 3)
    np.testing.assert_array_equal(data.column(ACTION)[0], np.arange(60) % 3)
    two = open_columns(path, parse_columns(["state=angle", "action=grip,angle:classes", "episode=ep"]))
    assert two.features()[ACTION].num_classes == (3, 178)
    for column, reading, classes in (("grip", "quantities", None), ("grip:classes", "3 classes", [3])):
        command = ["inspect", str(path), "--columns", "state=angle", f"action={column}", "episode=ep"]
        assert main(command) == 0
        row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("action "))
        assert reading in row
        assert main([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["features"]["action"].get("classes") == classes
    np.savez(tmp_path / "a.npz", q=np.zeros((6, 2)), u=np.arange(6) - 2, episode_ends=[3, 6])
    f = open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u:quantities"])).features()
    assert (f[ACTION].kind, f[ACTION].dtype) == ("vector", "float64")
    with pytest.raises(DataError, match="a.npz, action, episode 0, step 0: -2 is not a class"):
        open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u:classes"]))


def own_table(path, steps=10, episodes=20, **columns):
    """A CSV of episodes end to end, with two random components of state, and these columns."""
    rng, n = np.random.default_rng(0), steps * episodes
    columns = {"run": np.repeat(np.arange(episodes), steps), "q1": rng.normal(size=n), "q2": rng.normal(size=n),
               "u": rng.normal(size=n), **columns}
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


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
    shown = capsys.readouterr().out
    assert ("quantities" if "whole" in text else text) in shown and "jitter" not in shown


def test_training_says_nothing_of_plain_data_and_warns_of_one_episode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_table(tmp_path / "own.csv", t=times(*[10] * 20))
    assert main(["train", "bc", "own.csv", *OWN, "timestamp=t", "--out", "run", *TRAIN]) == 0
    assert "own.csv:" not in capsys.readouterr().err
    assert main(["train", "bc", "own.csv", *OWN[:-1], "--out", "one", *TRAIN]) == 0
    assert "the table is read as one episode, but run has 20 values" in capsys.readouterr().err


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


def test_mistakes_that_glue_or_cut_episodes_are_told(tmp_path):
    stored, ends = arrays(), np.isin(np.arange(24), np.cumsum(LENGTHS) - 1)
    flags = tmp_path / "done.csv"
    flags.write_text("q,u,done\n" + "".join(f"{i / 7},{i / 9},{int(end)}\n" for i, end in enumerate(ends)))
    assert any("done is 1 in 3 rows" in w for w in open_columns(
        flags, parse_columns(["state=q", "action=u"])).metadata["warnings"])
    np.savez(tmp_path / "t1.npz", q=np.zeros((27, 2)), u=stored["u"], n=np.array(LENGTHS))
    data = open_columns(tmp_path / "t1.npz", parse_columns(["state=q", "action=u", "episode_lengths=n"]))
    assert lengths_of(data) == LENGTHS and [len(e.steps[STATE]) for e in data] == [7, 9, 11]
    with pytest.raises(UserError, match="--columns episode_lengths=n"):
        open_columns(tmp_path / "t1.npz", parse_columns(["state=q", "action=u"]))
    np.savez(tmp_path / "floats.npz", observations=stored["q"], actions=stored["u"], ep=stored["ep"].astype(float))
    with pytest.raises(UserError, match="--columns episode=ep"):
        open_columns(tmp_path / "floats.npz")
    np.savez(tmp_path / "index.npz", obs=stored["q"], act=stored["u"], episode_index=stored["ep"])
    with pytest.raises(UserError) as error:
        open_columns(tmp_path / "index.npz")
    assert "as episode_ends" not in str(error.value) and "--columns episode=episode_index" in str(error.value)
    np.savez(tmp_path / "batched.npz", observations=np.zeros((3, 8, 2)), actions=np.arange(48.).reshape(3, 8, 2),
             episode_ends=[1, 2, 3])
    assert any("action has 8 x 2 numbers in each step" in f.message for f in audit(tmp_path / "batched.npz").findings)
    nanoseconds = own_table(tmp_path / "ns.csv", t=np.arange(200) * 10**8 + 17 * 10**17)
    data = open_columns(nanoseconds, parse_columns([*OWN[1:], "timestamp=t"]))
    assert data.fps is None


def test_hdf5_that_looks_like_a_known_layout_is_read_with_lengths(tmp_path):
    import h5py

    stored = arrays()
    for name, keys in (("d4rl", ("observations", "actions")), ("act", ("observations/qpos", "action"))):
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file[keys[0]], file[keys[1]], file["n"] = stored["q"], stored["u"], np.array(LENGTHS)
        with pytest.raises(UserError, match="--columns episode_lengths=ARRAY"):
            open_dataset(path)
        data = open_columns(path, parse_columns([f"state={keys[0]}", "episode_lengths=n"]))
        assert lengths_of(data) == LENGTHS and {STATE, ACTION} <= set(data.features())
    assert lengths_of(open_columns(tmp_path / "d4rl.h5", parse_columns(["episode_lengths=n"]))) == LENGTHS


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


def test_other_formats_stack_their_columns(shared):
    path = shared / "fixtures/minari/closed/dict-v0"
    plain, data = open_dataset(path), open_columns(path, parse_columns(["action=action.arm,action.grip"]))
    np.testing.assert_array_equal(data[0].steps[ACTION][:, :2], plain[0].steps["action.arm"])
    np.testing.assert_array_equal(data[0].steps[ACTION][:, 2], plain[0].steps["action.grip"])
    assert data.features()[ACTION].shape == (3,) and "action.arm" not in data.features()
    assert list(data[0].steps["observation.mission"]) == list(plain[0].steps["observation.mission"])


def test_inspect_leads_to_training_on_several_action_columns(shared, capsys):
    path = str(shared / "fixtures/minari/closed/dict-v0")
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert f"understudy inspect {path} --columns action=action.arm,action.grip" in out and "one column action" in out
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
    for given in ((), columns):
        assert main(["eval", "run", "runs.csv", "--json", *given]) == 0
        assert json.loads(capsys.readouterr().out) == {**converted, "data": "runs.csv"}
    assert main(["eval", "run", "fork", *columns]) == 2
    assert "--columns: names the columns of recorded episodes, and there are none here" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["npz", "csv", "h5"])
def test_episodes_that_are_numbered_otherwise_are_told(tmp_path, kind, monkeypatch):
    columns = parse_columns(["state=q", "action=u", "episode=ep"])
    data = open_columns(write_arrays(tmp_path, kind, ["ep_len"]), columns)
    note = "ep is not 0, 1, 2, ...: episode {} of this data set is the one that is {} there"
    assert data.metadata["warnings"] == [note.format(0, 4)]
    stored = arrays()
    for numbers, notes in (([0, 1, 2], []), ([0, 1, 3], [note.format(2, 3)])):
        monkeypatch.setitem(globals(), "arrays", lambda n=numbers: {**stored, "ep": np.repeat(n, LENGTHS)})
        assert open_columns(write_arrays(tmp_path, kind, ["ep_len"]), columns).metadata["warnings"] == notes


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
