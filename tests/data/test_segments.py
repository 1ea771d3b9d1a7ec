"""Segments of long episodes, and instructions that change while a policy acts."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy import config, make, open_dataset, train
from understudy.cli import main
from understudy.commands import evaluate
from understudy.core import DataError, Feature, UserCodeError, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.data.opening.views import write_view
from understudy.data.packed_columns import PackedColumns
from understudy.data.segments import ColumnSegments, Cut, CutSegments, LabeledSegment, SegmentDetector, cut_segments
from understudy.data.text_columns import TaskText
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, ObservationWrapper
from understudy.execute.instruction import INSTRUCTION, InstructedActor, LiveSpeaker, ScheduledSpeaker, Speaker
from understudy.learn.fit_method import fit_method
from understudy.learn.method import build_actor, training_data
from understudy.methods import find_method
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy
from understudy.testing import ContractViolation, check_speaker

STATE, TASK = "observation.state", "observation.task"


def play(lengths=(10, 6), **metadata) -> Dataset:
    """Long episodes whose state counts the steps over all of them."""
    def episode(n, first):
        return Episode({STATE: first + np.arange(n + 1, dtype=np.float32)[:, None],
                        "action": first + np.arange(n, dtype=np.float32)[:, None],
                        "timestamp": 0.1 * np.arange(n)}, {**metadata, "number": 7})
    return Dataset([episode(n, 100 * i) for i, n in enumerate(lengths)], {"fps": 10, "path": "play"})


@pytest.mark.parametrize("operation, pieces", [
    (Cut(every=4), [(0, 0, 4), (0, 4, 8), (0, 8, 10), (1, 0, 4), (1, 4, 6)]),
    (Cut(every=5), [(0, 0, 5), (0, 5, 10), (1, 0, 5), (1, 5, 6)]),
    (Cut((7, 2)), [(0, 0, 2), (0, 2, 7), (0, 7, 10), (1, 0, 2), (1, 2, 6)]),
    (Cut((8,)), [(0, 0, 8), (0, 8, 10), (1, 0, 6)]),
    (Cut((3, 1, 2), (1, 0, 1)), [(0, 0, 1), (0, 1, 10), (1, 0, 2), (1, 2, 3), (1, 3, 6)])])
def test_pieces_between_cuts_keep_all_steps_and_no_row_of_the_next_piece(operation, pieces, tmp_path):
    write_dataset(play(success=True), tmp_path / "play")
    write_view(tmp_path / "cut.json", tmp_path / "play", operation)
    for data in (operation.apply(play()), open_dataset(tmp_path / "cut.json")):
        assert [len(e) for e in data] == [stop - start for _, start, stop in pieces]
        for e, (episode, start, stop) in zip(data, pieces, strict=True):
            assert e.steps[STATE][:, 0].tolist() == [100 * episode + t for t in range(start, stop)]
            assert e.steps["action"][:, 0].tolist() == [100 * episode + t for t in range(start, stop)]
            assert e.steps["timestamp"].tolist() == pytest.approx(0.1 * np.arange(stop - start))
            whole = (start, stop) == (0, play()[episode].rows or len(play()[episode]))
            assert e.metadata.get("segment") == (None if whole else {"episode": episode, "start": start, "stop": stop})
    write_dataset(data, tmp_path / "copy.npz")
    assert [len(e) for e in open_dataset(tmp_path / "copy.npz")] == [stop - start for _, start, stop in pieces]


@pytest.mark.parametrize("operation, says", [
    (Cut((10,)), "no episode is cut: they have at most 10 steps"), (Cut(every=12), "no episode is cut"),
    (Cut(), "no episode is cut"),
    (Cut((0,)), "the first row at which an episode can be cut is 1"), (Cut(every=0), "is 1"),
    (Cut((6,), (1,)), "cut, episode 1: there is no row 6 to cut at; the episode has 6 steps"),
    (Cut((2,), (2,)), "cut, episodes: there is no episode 2; there are 0 to 1"),
    (Cut((2, 3), (1,)), "1 episodes for 2 rows")])
def test_cuts_that_do_not_fit_are_refused(operation, says):
    with pytest.raises(UserError, match=says):
        operation.apply(play())


FOUND = [[LabeledSegment(0, 4, "push"), LabeledSegment(2, 10, "lift it")], [LabeledSegment(3, 5, "push")]]


def test_each_segment_is_an_episode_and_segments_may_overlap():
    cut = cut_segments(play(), FOUND)
    assert [e.steps[STATE][:, 0].tolist() for e in cut] == [
        [0, 1, 2, 3, 4], [2, 3, 4, 5, 6, 7, 8, 9, 10], [103, 104, 105]]  # with the observation after the last action
    assert [e.steps["action"][:, 0].tolist() for e in cut][0::2] == [[0, 1, 2, 3], [103, 104]]
    assert cut[1].steps["timestamp"].tolist() == pytest.approx(0.1 * np.arange(8))  # counts from the first step
    assert [e.metadata["task"] for e in cut] == ["push", "lift it", "push"]
    assert cut[2].metadata == {"number": 7, "task": "push", "segment": {"episode": 1, "start": 3, "stop": 5}}
    assert cut.metadata == play().metadata and cut.lengths.tolist() == [4, 8, 2]
    words = cut.map(TaskText(8))[1].steps[TASK]
    assert words.shape == (9, 8) and bytes(words[0]).rstrip(b"\0") == b"lift it"


def test_steps_after_the_end_are_kept_where_there_are_some():
    cut = cut_segments(play(), FOUND, extra_steps=3)
    assert cut.lengths.tolist() == [7, 8, 3] and set(cut[0].steps["task"]) == {"push"}
    assert cut[0].metadata["segment"]["stop"] == 4  # where the task ended


def test_windows_stay_within_a_segment():
    data = cut_segments(play(), FOUND).map(TaskText(8))
    method = find_method("bc")
    policy = Policy(method.policy, data.features()).fit_statistics(data)
    assert len(policy.windows(data)) == 4 + 8 + 2
    packed = PackedColumns.from_episodes(data, [STATE, "action"])
    rows = packed.columns["action"].gather(np.array([0, 2]), np.array([[2, 3, 4], [0, 1, 2]]))
    assert rows[..., 0].tolist() == [[2, 3, 3], [103, 104, 104]]  # the last one is repeated, not the next of the play


def test_segments_of_files_are_read_when_they_are_asked_for(tmp_path):
    np.savez(tmp_path / "play.npz", observations=np.arange(20.0)[:, None], actions=-np.arange(20.0)[:, None],
             episode_ends=[10, 20])
    data = open_dataset(tmp_path / "play.npz").select([1])
    cut = cut_segments(data, [[LabeledSegment(2, 5, "go"), LabeledSegment(0, 3, "stay")]])
    assert cut.source.key and cut.source.key != cut_segments(data, [[LabeledSegment(2, 5, "on")]]).source.key
    assert cut[0].steps["action"][:, 0].tolist() == [-12, -13, -14]
    array, starts, rows = cut.column("action")
    assert [array[s:s + n, 0].tolist() for s, n in zip(starts, rows, strict=True)] == [[-12, -13, -14], [-10, -11, -12]]
    assert cut.fingerprint() != cut_segments(data, [[LabeledSegment(2, 5, "go"), LabeledSegment(0, 3, "no")]]
                                             ).fingerprint()


@pytest.mark.parametrize("segments, text", [
    ([[LabeledSegment(0, 11, "go")], []], "episode 0, segment 0: start=0 and stop=11 are not part of its 10 steps"),
    ([[], [LabeledSegment(0, 1, "go"), LabeledSegment(3, 3, "go")]], "episode 1, segment 1: start=3 and stop=3"),
    ([[LabeledSegment(-1, 3, "go")], []], "start=-1"), ([[LabeledSegment(0.5, 3, "go")], []], "whole numbers"),
    ([[LabeledSegment(0, 3, " ")], []], "episode 0, segment 0: task=' ' says nothing"),
    ([[LabeledSegment(0, 3, None)], []], "task=None says nothing"), ([[], []], "play: no episode has a segment"),
    ([[]], "segments of 1 episodes, and 2 episodes")])
def test_a_segment_outside_its_episode_is_an_error_that_names_it(segments, text):
    with pytest.raises(DataError, match=text):
        cut_segments(play(), segments)


def test_labels_of_people_are_metadata_of_the_long_episodes():
    data = play(segments=[[0, 4, "push"], [2, 6, "lift it"]])
    cut = CutSegments().apply(data)
    assert cut.lengths.tolist() == [4, 4, 4, 4] and "segments" not in cut[0].metadata  # they were of the long episode
    assert CutSegments(extra_steps=1).apply(data[:1]).lengths.tolist() == [5, 5]
    assert len(CutSegments().apply(play(segments=[]) + data)) == 4
    for segments, text in ((5, "episode 0, metadata 'segments': it is 5 and not a list"),
                           ("push", "it is 'push' and not"),
                           ([[0, 4]], r"episode 0, metadata 'segments', segment 0: \[0, 4\] is not a start, a stop"),
                           ([[0, 99, "push"]], "episode 0, segment 0: start=0 and stop=99")):
        with pytest.raises(DataError, match=text):
            CutSegments().apply(play(segments=segments))
    with pytest.raises(DataError, match="episode 2, metadata 'segments': it is missing; there are number"):
        CutSegments().apply(data + play())
    with pytest.raises(DataError, match="extra_steps is -1"):
        CutSegments(extra_steps=-1).apply(data)


def test_a_column_of_text_gives_a_segment_for_each_run():
    def with_column(column):
        return Dataset([play().map(lambda e: e.replace({"subtask": column[: len(e)]}))[0]])
    text = np.array(["a", "a", "", "", "b", "b", "a", "c", "c", "c"])
    cut = CutSegments(ColumnSegments()).apply(with_column(text))
    assert [(e.metadata["task"], e.metadata["segment"]["start"], len(e)) for e in cut] == [
        ("a", 0, 2), ("b", 4, 2), ("a", 6, 1), ("c", 7, 3)]
    with pytest.raises(DataError, match="episode 0, column 'words': it is missing; there are action, observation"):
        CutSegments(ColumnSegments("words")).apply(with_column(text))
    with pytest.raises(DataError, match="episode 0, column 'action': it has float32"):
        CutSegments(ColumnSegments("action")).apply(with_column(text))


@dataclass(frozen=True)
class Halves(SegmentDetector):
    """Two halves."""

    def detect(self, episode):
        half = len(episode) // 2
        return [LabeledSegment(0, half, "first"), LabeledSegment(half, len(episode), "second")]


def test_a_detector_of_your_own_is_a_part_of_a_method():
    method = find_method("interactive-language", column=None)
    assert config.load(config.dump(method)) == method
    data = training_data(play(segments=[[0, 4, "push"]]), method)
    assert data.lengths.tolist() == [4, 4] and bytes(data[0].steps[TASK][0]).rstrip(b"\0") == b"push"
    assert CutSegments(Halves()).apply(play())[3].steps["action"][:, 0].tolist() == [103, 104, 105]


def test_held_out_recordings_are_judged_by_their_own_segments(tmp_path, capsys):
    """Of six recordings of 12 steps one is held out. Its two segments have 3 and 7 steps, those of the others 5 and 6.
    """
    def episode(n, words):
        steps = {STATE: np.random.default_rng(n).normal(size=(13, 2)), "action": np.full((12, 1), n, np.float32)}
        return Episode({**steps, "subtask": np.array(words)}, {"number": n})
    held_out = episode(3, ["a"] * 3 + [""] * 2 + ["b"] * 7)
    data = [held_out if n == 3 else episode(n, ["a"] * 5 + [""] + ["b"] * 6) for n in range(6)]
    write_dataset(Dataset(data), tmp_path / "play", "lerobot")
    method = find_method("interactive-language")
    train(replace(method, learner=replace(method.learner, steps=2)), open_dataset(tmp_path / "play"), tmp_path / "run",
          val_fraction=[3])
    evaluate.main([str(tmp_path / "run"), str(tmp_path / "play"), "--json"])
    evaluation = json.loads(capsys.readouterr().out)
    assert (evaluation["origin"], evaluation["episodes"], evaluation["steps"]) == ("held out", [0, 1], 3 + 7)


# -- speakers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Echo(Actor):
    """Acts by the first byte of the instruction."""

    def start(self, obs, key):
        return {"first": obs[TASK][:, 0].clone()}

    def act(self, obs, state):
        return obs[TASK][:, :1].float().expand(-1, 2), {**state, "record": {"heard": obs[TASK][:, 0].clone()}}


def test_sentences_are_said_at_their_steps_and_again_from_the_start_of_each_episode():
    speaker = ScheduledSpeaker(((1, "a"), (3, "é")))
    env = make("particle", rows=2, limit=5)
    episodes = rollout(InstructedActor(Echo(), speaker, TaskText(2)), env, 5)
    for episode in episodes:
        sentences = [bytes(row).rstrip(b"\0").decode() for row in episode.steps[INSTRUCTION]]
        assert sentences == ["", "a", "a", "é", "é"][: len(episode)]
        assert episode.steps["heard"].tolist() == [0, 97, 97, 195, 195][: len(episode)]
    for steps in ((), ((3, "a"), (1, "b")), ((1, "a"), (1, "b")), ((-1, "a"),)):
        with pytest.raises(UserError, match="ScheduledSpeaker.sentences: the sentences are said at"):
            ScheduledSpeaker(steps)


def test_one_sentence_is_a_constant_column():
    env = make("particle", rows=3, limit=6)
    data = rollout(env.expert(), env, 4).map(
        lambda e: replace(e, metadata={**e.metadata, "segments": [[0, 4, "up"], [1, len(e), "down"]]}))
    method, text = find_method("interactive-language", column=None), TaskText()
    fit = fit_method(replace(method, learner=replace(method.learner, steps=5)), data, 0)
    actor = build_actor(fit.method, fit.modules, 3)  # plans for three rows in any environment, so rounding is equal
    constant = ObservationWrapper(actor, {TASK: torch.tensor(text.encode("up"))})
    spoken = InstructedActor(actor, ScheduledSpeaker(((0, "up"),)), text)
    for one, other in zip(rollout(constant, env, 5), rollout(spoken, make("particle", rows=2, limit=6), 5),
                          strict=True):
        assert np.array_equal(one.steps["action"], other.steps["action"])
    with pytest.raises(UserError, match="nothing gives the column 'observation.task'"):
        rollout(actor, env, 1)


@pytest.mark.parametrize("discrete", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_policy_follows_another_instruction_at_once(discrete):
    """In one long episode somebody goes left and right by turns, and the words of each step say where."""
    side = np.arange(400) // 5 % 2
    feature = Feature("int64", (1,), "discrete", num_classes=(4,)) if discrete else Feature("float32", (1,))
    data = Dataset([Episode({STATE: np.random.default_rng(0).normal(size=(401, 2)).astype(np.float32),
                             "action": (1 + 2 * side[:, None]).astype(feature.dtype),
                             "subtask": np.array(["go left", "go right"])[side]},
                            schema={STATE: Feature("float32", (2,)), "action": feature,
                                    "subtask": Feature("string", (), "string")})])
    method = find_method("interactive-language", data.features(), max_bytes=8)
    method = replace(method, learner=replace(method.learner, steps=200))
    assert len(training_data(data, method)) == 80
    speaker = ScheduledSpeaker(((0, "go left"), (2, "go right"), (3, "go left")))
    actor, actions = InstructedActor(fit_method(method, data, 0).actor, speaker, TaskText(8)), []
    obs = {STATE: torch.zeros(1, 2)}
    state = actor.start(obs, keys(0, [0]))
    for _ in range(4):
        action, state = actor.act(obs, state)
        actions.append(float(action[0, 0]))
    assert actions == pytest.approx([1, 1, 3, 1], abs=0.3)


def test_for_each_sentence_the_policy_acts_as_its_segments_do_on_average():
    """The mean is what minimizes the squared error. "a" covers the first 20 steps and "b" the steps 10 to 40, whose
    actions are 0 (10 steps), 3 (10 steps) and 6 (20 steps). The actions -30 of the rest are in no segment."""
    action = np.repeat([0.0, 3, 6, -30], (10, 10, 20, 20)).astype(np.float32)[:, None]
    data = Dataset([Episode({STATE: np.zeros((61, 1), np.float32), "action": action},
                            {"segments": [[0, 20, "a"], [10, 40, "b"]]})])
    method = find_method("interactive-language", column=None, max_bytes=1)
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((32,))),
                     learner=replace(method.learner, steps=100))
    speaker = ScheduledSpeaker(((0, "a"), (1, "b"), (2, "a")))
    actor, actions = InstructedActor(fit_method(method, data, 0).actor, speaker, TaskText(1)), []
    obs = {STATE: torch.zeros(1, 1)}
    state = actor.start(obs, keys(0, [0]))
    for _ in range(3):
        action, state = actor.act(obs, state)
        actions.append(float(action[0, 0]))
    assert actions == pytest.approx([1.5, 5, 1.5], abs=0.15)


def test_a_person_may_say_something_else_at_any_step():
    sentences = iter(["x", "x", "y", "z", "z", "z"])
    actor = InstructedActor(Echo(), LiveSpeaker(lambda: next(sentences)), TaskText(1))
    obs = {STATE: torch.zeros(3, 2)}
    state, heard = actor.start(obs, keys(0, range(3))), []
    assert state["inner"]["first"].tolist() == [120] * 3
    for _ in range(4):
        action, state = actor.act(obs, state)
        heard.append(chr(int(action[2, 1])))
    assert heard == ["x", "y", "z", "z"]


@dataclass(frozen=True)
class Odd(Speaker):
    """Says something that is no text for each row."""

    what: object

    def speak(self, obs, state):
        return self.what, state


@dataclass(frozen=True)
class Broken(Speaker):
    """Breaks one promise."""

    about: str

    def start(self, obs, key):
        return {"step": torch.zeros_like(key)}

    def speak(self, obs, state):
        sentences = [f"{x:.0f}" for x in obs[STATE][:, 0].tolist()]
        step = state["step"] + 1
        if self.about == "counts in place":
            step = state["step"].add_(1)
        if self.about == "mixes rows":
            sentences = [f"{obs[STATE].sum():.0f}"] * len(sentences)
        if self.about == "short":
            sentences = sentences[:1]
        if self.about == "tells the time":
            sentences = [f"{step.max()}"] * len(sentences)
        return sentences, {"step": step.float() if self.about == "other state" else step}


def test_the_contract_of_a_speaker():
    observations = [{STATE: torch.arange(3.0)[:, None] + step} for step in range(3)]
    check_speaker(ScheduledSpeaker(((0, "a"), (2, "b"))), observations)
    check_speaker(Broken(""), observations)
    for about, text in (("counts in place", "changed in place"), ("mixes rows", "depend on other rows"),
                        ("short", "one text to each of 3 rows"), ("other state", "keep its structure"),
                        ("tells the time", "a restarted row must continue")):
        with pytest.raises(ContractViolation, match=text):
            check_speaker(Broken(about), observations)


@pytest.mark.parametrize("what, text", [("go", "'go' to 2 rows"), (["go"], r"\['go'\] to 2 rows"),
                                        (["go", 5], "5 to 2 rows")])
def test_a_speaker_says_one_text_to_each_row(what, text):
    with pytest.raises(UserCodeError, match=f"Odd.speak: it said {text}\n"):
        InstructedActor(Echo(), Odd(what)).start({STATE: torch.zeros(2, 2)}, keys(0, range(2)))


def test_a_view_of_segments_is_made_by_a_command(tmp_path, capsys):
    data = Dataset([e.replace({"subtask": np.repeat(["a", "", "b"], (2, 4, 4))})
                    for e in play((10,), segments=[[0, 4, "push"], [2, 6, "lift it"]])])
    write_dataset(data, tmp_path / "play")
    for field, segments in (("segments", [("push", 4), ("lift it", 4)]), ("subtask", [("a", 2), ("b", 4)])):
        view = tmp_path / f"{field}.json"
        assert main(["view", "make", str(tmp_path / "play"), "--segments", field, "--out", str(view)]) == 0
        cut = open_dataset(view)
        assert [(e.metadata["task"], len(e)) for e in cut] == segments
        capsys.readouterr()
        assert main(["view", "show", str(view)]) == 0 and "segments" in capsys.readouterr().out
    assert main(["view", "show", str(tmp_path / "subtask.json")]) == 0
    assert 'cutsegments(detector=columnsegments(column="subtask")' in capsys.readouterr().out
    missing = ["view", "make", str(tmp_path / "play"), "--segments", "words", "--out", str(tmp_path / "none.json")]
    assert main(missing) == 2 and "column 'words'" in capsys.readouterr().err
    document = json.loads((tmp_path / "subtask.json").read_text())
    assert document["operations"] == [{"do": "cutsegments", "extra_steps": 0,
                                       "detector": {"do": "columnsegments", "column": "subtask"}}]
    document["operations"][0]["detector"]["do"] = "guess"
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="no operation 'guess'"):
        open_dataset(tmp_path / "other.json")
    with pytest.raises(UserError, match="a view cannot hold Halves"):
        write_view(tmp_path / "own.json", tmp_path / "play", CutSegments(Halves()))
    assert not (tmp_path / "own.json").exists()
