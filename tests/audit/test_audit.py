"""The audit: seeded defects are found, clean data are left in peace, and what it says is what scripts rely on."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from folders import BENCHMARKS

sys.path.insert(0, str(BENCHMARKS))

import defects  # noqa: E402

from understudy import UserError, cli  # noqa: E402
from understudy.audit import action_motion, audit, check_usable, checks, find_problems  # noqa: E402
from understudy.audit.base import AuditReport, Finding, Location, finding_from_error  # noqa: E402
from understudy.audit.purposes import rank_episodes, robust_deviations, typical_episodes  # noqa: E402
from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import READERS, lerobot, open_dataset, write_dataset  # noqa: E402
from understudy.data.operations import Crop, Filter  # noqa: E402
from understudy.envs import make  # noqa: E402
from understudy.evaluate.recording import expert_actor  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402

BROKEN = {  # of the fixtures: what the audit must say, and where
    "lerobot_truncated_mp4": ("frames-missing", {"file": "videos/observation.images.top/chunk-000/file-000.mp4"}),
    "lerobot_parquet_without_footer": ("damaged-file", {"file": "data/chunk-000/file-000.parquet"}),
    "lerobot_episodes_without_footer": ("damaged-file", {"file": "data/chunk-001/file-001.parquet"}),
    "lerobot_nan_action": ("not-finite", {"episode": 2, "step": 1, "feature": "action"}),
    "lerobot_episode_gap": ("indices-disagree", {"episode": 2}),
    "lerobot_wrong_length": ("lengths-disagree", {"episode": 0}),
    "lerobot_wrong_fps": ("fps-disagrees", {"feature": "timestamp"}),
    "lerobot_timestamp_jitter": ("timestamps-uneven", {"episode": 3, "step": 5}),
    "lerobot_totals": ("counts-disagree", {"file": "meta/info.json"}),
    "lerobot_missing_video": ("missing-file", {"episode": 2}),
    "lerobot_image_not_png": ("frame-damaged", {"episode": 0, "step": 4, "feature": "observation.images.top"}),
    "lerobot_bad_stats": ("stats-disagree", {"file": "meta/stats.json", "feature": "action"}),
    "lerobot_v21_missing_episode": ("missing-file", {"file": "data/chunk-000/episode_000002.parquet"}),
    "robomimic_nan_action.hdf5": ("not-finite", {"step": 2, "feature": "action"}),
    "robomimic_total.hdf5": ("counts-disagree", {}),
    "robomimic_lengths.hdf5": ("lengths-disagree", {"episode": 0, "feature": "obs/object"}),
    "robomimic_truncated.hdf5": ("damaged-file", {"file": "robomimic_truncated.hdf5"}),
    "rlds_crc": ("checksum", {"file": "closed_form-train.tfrecord-00001-of-00002"}),
    "rlds_truncated": ("damaged-file", {"file": "closed_form-val.tfrecord-00000-of-00002"}),
    "zarr_episode_ends": ("ends-disagree", {"file": "meta/episode_ends"}),
    "d4rl_no_end.hdf5": ("cannot-be-read", {"file": "d4rl_no_end.hdf5"}),
    "plain_object.npz": ("pickled-array", {"feature": "state"}),
    "mcap_truncated.mcap": ("damaged-file", {"file": "mcap_truncated.mcap"}),
    "rosbag_truncated.bag": ("damaged-file", {"file": "rosbag_truncated.bag"}),
    "act_short_qpos.hdf5": ("lengths-disagree", {"feature": "observations/qpos"}),
}
READER = {"robomimic_nan_action.hdf5": "robomimic", "d4rl_no_end.hdf5": "d4rl"}  # what only its reader can find


@pytest.fixture(scope="module")
def fork():
    return defects.toy("fork", 36)


@pytest.fixture(scope="module")
def saved(fork, tmp_path_factory):
    """A data set on disk, 6 episodes without pictures."""
    path = tmp_path_factory.mktemp("audit") / "data"
    lerobot.write(Dataset([e.replace({defects.CAMERA: None, "timestamp": None}) for e in fork[:6]], {"fps": 10}), path)
    return path


def run(capsys, *args) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# -- defects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in BROKEN if READER.get(n, "lerobot") in READERS])
def test_broken_fixtures(name, shared):
    code, location = BROKEN[name]
    report = audit(shared / "fixtures/broken" / name, scores=False)
    assert not report.ok
    matches = [f for f in report.findings if f.code == code and f.severity == "error"]
    assert matches, [f.code for f in report.findings]
    assert any(all(getattr(f.where, k) == v for k, v in location.items()) for f in matches), matches


def test_a_video_that_ends_early_is_repaired(shared, tmp_path, capsys):
    path = (shared / "fixtures/broken/lerobot_truncated_mp4").resolve()  # as a view names it
    repair = f"understudy repair {path} --out DST"
    assert repair in (text := run(capsys, "audit", path)[1]) and "--delete" not in text  # episode 0 can be read
    run(capsys, "view", "make", path, "--out", tmp_path / "view.json", "--delete", 1, 2)
    assert all(repair in run(capsys, "convert", p, tmp_path / "out")[2] for p in (path, tmp_path / "view.json"))


def test_all_episodes_with_damaged_frames_are_named(fork, monkeypatch):
    monkeypatch.setattr(checks, "_frames", lambda data, e, name: (_ for _ in ()).throw(
        UserError("damaged", where="file", hint="repair it")) if e in (1, 3) else ())
    assert next(checks.check_images(fork)).episodes == (1, 3)


def test_every_broken_fixture_is_met(shared):
    assert BROKEN.keys() == json.loads((shared / "fixtures/broken/MANIFEST.json").read_text()).keys()


@pytest.mark.parametrize("kind", [k for k in defects.VALUES if k.spoil is not defects.camera_late],
                         ids=lambda kind: kind.name)  # for which a fork of 14 steps is too short
def test_seeded_values(kind, fork):
    clean = kind.of(fork)
    spoilt = kind.spoil(np.random.default_rng(0), clean)
    assert set(kind.codes) & (defects.codes(spoilt) - defects.codes(clean))


def watched(shift, noise=0.0, episodes=8, steps=60):
    """Two numbers on a walk, and a picture whose halves are as bright as each of them was `shift` steps before."""
    rng, out = np.random.default_rng(0), []
    for _ in range(episodes):
        state = np.cumsum(rng.normal(0, 1, (steps + 20, 2)), 0)
        light = np.repeat(np.repeat(state[10 - shift:10 - shift + steps, None, :, None], 8, 1), 8, 2).astype(float)
        frames = 128 + 2 * light + rng.normal(0, noise + 1e-9, (steps, 1, 16, 1))
        out.append(Episode({defects.STATE: state[10:10 + steps], defects.ACTION: np.zeros((steps, 1)), defects.CAMERA:
                            np.broadcast_to(frames.clip(0, 255).astype(np.uint8), (steps, 8, 16, 3))}))
    return Dataset(out, {"fps": 10})


@pytest.mark.parametrize("shift, said", [(0, None), (1, None), (-1, None), (2, "note"), (-2, "warning"),
                                         (4, "warning"), (-7, "warning")])
def test_pictures_that_are_early_or_late(shift, said):
    """A step is what rounding makes, and two frames late are what many cameras take."""
    lags = [f for f in checks.check_images(watched(shift)) if f.code == "camera-lag"]
    assert [f.severity for f in lags] == ([said] if said else [])
    if said:
        assert f"{abs(shift)} steps {'before' if shift > 0 else 'after'} (which explains" in lags[0].message
        assert lags[0].where == Location(feature=defects.CAMERA)


def test_the_brightness_of_a_grid_is_that_of_its_cells():
    cells = np.random.default_rng(0).integers(0, 255, (4, 4))
    picture = np.repeat(np.repeat(cells, 3, 0), 5, 1)[..., None] + np.array([-1, 0, 1])  # channels
    np.testing.assert_allclose(action_motion.grid_brightness(picture), cells.ravel())
    assert np.isfinite(action_motion.grid_brightness(picture[:3, :2])).all()  # less than a pixel for each cell


def test_pictures_that_do_not_show_the_state_tell_nothing_of_it():
    assert list(checks.check_images(watched(4, noise=6))) == []  # explains a fifth of the change
    assert list(checks.check_images(watched(4, episodes=5))) == []  # too few to judge one half by the other
    grey = Dataset(
        [
            e.replace(
                {
                    defects.CAMERA: np.full((60, 8, 16, 3), 90, np.uint8)
                    + np.arange(60)[:, None, None, None].astype(np.uint8) % 2
                }
            )
            for e in watched(4)
        ],
        {"fps": 10},
    )
    assert list(checks.check_images(grey)) == []


@pytest.mark.parametrize("name", [n for n in defects.FILES if n.startswith("LeRobot")])
def test_seeded_files(name, shared, tmp_path):
    codes, fixture, spoil = defects.FILES[name]
    copy = tmp_path / "copy"
    shutil.copytree(shared / "fixtures" / fixture, copy, copy_function=shutil.copyfile)
    assert not set(codes) & {f.code for f in audit(copy, scores=False).findings}
    spoil(copy)
    assert set(codes) & {f.code for f in audit(copy, scores=False).findings}


def test_errors_name_the_place(fork):
    spoilt = defects.put(fork, 3, defects.ACTION, (5, 1), np.nan)
    assert [f.where for f in find_problems(spoilt) if f.severity == "error"] == [Location(None, 3, 5, "action")]


# -- clean data -----------------------------------------------------------------------------------------------------


def test_demonstrations_of_a_toy_are_clean(fork, saved):
    assert [f.code for f in find_problems(fork, frames=True) if f.severity != "note"] == []
    report = audit(saved, scores=False)
    assert report.ok and report.findings == ()


@pytest.mark.parametrize("name", ["v3.0/video_h264", "v3.0/grid", "v3.0_converted/images", "v2.1/video", "v2.0/images"])
def test_files_of_others_are_clean(name, shared):
    assert {f.severity for f in audit(shared / "fixtures/lerobot" / name, scores=False).findings} <= {"note"}


def test_times_of_our_own_recordings_are_measured(fork, tmp_path):
    """In others' LeRobot data a time that is off is an error; a late frame that we recorded is a fact."""
    late = defects.gap(np.random.default_rng(0), fork)
    lerobot.write(Dataset([e.replace({defects.CAMERA: None}) for e in late], {"fps": 10}), tmp_path / "data")
    report = audit(tmp_path / "data", scores=False)
    assert report.ok and {f.code for f in report.findings if f.severity == "warning"} == {"timestamp-gap"}


