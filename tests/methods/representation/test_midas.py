"""Prompts of words and objects: the encoder that reads them, and prompts that show the motion of an episode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.mean_attention import attend_evenly

from understudy.core import DataError, Feature, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.methods.representation.midas import AddMotionPrompts, MotionPrompt, MultimodalPromptEncoder
from understudy.nets.transformer import Transformer
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_column_change, check_encoder

ENCODER = MultimodalPromptEncoder(width=16)
OBJECTS, WORDS, PROMPT = ENCODER.columns
FEATURES = {OBJECTS: Feature("float32", (3, 2)), WORDS: Feature("int64", (7,), "discrete", num_classes=(4,) * 7),
            PROMPT: Feature("float32", (7, 2))}


def observation(words=(1, 0, 2, 0, 0, 0, 0)):
    """One window: word, object, word, object, and three positions of padding."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.zeros(1, 1, 7, 2)
    prompt[0, 0, [1, 3]] = torch.randn(2, 2, generator=generator)
    return {OBJECTS: torch.randn(1, 1, 3, 2, generator=generator), WORDS: torch.tensor([[list(words)]]), PROMPT: prompt}


def build(**options):
    torch.manual_seed(0)
    return replace(ENCODER, **options).build(FEATURES, 1).eval()


@pytest.mark.parametrize("options", [{}, {"residual": False}, {"depth": 0}, {"depth": 2, "heads": 2}])
def test_the_encoder_keeps_the_contract(options):
    check_encoder(replace(ENCODER, **options), FEATURES)


def test_positions_are_words_objects_or_padding():
    obs, net = observation(), build()
    context = net(obs)
    assert context.tokens.shape == (1, 7 + 3, 16)
    assert context.mask[0].tolist() == [True, True, True, True, False, False, False, True, True, True]
    hidden = {**obs, WORDS + "?": torch.zeros(1, 1, dtype=torch.bool)}
    assert net(hidden).mask[0, :7].tolist() == [False, True, False, True, False, False, False]
    hidden[PROMPT + "?"] = torch.zeros(1, 1, dtype=torch.bool)
    assert not net(hidden).mask[0, :7].any() and net(hidden).tokens.isfinite().all()


def test_padding_changes_nothing_and_every_part_of_the_prompt_matters():
    obs, net = observation(), build()
    before = net(obs).tokens
    for place in (1, 3):  # at a word, the features of objects are not read
        moved = {**obs, PROMPT: obs[PROMPT].clone()}
        moved[PROMPT][0, 0, place] += 1
        assert not torch.allclose(net(moved).tokens[:, :1], before[:, :1])  # the first word reads the objects
        assert torch.equal(net(moved).tokens[:, 7:], before[:, 7:])  # the scene does not
    at_word = {**obs, PROMPT: obs[PROMPT].clone()}
    at_word[PROMPT][0, 0, 2] = 5.0
    assert torch.equal(net(at_word).tokens, before)
    assert not torch.allclose(net({**obs, WORDS: observation((3, 0, 2, 0, 0, 0, 0))[WORDS]}).tokens[:, 1], before[:, 1])


def test_the_residual_adds_the_embedding_of_objects_and_nothing_to_words():
    obs, with_residual, without = observation(), build(), build(residual=False)
    added = (with_residual(obs).tokens - without(obs).tokens)[0]
    expected = with_residual.object_layers(obs[PROMPT][0, 0, [1, 3]])
    assert torch.allclose(added[[1, 3]], expected, atol=1e-5) and expected.abs().max() > 0.01
    assert not added[[0, 2, 4, 5, 6, 7, 8, 9]].any()
    sizes = [sum(p.numel() for p in net.parameters()) for net in (with_residual, without)]
    assert sizes[0] == sizes[1]


