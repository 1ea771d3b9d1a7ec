"""Worlds and arms of the claims on conditioning are as they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from claims.conditioning import (
    composed_constraints,
    few_labels,
    interactive_language,
    language_attention,
    memory_pairs,
    thought_cloning,
    weakly_labeled_skills,
    which_instruction,
)

from evidence.worlds import named_places, sign_corridor
from understudy.data.episode import Dataset, Episode
from understudy.data.segments import CutSegments
from understudy.data.text_columns import ThoughtText
from understudy.evaluate.rollout import rollout
from understudy.policy import Policy
from understudy.testing import check_column_change, check_env, check_speaker

# -- 222 ----------------------------------------------------------------------------------------------------------


def test_the_plane_keeps_the_contract_and_its_expert_does_what_is_asked():
    check_env(composed_constraints.Plane)
    env = composed_constraints.Plane(50)
    episodes = rollout(composed_constraints.PlaneExpert(noise=0.0), env, 200, seed=3)
    assert all(e.metadata["success"] for e in episodes)
    asked = np.stack([np.append(e.steps["observation.side"][0], e.steps["observation.end"][0]) for e in episodes])
    _, counts = np.unique(asked, axis=0, return_counts=True)
    assert len(counts) == 4 and counts.min() > 35
    assert all(e.steps["next.reward"][-1] == pytest.approx(1 - len(e) / 12) for e in episodes)


def test_success_in_the_plane_is_to_go_the_way_that_was_asked_for():
    env = composed_constraints.Plane(4)
    state = {"observation.state": torch.tensor([[1.0, 0.4]] * 3 + [[0.5, 0.05]]),
             "observation.side": torch.tensor([[1.0], [-1.0], [1.0], [1.0]]),
             "observation.end": torch.tensor([[1.0], [1.0], [-1.0], [1.0]]),
             "simulator.state": torch.tensor([[1.0], [1.0], [1.0], [0.0]])}
    env.restore(torch.arange(4), state)
    out = env.step(torch.tensor([[1.0, 0.0]] * 3 + [[0.5, 0.0]]))
    assert out.info["success"].tolist() == [True, False, False, False], "the last one touches the pillar"
    assert out.terminated.all() and out.reward.tolist() == pytest.approx([11 / 12] * 3 + [0])


def test_demonstrations_tell_one_constraint_each():
    data = composed_constraints.SingleLabels(40).load(1)
    is_told = np.array([[e.steps[f"observation.{k}?"].mean() for k in ("side", "end")] for e in data])
    assert np.array_equal(is_told.sum(1), np.ones(len(data))) and set(is_told[:, 0]) == {0, 1}
    assert abs(is_told[:, 0].mean() - 0.5) < 0.02


def test_episodes_of_the_plane_are_of_any_quality():
    returns = [e.steps["next.reward"].sum() for e in composed_constraints.MixedEpisodes(200).load(1)]
    assert min(returns) == 0 and 0.1 < np.mean(np.array(returns) == 0) < 0.5 and 0.6 < max(returns) < 0.8


def test_a_plan_for_a_constraint_is_guided_by_it_alone():
    """Untrained weights: the rollouts of all arms differ, and the control is that of one constraint."""
    short = replace(composed_constraints.LEARNER, steps=2)
    experiment = composed_constraints.PLANE
    data, actions = composed_constraints.SingleLabels(20).load(1), {}
    for arm in experiment.arms:
        (option,) = arm.options
        option = replace(option, states=replace(option.states, learner=short))
        episodes = composed_constraints.roll_out(experiment, option, data, 1, 5, 1)
        actions[arm.name] = np.concatenate([e.steps["action"].ravel() for e in episodes])
    first = [v[:20].tobytes() for v in actions.values()]
    assert len(set(first)) == len(first)
    control = composed_constraints.CLAIM.negative_control.change(experiment)
    assert control.arms[0].options == experiment.arms[2].options and control.arms[1:] == experiment.arms[1:]


def test_the_named_object_is_known_by_both_words_alone_and_new_pairs_are_new():
    for new in (False, True):
        table = language_attention.ShapeTable(50, limit=12, new_pairs=new)
        check_env(lambda rows, new=new: language_attention.ShapeTable(rows, limit=12, n_names=5, new_pairs=new))
        table.reset(torch.arange(50), torch.arange(50))
        pairs, target = table.state["pairs"], table.state["target"]
        named = pairs[np.arange(50), target]
        same = pairs == named[:, None]
        assert (same.sum(1) == 2).all() and (same.all(2).sum(1) == 1).all()  # two of each word, one of both
        is_new = pairs[..., 0] == pairs[..., 1]
        assert np.array_equal(is_new, (np.arange(4) == target[:, None]) & new)
        assert np.array_equal(table.observe()["observation.task"], named)
    episodes = rollout(language_attention.ShapeTableExpert(noise=0), language_attention.ShapeTable(20), 40, seed=1)
    assert all(e.metadata["success"] for e in episodes)


def test_shuffled_sentences_are_those_of_other_demonstrations_and_nothing_else_changes():
    plain, shuffled = (language_attention.NamedObjects(40, shuffled=s).load(1) for s in (False, True))
    task = "observation.task"
    assert all(np.array_equal(a.steps[k], b.steps[k]) for a, b in zip(plain, shuffled, strict=True)
               for k in a.steps if k != task)
    sentences = [[tuple(e.steps[task][0]) for e in data] for data in (plain, shuffled)]
    assert sorted(sentences[0]) == sorted(sentences[1]) and sentences[0] != sentences[1]
    assert all((e.steps[task] == e.steps[task][0]).all() for e in shuffled)


def test_attention_is_counted_where_it_is_largest_at_the_named_object():
    scenes = language_attention.NamedObjects(20).load(1)
    method = language_attention.ARMS[0].options[0]
    policy = Policy(method.policy, scenes.features()).fit_statistics(scenes)
    with torch.no_grad():
        policy.encoder.logit_layer.weight.zero_()  # all logits are equal, and the first is the largest
    target = [float(e.steps["simulator.target"][0, 0] == 0) for e in scenes]
    assert language_attention.attends_named_object(policy, scenes) == target


def test_the_attention_that_is_measured_is_that_on_the_sign():
    scenes = sign_corridor.CorridorDemonstrations(10).load(1)
    method = memory_pairs.CORRIDOR.arms[0].options[0]
    policy = Policy(method.policy, scenes.features()).fit_statistics(scenes)
    with torch.no_grad():
        policy.net.trunk.encoder[0].self_attention.query_layer.weight.zero_()
        policy.net.trunk.encoder[0].self_attention.query_layer.bias.zero_()  # equal attention to all 14 tokens
    attention = memory_pairs.attention_to_sign(policy, scenes)
    assert attention == pytest.approx([1 / (sign_corridor.N_SIGNS + 2)] * 10)


# -- noise draws per observation ---------------------------------------------------------------------------------------


def test_one_episode_of_each_place_has_words_and_half_of_the_windows_are_from_these():
    task, presence = named_places.TASK, named_places.TASK + "?"
    plain, shuffled = (few_labels.LabeledPlay(200, shuffled=s).load(1) for s in (False, True))
    for data in (plain, shuffled):
        words = [int(e.steps[task][0, 0]) for e in data if e.steps[presence].all()]
        assert sorted(words) == list(range(8)) and sum(bool(e.steps[presence].any()) for e in data) == 8
        rates = [(e.steps[presence][0], float(e.steps["sampling_rate"].sum())) for e in data]
        for has_words in (True, False):
            np.testing.assert_allclose(sum(rate for k, rate in rates if k == has_words), 0.5, rtol=1e-4)
    for a, b in zip(plain, shuffled, strict=True):
        assert (a.steps[task] != b.steps[task]).all() == a.steps[presence].all()
        assert all(np.array_equal(a.steps[k], b.steps[k]) for k in a.steps if k != task)


def test_arms_without_goals_learn_from_the_episodes_with_words_alone():
    experiment = replace(few_labels.PLAY, source=few_labels.LabeledPlay(60))
    data, arm_measures = experiment.source.load(1), {}
    for arm in few_labels.ARMS:
        (option,) = arm.options
        short = replace(option, method=replace(option.method, learner=replace(option.method.learner, steps=2)))
        arm_measures[arm.name] = few_labels.prompted_success(experiment, short, data, 1, 10, 1)
    assert {name: set(measures) for name, measures in arm_measures.items()} == {
        "MDT": {"success", "goal success"}, "goals and words": {"success", "goal success"}, "words alone": {"success"}}


# -- thought cloning ---------------------------------------------------------------------------------------------------


def test_thoughts_name_the_stage_whose_turn_it_is():
    data = thought_cloning.ThinkingExpert(12).load(1)
    for e in data:
        thoughts = [str(thought) for thought in e.steps["thought"]]
        changes = [thoughts[0], *(b for a, b in zip(thoughts, thoughts[1:], strict=False) if a != b)]
        mission = bytes(e.steps["observation.task"][0]).rstrip(b"\0").decode()
        assert [thought.split()[-1] for thought in changes] == [stage.split()[-1] for stage in mission.split(", ")]
    orders = {tuple(thought_cloning.MissionOrder()(e).steps["observation.order"][0]) for e in data}
    assert orders <= {thought_cloning.ORDERS[n] for n in thought_cloning.SEEN}


def test_the_order_of_a_mission_is_the_same_while_acting():
    check_column_change(thought_cloning.MissionOrder(), thought_cloning.ThinkingExpert(4).load(1))


def test_exchanged_thoughts_are_those_of_the_next_demonstration():
    data = thought_cloning.ThinkingExpert(6).load(1)
    exchanged = thought_cloning.ExchangedThoughts().apply(data)
    for i, (one, other) in enumerate(zip(data, exchanged, strict=True)):
        assert len(other.steps["thought"]) == len(one)
        assert other.steps["thought"][0] == data[(i + 1) % 6].steps["thought"][0]
        assert all(np.array_equal(one.steps[k], other.steps[k]) for k in one.steps if k != "thought")
    assert thought_cloning.stretch_to(np.array([1, 2]), 5).tolist() == [1, 1, 1, 2, 2]


def test_behavior_cloning_has_as_many_parameters_as_thought_cloning():
    features = thought_cloning.MissionOrder()(thought_cloning.ThinkingExpert(2).load(1)[0])
    heard = ThoughtText("thought", thought_cloning.LONGEST)(features)
    features = ThoughtText("thought", thought_cloning.LONGEST, "thought.text")(heard).features()

    def size(*policies):
        return sum(p.numel() for policy in policies for p in Policy(policy, features).parameters())
    method = thought_cloning.clone_thoughts()
    thoughts = size(method.policy, method.stages[0].method.policy)
    assert (thoughts, size(thought_cloning.MISSIONS.arms[1].options[0].policy)) == (203_077, 202_229)


# -- 280 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_named", [0, 1, 3])
def test_the_zone_table_keeps_the_contract_and_its_expert_always_does_it(n_named):
    table = interactive_language.ZoneTable
    check_env(lambda rows: table(rows, limit=20, n_named=n_named))
    episodes = rollout(interactive_language.PlayExpert(noise=0, wander=0), table(20, 120, n_named), 40, seed=1)
    assert all(e.metadata["success"] == (n_named > 0) for e in episodes)
    goal = np.stack([e.steps["simulator.goal"][0] for e in episodes])
    first = interactive_language.zones_of_blocks(np.stack([e.steps["observation.environment_state"][0]
                                                           for e in episodes]
                                                          ).reshape(-1, 3, 2))
    assert ((goal > 0).sum(1) == n_named).all() and (goal != first).all()


def test_sentences_say_their_goal_and_are_read_again():
    goals = [(0, 0, 0), (1, 0, 0), (0, 2, 3), (3, 1, 2)]
    sentences = ["nothing", "red left", "green middle, blue right", "red right, green left, blue middle"]
    assert [interactive_language.sentence(g) for g in goals] == sentences
    text = interactive_language.TEXT
    assert [interactive_language.parse_sentence(bytes(text.encode(s))) for s in sentences] == goals
    data = Dataset([Episode({"action": np.zeros((2, 1), np.float32), "next.reward": np.zeros(2, np.float32),
                             text.into: np.stack([text.encode(s) for s in sentences[1:]])})])
    check_column_change(interactive_language.SentenceGoal(), data)


def carried(*moves) -> Episode:
    """A hand that carries blocks one after the other: (block, x) each. It approaches for two steps, from above."""
    blocks, rows = np.array([[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]], np.float32), []
    for block, x in moves:
        y = blocks[block, 1]
        rows += [((blocks[block, 0], y + d), 0.0, blocks.copy()) for d in (0.16, 0.08, 0.0)]
        rows.append(((blocks[block, 0], y), 1.0, blocks.copy()))
        blocks[block, 0] = x
        rows += [((x, y), closed, blocks.copy()) for closed in (1.0, 0.0)]
    rows.append(((0.5, 0.0), 0.0, blocks.copy()))
    hand, closed, at = zip(*rows, strict=True)
    return Episode({"observation.state": np.column_stack([hand, closed]).astype(np.float32),
                    "observation.environment_state": np.stack(at).reshape(-1, 6),
                    "action": np.zeros((len(rows) - 1, 3), np.float32)}, {"seed": 1, "number": 0})


def test_events_are_found_where_a_block_gets_into_another_zone():
    episode = carried((0, 0.5), (1, 0.6), (2, 0.1), (1, 0.1), (1, 0.9), (0, 0.1))  # the second stays in its zone
    segments = interactive_language.MovedBlocks((1, 3)).detect(episode)
    assert [(s.start, s.stop, s.task) for s in segments] == [
        (0, 5, "red middle"), (11, 17, "blue left"), (17, 23, "green left"), (24, 29, "green right"),
        (29, 35, "red left"), (0, 23, "red middle, green left, blue left")]
    windows = interactive_language.RandomWindows().detect(episode)
    assert [w.stop - w.start for w in windows] == [5, 6, 6, 5, 6]
    for w in windows:  # it tells what ended in it
        assert any(s.task == w.task and w.start < s.stop <= w.stop for s in segments[:5])


def test_long_labels_have_as_many_words_as_short_ones():
    play = interactive_language.PlayEpisodes(20).load(1)
    short, long = (CutSegments(interactive_language.MovedBlocks((n,))).apply(play) for n in (1, 3))
    assert 330 < len(short) < 400 and 0.9 < 3 * len(long) / len(short) <= 1
    permuted = interactive_language.PermutedTasks().apply(short)
    before, after = ([e.metadata["task"] for e in short], [str(e.steps["task"][0]) for e in permuted])
    assert sorted(before) == sorted(after) and before != after


def test_a_speaker_watches_the_scene_and_another_is_late():
    obs = {"observation.state": torch.tensor([[0.1, 0.3, 0.0]]), "simulator.goal": torch.tensor([[2, 2, 1]]),
           "observation.environment_state": torch.tensor([[0.1, 0.2, 0.5, 0.5, 0.9, 0.8]])}
    whole, live = interactive_language.WholeGoalSpeaker(), interactive_language.WatchingSpeaker()
    assert whole.speak(obs, {})[0] == ["red middle, green middle, blue left"]
    assert live.speak(obs, {})[0] == ["red middle"]  # the nearest that is wrong; green is right
    holding = {**obs, "observation.state": torch.tensor([[0.9, 0.8, 1.0]])}
    assert live.speak(holding, {})[0] == ["blue left"]
    late = interactive_language.DelayedSpeaker(2)
    episodes = rollout(interactive_language.PlayExpert(), interactive_language.ZoneTable(3, 60, 3), 3)
    observations = [{k: torch.stack([torch.as_tensor(e.steps[k][t]) for e in episodes]) for k in obs}
                    for t in range(0, 25, 4)]
    for speaker in (whole, live, late):
        check_speaker(speaker, observations)
    state, spoken = late.start(obs, torch.zeros(1, dtype=torch.int64)), []
    for observations in (obs, holding, holding, obs, obs):
        words, state = late.speak(observations, state)
        spoken += words
    assert spoken == ["red middle"] * 3 + ["blue left"] * 2


# -- 309 ----------------------------------------------------------------------------------------------------------


def test_named_things_keep_the_contract_and_touching_another_fails():
    check_env(lambda rows: weakly_labeled_skills.NamedThings(rows, limit=12))
    env = weakly_labeled_skills.NamedThings(50)
    episodes = rollout(weakly_labeled_skills.NamedThingsExpert(noise=0), env, 400, seed=1)
    assert all(e.metadata["success"] for e in episodes)
    env = weakly_labeled_skills.NamedThings(2)
    env.reset(torch.arange(2), torch.arange(2))
    env.state["named"] = np.array([3, 4])
    env.state["at"] = env.state["things"][:, 3].copy()  # both hands touch the thing 3
    out = env.step(torch.zeros(2, 2))
    assert out.info["success"].tolist() == [True, False] and out.terminated.tolist() == [True, True]


def test_two_episodes_of_each_word_have_it_and_the_control_makes_all_wrong():
    task = weakly_labeled_skills.TASK
    plain, exchanged = (weakly_labeled_skills.FewWords(120, 2, shuffled).load(1) for shuffled in (False, True))
    labeled_mask = weakly_labeled_skills.has_words(plain)
    assert np.array_equal(labeled_mask, weakly_labeled_skills.has_words(exchanged))
    words = [int(e.steps[task][0, 0]) for e in plain.select(np.flatnonzero(labeled_mask))]
    assert sorted(words) == sorted(2 * list(range(6)))
    for a, b, labeled in zip(plain, exchanged, labeled_mask, strict=True):
        assert (a.steps[task] != b.steps[task]).all() == labeled
        assert all(np.array_equal(a.steps[k], b.steps[k]) for k in a.steps if k != task)


def test_a_latent_is_that_of_the_most_similar_episode_with_the_word():
    nearest = weakly_labeled_skills.NearestLatent(
        torch.tensor([0, 0, 1]), torch.tensor([[0.0, 0], [1, 0], [0.9, 0]]), torch.tensor([[1.0], [2], [3]]))
    state = torch.tensor([[0.9], [0.2], [0.9]])
    obs = {weakly_labeled_skills.STATE: state, weakly_labeled_skills.AROUND: torch.zeros(3, 1),
           weakly_labeled_skills.TASK: torch.tensor([[0], [0], [1]])}
    assert nearest.act(obs, {})[0].flatten().tolist() == [2, 1, 3]


def test_a_classifier_of_few_episodes_names_most_of_the_others():
    data = weakly_labeled_skills.FewWords(120, 2).load(1)
    has_word = weakly_labeled_skills.has_words(data)
    predictions = weakly_labeled_skills.predicted_words(data.select(np.flatnonzero(has_word)), data, 0)
    right = predictions[:, 0] == [int(e.steps[weakly_labeled_skills.TASK][0, 0]) for e in data]
    assert right[~has_word].mean() > 0.8


def test_arms_learn_from_the_episodes_that_they_name(monkeypatch):
    experiment = replace(weakly_labeled_skills.FEW, source=weakly_labeled_skills.FewWords(40, 2))
    data, n_episodes, measures = experiment.source.load(1), {}, {}
    train = weakly_labeled_skills.train_once
    for part in weakly_labeled_skills.CLAIM.parts:
        for arm in part.experiment.arms:
            option, name = arm.options[0], arm.name

            def train_shortly(experiment, method, learned_from, seed, name=name):
                has_word = weakly_labeled_skills.has_words(learned_from)
                n_episodes[name] = (len(learned_from), int(has_word.sum()))
                return train(experiment, method, learned_from, seed)
            monkeypatch.setattr(weakly_labeled_skills, "train_once", train_shortly)
            stages = tuple(replace(s, method=replace(s.method, learner=replace(s.method.learner, steps=2)))
                           for s in option.method.stages)
            learner = replace(option.method.learner, steps=1)
            short = replace(option, method=replace(option.method, stages=stages, learner=learner))
            successes = weakly_labeled_skills.instruction_success(experiment, short, data, 1, 10, 1)
            measures[name] = set(successes)
    n, words = len(data), {"success"}
    assert n_episodes == {"GROOT-2": (n, 12), "labeled": (12, 12), "all words": (n, n), "nearest latents": (n, 0),
                          "pseudo-labels": (n, n), "GROOT-2, labeled": (12, 12), "GROOT-2, beta 1": (n, 12)}
    assert measures == {
        "GROOT-2": {*words, "demonstration success"}, "labeled": words, "all words": words, "nearest latents": words,
        "pseudo-labels": {*words, "right words"}, "GROOT-2, labeled": {*words, "demonstration success"},
        "GROOT-2, beta 1": {*words, "demonstration success"}}


# -- 113, 272 and 280 in one world --------------------------------------------------------------------------------


def test_the_instructed_table_says_the_whole_goal_and_the_block_that_a_watching_speaker_names():
    check_env(which_instruction.InstructedTable)
    env = which_instruction.InstructedTable(20)
    episodes = rollout(interactive_language.PlayExpert(noise=0.0, wander=0), env, 20, seed=2)
    assert all(e.metadata["success"] for e in episodes)
    for episode in episodes:
        mission, words = (episode.steps[k][:-1] for k in (which_instruction.MISSION, which_instruction.WORDS))
        assert ((mission > 0).sum(1) == 2).all() and ((words > 0).sum(1) == 1).all()
        assert np.array_equal(words, np.where(words > 0, mission, 0)) and len(np.unique(words, axis=0)) == 2


def test_labels_of_runs_say_which_block_the_hand_holds_and_where_the_blocks_lie_at_the_end():
    for run in which_instruction.AnnotatedRuns(2, 12).load(1):
        state, blocks = (np.asarray(run.steps[k]) for k in (which_instruction.STATE, which_instruction.BLOCKS))
        at, number, words = blocks.reshape(len(blocks), 3, 2), run.steps["block"][:, 0], run.steps["event"]
        mission = run.steps[which_instruction.MISSION]
        end = interactive_language.zones_of_blocks(at[-1])
        assert (mission == mission[0]).all() and np.array_equal(mission[0], np.where(mission[0] > 0, end, 0))
        holds = state[:-1, 2] > 0.5
        assert holds.any() and np.array_equal(np.linalg.norm(at - state[:, None, :2], axis=2)[:-1][holds].argmin(1),
                                              number[holds])
        assert np.array_equal(words, mission[:-1] * np.eye(3, dtype=int)[number]) and len(set(number)) == 2
        nearby = run.steps[which_instruction.OBJECTS]
        assert np.allclose(nearby[..., :2] + state[:, None, :2], at, atol=1e-6)


def test_exchanged_labels_are_those_of_the_next_run_and_nothing_else_changes():
    data = which_instruction.AnnotatedRuns(2, 5).load(1)
    for i, (one, other) in enumerate(zip(data, which_instruction.ExchangedBlocks().apply(data), strict=True)):
        assert {k for k in one.steps if not np.array_equal(one.steps[k], other.steps[k])} == {"block"}
        following = data[(i + 1) % 5].steps["block"]
        last = (len(one) - 1) * len(following) // len(one)
        assert np.array_equal(other.steps["block"][[0, -1]], following[[0, last]])
        assert len(other.steps["block"]) == len(one)