@pytest.mark.parametrize("value, is_clear", [("no", False), ("False", False), (float("nan"), False), (0.5, False),
                                             (True, True), (0, True), (1.0, True), (None, False)])
def test_a_success_that_is_neither_true_nor_false_is_an_error(value, is_clear, tmp_path, capsys):
    """The text "no" is true for Python: it was counted as a success."""
    episodes = [Episode({"observation.state": np.random.default_rng(i).normal(size=(6, 2)).astype("f4"),
                         "action": np.ones((6, 1), "f4")}, {"success": [True, value][i % 2]}) for i in range(4)]
    assert ("label-unclear" in {f.code for f in find_problems(Dataset(episodes))}) is not is_clear
    write_dataset(Dataset(episodes, {"fps": 10.0}), tmp_path / "data")
    _, out, _ = run(capsys, "inspect", str(tmp_path / "data"))
    assert ("2 of 2 succeeded; 2 others have no outcome" in out) is not is_clear


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_data(fork, tmp_path, monkeypatch):
    write_dataset(fork[:3], tmp_path / "a.npz", "npz")
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "file" / "cache"))
    for check in (audit, lambda path: check_usable(open_dataset(path), path)):
        with pytest.raises(UserError, match="cache cannot be written(.|\n)*set UNDERSTUDY_CACHE"):
            check(tmp_path / "a.npz")


