"""Data with the user's own column names, and tables of several episodes."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from fixtures import own_columns
from fixtures.own_columns import LENGTHS, arrays, check, own_table, table, write_arrays, write_csv

import understudy
from understudy.audit import audit
from understudy.cli import main
from understudy.core import ConfigError, DataError, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.opening.column_selection import open_columns, parse_columns
from understudy.data.operations import episode_values
from understudy.data.tasks import task_texts

STATE, ACTION = "observation.state", "action"
COLUMNS = ("state=q1,q2", "action=u1,u2")


def test_names_of_columns():
    assert parse_columns(["state=a,b", "action=c", "gripper=d", "reward=e", "episode=run"]) == {
        STATE: ("a", "b"), ACTION: ("c",), "observation.gripper": ("d",), "next.reward": ("e",), "episode": ("run",)}
    assert parse_columns(["state = a, b", " episode= run "]) == {STATE: ("a", "b"), "episode": ("run",)}
    for bad in ("state", "state=", " =a", "=a", "state=a,,b"):
        with pytest.raises(ConfigError, match="--columns state=q1,q2"):
            parse_columns([bad])
    for similar_name in ("episodes=run", "episode_length=n"):
        with pytest.raises(ConfigError, match="did you mean episode"):
            parse_columns(["state=a", similar_name])
    assert parse_columns(["observation.episodes=run"]) == {"observation.episodes": ("run",)}
    with pytest.raises(ConfigError, match="observation.state is given twice"):
        parse_columns(["state=a", "observation.state=b"])


def test_columns_of_a_zarr_may_have_their_names_in_the_file(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"observation.q": rng.normal(size=(6, 2)), "observation.u": rng.normal(size=(6, 1)), ACTION: np.ones(6),
               "observation.images.eye": rng.integers(0, 255, (6, 8, 8, 3)).astype(np.uint8)}
    write_dataset(Dataset([Episode(columns)]), tmp_path / "a.zarr")
    (episode,) = open_columns(tmp_path / "a.zarr", parse_columns(["state=q", "action=q_1,u", "images.top=eye"]))
    np.testing.assert_array_equal(episode.steps[STATE], columns["observation.q"])
    both = np.c_[columns["observation.q"][:, 1:], columns["observation.u"]]
    np.testing.assert_array_equal(episode.steps[ACTION], both)
    np.testing.assert_array_equal(episode.steps["observation.images.top"], columns["observation.images.eye"])


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


def test_a_replay_buffer_of_d3rlpy_is_told_how_to_be_saved(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "replay.h5", "w") as file:
        for key in ("observations_0", "actions_0", "rewards_0", "observations_1", "actions_1", "rewards_1"):
            file[key] = np.zeros((5, 2))
    with pytest.raises(DataError, match=r"ReplayBuffer of d3rlpy, .*docs/other-libraries\.md"):
        open_columns(tmp_path / "replay.h5", {})


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


def test_the_times_of_all_episodes_of_a_table_begin_at_0(tmp_path):
    rows = np.c_[np.repeat([0, 1], 4), 1.7e9 + np.arange(8) / 4, np.zeros((8, 2))]
    data = open_dataset(write_csv(tmp_path / "a.csv", rows, "episode,timestamp,state,action"))
    assert [e.steps["timestamp"].reshape(-1).tolist() for e in data] == [[0, 0.25, 0.5, 0.75]] * 2


def test_a_table_that_looks_like_several_episodes_is_told_so(tmp_path):
    rows = table()
    path = write_csv(tmp_path / "runs.csv", rows)
    def warnings(data):
        return [w for w in data.metadata["warnings"] if "one episode" in w]
    assert warnings(open_columns(path, parse_columns(COLUMNS))) == [
        "the table is read as one episode, but run has 3 values, one after the other. If it numbers the episodes, say "
        "so: --columns episode=run (in Python: columns=['episode=run'])"]
    assert not warnings(open_columns(path, parse_columns([*COLUMNS, "episode=run"])))
    unnumbered = write_csv(tmp_path / "time.csv", np.column_stack([np.zeros(len(rows)), rows[:, 1:]]))
    assert warnings(open_columns(unnumbered, parse_columns(COLUMNS))) == [
        "the table is read as one episode, but timestamp starts again in row 9. If it has several episodes, name the "
        "column that numbers them: --columns episode=COLUMN (in Python: columns=['episode=COLUMN'])"]
    single = write_csv(tmp_path / "single.csv", rows[:8])
    assert not warnings(open_columns(single, parse_columns(COLUMNS)))


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


@pytest.mark.parametrize("kind", ["npz", "csv", "h5"])
def test_columns_mean_the_same_in_every_format(tmp_path, kind):
    path = write_arrays(tmp_path, kind, ["ep_len"])
    data = open_columns(path, parse_columns(["state=q", "action=u", "episode=ep", "timestamp=seconds"]))
    assert lengths_of(data) == LENGTHS and data.fps == 20 and "ep" not in data.features()
    for name, key in ((STATE, "q"), (ACTION, "u")):
        np.testing.assert_array_equal(np.concatenate([e.steps[name] for e in data]), arrays()[key])
    for misspelled, suggestion in (("epp", "ep"), ("eq", "q"), ("second", "seconds")):
        columns = {"epp": ["state=q", "action=u", "episode=epp"], "eq": ["state=q", "action=u", "goal=eq"],
                   "second": ["state=q", "action=u", "timestamp=second"]}[misspelled]
        with pytest.raises(UserError,
                           match=f"there is no (column|array) '{misspelled}'(.|\n)*did you mean '{suggestion}'"):
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
    ends = {**arrays(), "ep_len": np.cumsum(LENGTHS)}
    (tmp_path / "ends").mkdir()
    np.savez(tmp_path / "ends/a.npz", **ends)
    with h5py.File(tmp_path / "ends/a.h5", "w") as file:
        file.update(ends)
    for name in ("episode_ends", "episode_lengths"):
        of_ends = open_columns(tmp_path / "ends" / f"a.{kind}", parse_columns([*columns, f"{name}=ep_len"]))
        assert lengths_of(of_ends) == LENGTHS
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
    for name, hint in (("ep_len", "--columns episode_lengths=ep_len (in Python: columns=['episode_lengths=ep_len']), "
                                  "or save episode_ends=np.cumsum(ep_len)"),
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


def test_warnings_that_the_columns_answer_are_dropped(tmp_path):
    np.savez(tmp_path / "a.npz", observations=np.zeros((6, 2)), actions=np.arange(6) % 3, episode_ends=[3, 6])
    table = tmp_path / "a.csv"
    table.write_text("q,u,ep\n" + "".join(f"{i / 7},{i / 9},{i // 3}\n" for i in range(6)))
    for path, columns, begin in (
            (tmp_path / "a.npz", ["state=observations"], ["actions: int64 is read as classes"]),
            *((tmp_path / "a.npz", [f"action=actions:{reading}"], []) for reading in ("quantities", "classes")),
            (table, ["episode=ep"], ["no column is called action"]), (table, ["state=q", "episode=ep"], [])):
        warnings = open_columns(path, parse_columns(columns)).metadata["warnings"]
        assert [w[:len(b)] for w, b in zip(warnings, begin, strict=True)] == begin


OWN = ("--columns", "state=q1,q2", "action=u", "episode=run")


def test_integers_of_two_kinds_are_stacked_as_integers(tmp_path):
    ids = 2**60 + np.arange(4)
    np.savez(tmp_path / "a.npz", q=np.zeros(4), u=ids, v=ids.astype(np.uint64), episode_ends=np.array([4]))
    data = open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u,v"]))
    assert data.features()[ACTION].dtype == "int64" and data[0].steps[ACTION].tolist() == [[i, i] for i in ids.tolist()]


def test_large_integers_are_not_rounded_next_to_floats(tmp_path):
    ids = 2**60 + np.arange(4)
    np.savez(tmp_path / "a.npz", q=np.zeros(4), ids=ids, u=np.ones(4), episode_ends=np.array([4]))
    with pytest.raises(DataError, match="does not hold 1152921504606846977.* its other columns(.|\n)*:quantities"):
        open_columns(tmp_path / "a.npz", parse_columns(["state=q,ids", "action=u"]))[0].steps[STATE][:]
    data = open_columns(tmp_path / "a.npz", parse_columns(["state=q,ids:quantities", "action=u"]))
    np.testing.assert_array_equal(data[0].steps[STATE][:, 1], ids.astype(float))


def test_metadata_of_other_names_are_the_task_and_the_success(tmp_path):
    table = {"q": np.zeros(4), "u": np.ones(4), "episode_ends": np.array([3, 4]), "said": ["push", "pull"],
             "won": [True, False]}
    np.savez(tmp_path / "a.npz", **table)
    data = open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u", "task=said", "success=won"]))
    assert [task_texts(e).tolist() for e in data] == [["push"], ["pull"]]
    assert episode_values(data, "success") == [True, False] and set(data.features()) == {STATE, ACTION}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number, text in enumerate(("push", "pull")):
            group = file.create_group(f"traj_{number}")
            group["q"], group["u"], group.attrs["said"] = table["q"], table["u"], text
        del file["traj_1"].attrs["said"]
        file["traj_0"].attrs["won"] = True
    own = open_columns(tmp_path / "a.h5", parse_columns(["state=q", "action=u", "task=said", "success=won"]))
    assert [e.metadata.get("success") for e in own] == [True, None] and "success" not in own[1].metadata
    assert [task_texts(e).tolist() for e in own] == [["push"], [""]]
    with pytest.raises(UserError, match="there is no column 'said'"):
        open_columns(tmp_path / "a.npz", parse_columns(["state=said", "action=u"]))


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
        with pytest.raises(UserError, match="--columns episode_lengths=(ARRAY|n)"):
            open_dataset(path)
        data = open_columns(path, parse_columns([f"state={keys[0]}", "episode_lengths=n"]))
        assert lengths_of(data) == LENGTHS and {STATE, ACTION} <= set(data.features())
    assert lengths_of(open_columns(tmp_path / "d4rl.h5", parse_columns(["episode_lengths=n"]))) == LENGTHS


def test_a_robomimic_file_may_call_its_actions_otherwise(tmp_path):
    import h5py

    stored, path = arrays(), tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        for i, n in enumerate(LENGTHS):
            group = file.create_group(f"data/demo_{i}")
            group["obs/q"], group["acts"], group.attrs["num_samples"] = stored["q"][:n], stored["u"][:n], n
    with pytest.raises(UserError, match=r"no array actions; there are acts, obs/q\n(.|\n)*--columns action=A"):
        open_dataset(path)
    data = open_columns(path, parse_columns(["action=acts", "state=obs/q"]))
    assert lengths_of(data) == LENGTHS
    np.testing.assert_array_equal(data[1].steps[ACTION], stored["u"][:LENGTHS[1]])


def test_other_formats_stack_their_columns(shared):
    path = shared / "fixtures/minari/closed/dict-v0"
    plain, data = open_dataset(path), open_columns(path, parse_columns(["action=action.arm,action.grip"]))
    np.testing.assert_array_equal(data[0].steps[ACTION][:, :2], plain[0].steps["action.arm"])
    np.testing.assert_array_equal(data[0].steps[ACTION][:, 2], plain[0].steps["action.grip"])
    assert data.features()[ACTION].shape == (3,) and "action.arm" not in data.features()
    assert list(data[0].steps["observation.mission"]) == list(plain[0].steps["observation.mission"])


@pytest.mark.parametrize("kind", ["npz", "csv", "h5"])
def test_episodes_that_are_numbered_otherwise_are_told(tmp_path, kind, monkeypatch):
    columns = parse_columns(["state=q", "action=u", "episode=ep"])
    data = open_columns(write_arrays(tmp_path, kind, ["ep_len"]), columns)
    note = "ep is not 0, 1, 2, ...: episode {} of this data set is the one that is {} there"
    assert data.metadata["warnings"] == [note.format(0, 4)]
    stored = arrays()
    for numbers, notes in (([0, 1, 2], []), ([0, 1, 3], [note.format(2, 3)])):
        monkeypatch.setattr(own_columns, "arrays", lambda n=numbers: {**stored, "ep": np.repeat(n, LENGTHS)})
        assert open_columns(write_arrays(tmp_path, kind, ["ep_len"]), columns).metadata["warnings"] == notes


@pytest.mark.parametrize("columns", [
    {"state": ["q1", "q2"], "action": "u1,u2", "episode": "run"}, ["state=q1,q2", "action=u1,u2", "episode=run"],
    {"observation.state": ("q1", "q2"), "action": ["u1", "u2"], "episode": ["run"]}])
def test_python_names_columns_as_the_command_line_does(tmp_path, columns):
    rows = table()
    data = understudy.open_dataset(write_csv(tmp_path / "runs.csv", rows), columns=columns)
    check(data, rows)
    assert data.metadata["reading"]["columns"] == {STATE: ["q1", "q2"], ACTION: ["u1", "u2"], "episode": ["run"]}


def test_columns_of_another_type_are_refused(tmp_path):
    file = write_csv(tmp_path / "runs.csv", table())
    with pytest.raises(ConfigError, match="'state' is made of 3, but must be made of names"):
        understudy.open_dataset(file, columns={"state": 3})
    data = understudy.open_dataset(file, columns="state=q1,q2")  # one text is a list of one
    assert data.metadata["reading"]["columns"][STATE] == ["q1", "q2"]


def test_errors_name_the_option_and_the_argument(tmp_path):
    path = write_csv(tmp_path / "runs.csv", table())
    told = r"--columns state=A,B action=C,D \(in Python: columns=\['state=A,B', 'action=C,D'\]\)"
    with pytest.raises(UserError, match=told):
        understudy.open_dataset(path)
    for columns in ({"state": []}, {"state": ""}, ["state"], "state"):
        with pytest.raises(ConfigError, match=r"--columns \(in Python: columns=\): .* does not say which columns"):
            understudy.open_dataset(path, columns=columns)
    with pytest.raises(UserError, match=r"did you mean 'q1'"):
        understudy.open_dataset(path, columns={"state": "q11", "action": "u1"})


def test_images_of_named_columns_are_resized_in_python(tmp_path):
    frames = np.full((6, 16, 16, 3), 7, np.uint8)
    np.savez(tmp_path / "a.npz", q=np.zeros((6, 2)), u=np.ones((6, 1)), cam=frames, n=[2, 4])
    columns = {"state": "q", "action": "u", "images.front": "cam", "episode_lengths": "n"}
    data = understudy.open_dataset(tmp_path / "a.npz", columns=columns, image_size=8)
    assert [e.steps["observation.images.front"].shape for e in data] == [(2, 8, 8, 3), (4, 8, 8, 3)]


@pytest.mark.parametrize(("parts", "problem"), [
    ("q", "q is not an image, but a vector of float32 of shape (2,)"),
    ("q,u", "q is not an image, but a vector"), ("word", "word is not an image, but a string"),
    ("eye[0]", "eye"), ("map", "map is not an image, but a vector of float32 of shape (4, 4, 3)")])
def test_a_column_that_is_no_image_is_not_called_one(tmp_path, parts, problem):
    np.savez(tmp_path / "a.npz", q=np.zeros((6, 2), np.float32), u=np.zeros((6, 1), np.float32),
             word=np.array(["a"] * 6), eye=np.zeros((6, 4, 4, 3), np.uint8),
             map=np.zeros((6, 4, 4, 3), np.float32), episode_ends=[6])
    with pytest.raises(UserError) as error:
        open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u", f"images.front={parts}"]))
    assert problem in str(error.value) and "\n  -> " in str(error.value)
    data = open_columns(tmp_path / "a.npz", parse_columns(["state=q", "action=u", "images.front=eye"]))
    assert data.features()["observation.images.front"].kind == "image"