def test_tokens_worked_out_by_hand():
    """Objects are embedded as (1, -1), and the words as (1, 3) and (5, 1). Normalized, the four are (-1, 1) and three
    times (1, -1), whose mean (0.5, -0.5) the block adds to each. Objects alone get their embedding once more, after the
    last normalization."""
    net = build(width=2, heads=1)
    attend_evenly(net)
    with torch.no_grad():
        for weights in (net.object_layers[0][0].weight, net.object_layers[0][2].weight):
            torch.nn.init.eye_(weights)
        for weights in (net.object_layers[0][0].bias, net.object_layers[0][2].bias, net.position, net.scene_position):
            torch.nn.init.zeros_(weights)
        net.word_embedding.weight[1:3] = torch.tensor([[1.0, 3.0], [5.0, 1.0]])
        net.norm.weight.fill_(3.0)
    obs = observation()
    obs[PROMPT][0, 0, [1, 3]] = torch.tensor([[19.0, 15.0], [18.0, 10.0]])
    obs[OBJECTS][0, 0] = torch.tensor([[19.0, 15.0], [10.0, 30.0], [12.0, 8.0]])
    for norm, prompt in ((torch.nn.Identity(), [[1.5, 2.5], [2.5, -2.5], [5.5, 0.5], [2.5, -2.5]]),
                         (net.norm, [[-3, 3], [4, -4], [3, -3], [4, -4]])):
        net.norm = norm
        tokens = net(obs).tokens[0]
        torch.testing.assert_close(tokens[:4], torch.tensor(prompt).float(), atol=1e-4, rtol=0)
        torch.testing.assert_close(tokens[7:], torch.tensor([[1.0, -1], [-1, 1], [1, -1]]), atol=1e-4, rtol=0)


def test_one_network_embeds_objects_of_prompt_and_scene():
    obs, net = observation(), build(depth=0)
    obs[OBJECTS][0, 0, 0] = obs[PROMPT][0, 0, 1]
    embedded = net(obs).tokens[0, 7] - net.scene_position[0, 0]
    assert torch.allclose(embedded, net.object_layers(obs[PROMPT][0, 0, 1]), atol=1e-6)


def test_an_unknown_word_is_a_word_without_a_meaning():
    net = build()
    unknown = net(observation((9, 0, 2, 0, 0, 0, 0)))
    assert unknown.mask[0, 0] and unknown.tokens.isfinite().all()
    assert torch.equal(unknown.tokens, net(observation((-1, 0, 2, 0, 0, 0, 0))).tokens)


@pytest.mark.parametrize("features,problem", [
    ({OBJECTS: FEATURES[OBJECTS], WORDS: FEATURES[WORDS]}, "does not read a column 'observation.prompt.objects'"),
    ({**FEATURES, "observation.state": Feature("float32", (2,))}, "does not read the column 'observation.state'"),
    ({**FEATURES, WORDS: Feature("float32", (7,))}, "does not have one class"),
    ({**FEATURES, PROMPT: Feature("float32", (7, 3))}, r"shape \(7, 3\) and those of the scene \(3, 2\)"),
])
def test_columns_that_do_not_fit_are_named(features, problem):
    with pytest.raises(UserError, match=problem):
        ENCODER.build(features, 1)


def test_a_codec_that_scales_each_place_is_refused():
    features = {**FEATURES, "action": Feature("float32", (2,))}
    config = PolicyConfig(Regression(), Transformer(16, 1), ENCODER)
    with pytest.raises(UserError, match="scale each row of 'observation.objects'"):
        Policy(config, features)
    Policy(replace(config, codec=Normalizer(unscaled=(OBJECTS, PROMPT))), features)


# -- the prompt of inverse dynamics ----------------------------------------------------------------------------------


def episode(length=2, words=(3, 0, 0, 0, 0, 0, 0)) -> Episode:
    objects = np.arange((length + 1) * 6, dtype=np.float32).reshape(length + 1, 3, 2)
    return Episode({OBJECTS: objects, WORDS: np.tile(words, (length + 1, 1)),
                    PROMPT: np.ones((length + 1, 7, 2), np.float32), "action": np.zeros((length, 1), np.float32)},
                   schema=FEATURES)


def test_the_prompt_shows_frames_of_the_same_episode():
    prompted = MotionPrompt(word=2, n_frames=2)(episode(4))
    assert np.array_equal(prompted.steps[WORDS], np.tile([2, 0, 0, 0, 0, 0, 0], (5, 1)))
    first, last = episode(4).steps[OBJECTS][[0, -1]]
    assert np.array_equal(prompted.steps[PROMPT][3], np.concatenate([np.zeros((1, 2)), first, last]))
    assert prompted.features() == {**FEATURES, "action": Feature("float32", (1,))} and len(prompted) == 4
    assert np.array_equal(prompted.steps[OBJECTS], episode(4).steps[OBJECTS])