def test_no_episode_is_no_error():
    assert [f.code for f in find_problems(Dataset([], {"warnings": ["cut short"]}))] == ["reader", "no-episodes"]


# -- what scripts rely on -------------------------------------------------------------------------------------------


def test_json_and_exit_status(saved, shared, tmp_path, capsys):
    status, out, _ = run(capsys, "audit", saved, "--json")
    report = json.loads(out)
    assert status == 0 and report["ok"] is True and set(report) == {"ok", "findings", "scores", "purposes"}
    assert all(len(values) == 6 for values in report["scores"].values())
    status, out, _ = run(capsys, "audit", shared / "fixtures/broken/lerobot_nan_action", "--json")
    report = json.loads(out)
    assert status == 3 and report["ok"] is False
    first = report["findings"][0]
    assert set(first) == {"code", "severity", "where", "message", "remedy", "episodes", "correction"}
    assert [first["severity"], *first["where"].values()] == ["error", None, 2, 1, "action"]
    (tmp_path / "note.txt").write_text("no data")
    for name, problem in (("nowhere", "there is no such file or folder"), ("note.txt", "this is not a data set")):
        status, out, err = run(capsys, "audit", tmp_path / name, "--json")
        assert status == 2 and out == "" and problem in err


@pytest.mark.parametrize("name", ["dict-v0", "dict-arrow-v0", "raw-images-v0"])
def test_actions_of_several_columns_are_scored(name, shared, tmp_path, capsys):
    path = shared / "fixtures/minari/closed" / name
    status, out, err = run(capsys, "audit", path, "--json", "--html", tmp_path / "page.html")
    assert status == 0 and "Traceback" not in err
    assert {"smoothness", "novelty", "action-variance"} <= json.loads(out)["scores"].keys()
    assert "action.arm" in (tmp_path / "page.html").read_text()
    assert run(capsys, "curate", path, "--score", "novelty", "--keep", "1", "--out", tmp_path / "c.json")[0] == 0


def test_the_page_says_which_values_a_curve_leaves_out(fork, tmp_path, capsys):
    write_dataset(defects.put(fork, 3, defects.ACTION, (5, 1), np.nan), tmp_path / "d.npz", "npz")
    run(capsys, "audit", tmp_path / "d.npz", "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert f"action, without 1 NaN or infinite value; {len(fork[3])} steps" in text
    assert text.count("NaN or infinite value") == text.count("<h3>Episode 3</h3>")  # the other episodes lack nothing


def test_guard_names_all_codes_and_lets_despite_by(fork):
    broken = defects.end_inside(np.random.default_rng(0), defects.put(fork, 3, defects.ACTION, (5, 1), np.nan))
    check_usable(fork)
    with pytest.raises(UserError, match="--ignore not-finite --ignore end-inside"):
        check_usable(broken)
    with pytest.raises(UserError, match="finds 1 error"):
        check_usable(broken, ignore=("not-finite",))
    check_usable(broken, ignore=("not-finite", "end-inside"))


@pytest.mark.parametrize("name", ["success", "expert"])
def test_labels_of_which_each_would_count_as_true_are_refused(fork, name):
    """Text is true wherever it is asked for, also "false"."""
    def labeled(*values):
        return Dataset([replace(e, metadata={name: v}) for e, v in zip(fork, values, strict=False)])
    for unclear, says in (("false", "is the text 'false'"), (None, "is None")):
        with pytest.raises(UserError, match=f"label-unclear: episode 1: the label {name} {says}"):
            check_usable(labeled(True, unclear))
    clear = Dataset([*labeled(True, False, 1, 0.0, np.bool_(True)), replace(fork[5], metadata={})])
    check_usable(clear, ignore=("success-disagrees",))  # with the column


def test_the_success_of_an_episode_whose_end_was_cropped_is_no_contradiction(fork):
    won = Filter("success", (True,)).apply(fork)
    check_usable(Crop(0, -4).apply(won))
    lost = Dataset([e.replace({"next.success": np.zeros(len(e), bool)}) for e in won])
    with pytest.raises(UserError, match="success-disagrees"):
        check_usable(lost)


def test_convert_and_train_refuse_errors(shared, tmp_path, capsys):
    broken = shared / "fixtures/broken/lerobot_nan_action"
    for command in (("convert", broken, tmp_path / "out"),
                    ("train", "bc", broken, "--out", tmp_path / "out", "--steps", "1")):
        status, _, err = run(capsys, *command)
        advice = "--ignore not-finite" if command[0] == "convert" else "--out finite.json --delete 2"
        assert status == 2 and advice in err and not (tmp_path / "out").exists()
    status, _, _ = run(capsys, "convert", broken, tmp_path / "out", "--ignore", "not-finite")
    assert status == 0 and np.isnan(open_dataset(tmp_path / "out")[2].steps["action"][1, 0])


def test_page(shared, tmp_path, capsys):
    page = tmp_path / "page.html"
    status, _, _ = run(capsys, "audit", shared / "fixtures/broken/lerobot_image_not_png", "--html", page)
    text = page.read_text()
    assert "Errors were found." in text and "What to do: " in text
    assert status == 3 and "frame-damaged" in text and "Episode 0" in text and text.count("<script") == 1  # of copying
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert run(capsys, "audit", shared / "fixtures/lerobot/v3.0/images", "--html", page)[0] == 2  # nothing is lost


# -- episodes to look at ----------------------------------------------------------------------------------------------


def fork_with(*changes):
    """36 clean demonstrations, of which some are replaced: (number, function of the episode)."""
    whole = defects.toy("fork", 36)
    episodes = [Episode({k: e.steps[k] for k in ("observation.state", "action")}, e.metadata) for e in whole]
    for e, change in changes:
        episodes[e] = change(episodes[e])
    return Dataset(episodes, whole.metadata)


def with_action(change):
    return lambda e: e.replace({**e.steps, "action": change(np.array(e.steps["action"]))})


def shaken(action):
    return action + np.random.default_rng(0).normal(0, 0.8, action.shape).astype(action.dtype)


def with_nan(action):
    action[3, 1] = np.nan
    return action


def rankings_of(data, path):
    write_dataset(data, path)
    return {r.name: r for r in rank_episodes(audit(path), path)}


def test_clean_demonstrations_are_listed_for_no_purpose(tmp_path):
    assert rankings_of(fork_with(), tmp_path / "d") == {}


def test_episodes_are_listed_for_one_purpose_with_evidence(tmp_path):
    rankings = rankings_of(fork_with((13, with_action(shaken)), (5, with_action(with_nan))), tmp_path / "d")
    faulty, unlike = rankings["remove as faulty"], rankings["unlike the others"]
    assert [e.episode for e in faulty.episodes] == [5, 13]  # errors first; the actions of 13 have no effect
    assert (faulty.episodes[0].evidence[0].source, faulty.episodes[0].evidence[0].step) == ("not-finite", 3)
    assert 13 in [e.episode for e in unlike.episodes]
    (evidence, *_) = next(e for e in unlike.episodes if e.episode == 13).evidence
    assert evidence.source == "typicality" and evidence.value < evidence.usual and evidence.deviations < -3.5
    assert f"typicality {evidence.value:.3g}, usually {evidence.usual:.3g}" in evidence.text and evidence.step >= 0
    assert [e.episode for e in rankings["jerky"].episodes] == [13]
    assert not any(name in " ".join(rankings) for name in ("best", "worst"))


def test_the_command_of_a_purpose_leaves_out_exactly_its_episodes(tmp_path, monkeypatch, capsys):
    """Its score may be NaN in other episodes; curate would leave these out too."""
    monkeypatch.chdir(tmp_path)
    short = lambda e: Episode({k: np.asarray(v)[:3] for k, v in e.steps.items()}, e.metadata)  # noqa: E731
    for name, changes in (("one", [(13, with_action(shaken)), (20, with_action(shaken))]),
                          ("with a short one", [(13, with_action(shaken)), (2, short)])):
        rankings = rankings_of(fork_with(*changes), name)
        assert "jerky" in rankings
        for ranking in rankings.values():
            assert cli.main(shlex.split(ranking.command)[1:]) == 0, ranking.command
            view = shlex.split(ranking.command)[shlex.split(ranking.command).index("--out") + 1]
            listed, whole = {e.episode for e in ranking.episodes}, open_dataset(name)
            expected = [i for i in range(36) if i not in listed]
            for episode, i in zip(open_dataset(view), expected, strict=True):
                np.testing.assert_array_equal(episode.steps["action"], whole[i].steps["action"])
            Path(view).unlink()


def test_what_opposing_scores_say_does_not_cancel_out():
    """The most novel episode is the least typical: it is unlike the others, whatever other scores think of it."""
    typical = np.array([*np.linspace(-1.1, -0.9, 11), -9.0])
    report = AuditReport((), {"typicality": typical, "novelty": -typical, "brevity": np.full(12, -20.0)}, n_episodes=12)
    (ranking,) = rank_episodes(report, "my demos")
    assert ranking.name == "unlike the others" and [e.episode for e in ranking.episodes] == [11]
    assert ranking.command == ("understudy curate 'my demos' --score typicality --keep 0.916667 --out "
                               "without-unlike-the-others.json")
    assert typical_episodes(report.scores, 1) == [10]


def test_robust_deviations_are_those_of_a_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 100_000)
    np.testing.assert_allclose(robust_deviations(values), (values - 3) / 2, atol=0.05)
    assert robust_deviations(np.array([1.0] * 7)).tolist() == [0] * 7  # too few
    few = robust_deviations(np.array([1.0] * 9 + [0.0]))  # more than half are equal
    assert few[:9].tolist() == [0] * 9 and few[9] == pytest.approx(-10 / 1.2533)
    assert np.isnan(robust_deviations(np.array([np.nan, *range(9)]))[0])