def test_frames_are_evenly_spaced_and_a_short_episode_shows_all():
    wide = {**FEATURES, WORDS: Feature("int64", (10,), "discrete", num_classes=(4,) * 10),
            PROMPT: Feature("float32", (10, 2))}

    def prompt(length):
        steps = {**episode(length).steps, WORDS: np.zeros((length + 1, 10), int),
                 PROMPT: np.ones((length + 1, 10, 2), np.float32)}
        return MotionPrompt(n_frames=3)(Episode(steps, schema=wide)).steps[PROMPT][0]
    assert prompt(4)[1:, 0].tolist() == [0, 2, 4, 12, 14, 16, 24, 26, 28]  # frames 0, 2 and 4
    assert prompt(1)[1:, 0].tolist() == [0, 2, 4, 6, 8, 10, 0, 0, 0]  # both frames, and padding


def test_a_prompt_that_does_not_fit_is_refused():
    check_column_change(MotionPrompt(n_frames=2), Dataset([episode()]))
    with pytest.raises(DataError, match="3 frames of 3 objects need 10 positions, but a prompt has 7"):
        MotionPrompt()(episode())
    with pytest.raises(DataError, match="no column 'observation.scene'"):
        MotionPrompt("observation.scene")(episode())


def test_episodes_are_added_with_the_prompt_of_their_own_motion():
    data = Dataset([episode(), episode()])
    both = AddMotionPrompts(MotionPrompt(n_frames=2)).apply(data)
    assert len(both) == 4 and both.steps == 2 * data.steps
    for i in range(2):
        assert np.array_equal(both[i].steps[WORDS], data[i].steps[WORDS])
        assert np.array_equal(both[2 + i].steps[PROMPT], MotionPrompt(n_frames=2)(data[i]).steps[PROMPT])
    named_method = find_method("midas", data.features(), keep_motions=True)
    assert named_method.transforms == (AddMotionPrompts(named_method.stages[0].method.transforms[0]),)
    assert find_method("midas", data.features()).transforms == ()


# -- the method ------------------------------------------------------------------------------------------------------


def test_the_second_stage_starts_from_the_weights_of_the_first():
    """The first stage learns to read the frames of a motion, the second goes on with the prompts of the data."""
    rng = np.random.default_rng(0)

    def reach():
        objects = np.stack([np.tile(np.append(rng.uniform(-1, 1, 1), 1), (1, 1)) for _ in range(2)]).astype("float32")
        words = np.tile([2, 0, 0], (2, 1))
        return Episode({"observation.objects": objects, "observation.prompt.words": words,
                        "observation.prompt.objects": np.zeros((2, 3, 2), np.float32), "action": objects[1:, 0, :1]},
                       schema={"observation.prompt.words": Feature("int64", (3,), "discrete", num_classes=(3,) * 3)})
    data = Dataset([reach() for _ in range(300)])
    method = find_method("midas", data.features(), width=16, depth=1, n_frames=2, steps=300)
    (stage,) = method.stages
    first = fit_method(stage.method, data, 0)
    prompted = [stage.method.transforms[0](episode) for episode in data[:50]]
    error = np.abs(act(first.policy, prompted) - [e.steps["action"][0, 0] for e in prompted])
    assert error.mean() < 0.2  # of 2, and 1/3 on average for the mean of all actions
    none = replace(method, learner=replace(method.learner, steps=0))
    second = fit_method(none, data, 0, stages={"inverse_dynamics": first})
    assert np.array_equal(act(second.policy, prompted), act(first.policy, prompted))


def act(policy, episodes) -> np.ndarray:
    """The first action of each episode."""
    obs = {name: torch.from_numpy(np.stack([e.steps[name][:1] for e in episodes])) for name in ENCODER.columns}
    return policy.plan(obs, torch.zeros(len(episodes), *policy.noise_shape))[:, 0, 0].detach().numpy()