def test_the_audit_prints_purposes_and_writes_them_to_its_page(tmp_path, capsys):
    write_dataset(fork_with((13, with_action(shaken))), tmp_path / "d")
    status, out, _ = run(capsys, "audit", tmp_path / "d", "--html", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert status == 0 and "\njerky: 1 episode: 13\n" in out and "episode 13: smoothness" in out
    assert "Unlike the others" in text and "Most like the others" in text and "understudy curate" in text
    assert "Worst" not in text and "mean rank" not in text
    report = json.loads(run(capsys, "audit", tmp_path / "d", "--json")[1])
    assert {"name", "meaning", "episodes", "command"} == report["purposes"][0].keys()


# -- small things ---------------------------------------------------------------------------------------------------


def test_a_refusal_becomes_a_finding():
    error = UserError("expected x", where="/data/set/data/a.parquet, episode 4, frame 7, action", hint="mend it")
    assert finding_from_error(error, Path("/data/set"), ("action", "observation.state")) == Finding(
        "cannot-be-read", "error", "expected x", "mend it", Location("data/a.parquet", 4, 7, "action"))


def test_a_wrapping_angle_is_no_jump():
    """An angle that turns at a steady rate, past pi: the change goes the short way round."""
    rng = np.random.default_rng(0)

    def turn():
        a = rng.uniform(0.1, 0.3, (60, 1))
        angle = np.concatenate([[[0.0]], np.cumsum(a, 0)])
        return Episode({"observation.state": (angle + np.pi) % (2 * np.pi) - np.pi, "action": a})
    data = Dataset([turn() for _ in range(6)], {"fps": 10})
    assert "jump" not in {f.code for f in find_problems(data)}
    state = np.array(data[2].steps["observation.state"])
    state[30:] += 0.9
    assert "jump" in {f.code for f in find_problems(Dataset([*data[:2], replace(data[2], steps={
        **data[2].steps, "observation.state": state}), *data[3:]], data.metadata))}


@pytest.mark.parametrize(("factor", "is_named"), [(57.3, True), (1000.0, True), (30.0, False)])
def test_another_unit_from_the_middle_of_the_data_on_is_named(factor, is_named):
    """Where neither half is the usual one. Two tasks may also be of two sizes."""
    env = make("planar_arms", 8)
    data = rollout(expert_actor(env), env, 16, seed=3)
    spoiled = Dataset([e.replace({"action": np.asarray(e.steps["action"]) * (factor if i >= 8 else 1)})
                       for i, e in enumerate(data)], data.metadata)
    scales = [f for f in find_problems(spoiled) if f.code == "scale"]
    assert not [f for f in find_problems(data) if f.code == "scale"] and len(scales) == is_named
    assert not scales or set(scales[0].episodes) in ({*range(8)}, {*range(8, 16)}) and "these or the others" in \
        scales[0].message


def test_cells_of_a_map_are_no_quantities():
    """Walls, which stand alike beside each other, and tokens of which few episodes have hundreds; as a vector, both
    would be worth a word."""
    rng = np.random.default_rng(0)

    def played(n, shape):
        cells = np.zeros((31, 12), np.float32)
        cells[:, :2] = rng.integers(0, 2, (31, 1))
        cells[:, 2:] = rng.integers(0, 2, (31, 10)) * (300 if n < 2 else 1)
        return Episode({"observation.state": rng.normal(size=(31, 2)), "action": rng.normal(size=(30, 2)),
                        "observation.map": cells.reshape(31, *shape)})

    def codes(*shape):
        return {f.code for f in find_problems(Dataset([played(n, shape) for n in range(6)], {"fps": 10}))
                if f.where.feature == "observation.map"}
    assert codes(2, 3, 2) == set()
    assert codes(12) == {"scale", "duplicate-component"}


@pytest.mark.parametrize("seed", range(12))
def test_columns_at_once_say_what_a_look_at_each_episode_says(tmp_path, seed):
    """10^5 episodes are checked by whole columns; what is found is the same, in whatever order they were picked."""
    from understudy.audit import checks
    from understudy.data.formats import write_dataset

    rng = np.random.default_rng(seed)
    episodes = []
    for n in range(5):
        steps = int(rng.integers(1, 5))
        ends = {name: np.zeros(steps, bool) for name in ("next.terminated", "next.truncated")}
        ends[["next.terminated", "next.truncated"][int(rng.integers(2))]][-1] = rng.random() < 0.8
        state = np.full((steps + 1, 2), n, np.float32)
        if rng.random() < 0.1:
            ends["next.truncated"][int(rng.integers(steps))] = True
            state[int(rng.integers(steps)), 1] = np.nan
        episodes.append(Episode({"observation.state": state, "action": np.zeros((steps, 1), np.float32), **ends}))
    write_dataset(Dataset(episodes), tmp_path / "d.npz", "npz")
    order = rng.permutation(5)[: int(rng.integers(1, 6))]
    packed = open_dataset(tmp_path / "d.npz").select(order)
    looked = Dataset(tuple(packed), packed.metadata)
    for check in (checks.check_episode_ends, checks.check_finite):
        assert list(check(packed)) == list(check(looked))


def test_files_of_a_kind_that_is_not_read_are_no_data_set(shared, capsys):
    path = shared / "fixtures/rlds/array_record/closed_form/1.0.0"
    assert cli.main(["audit", str(path)]) == 2
    err = capsys.readouterr().err
    assert "array_record, which is not read" in err and "tfds convert_format" in err
