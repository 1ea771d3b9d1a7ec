"""Goals that are given in several ways: one token, one goal at a time, alignment and foresight in closed form."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from understudy.core import Batch, Context, Feature, UserError, keys
from understudy.data.augment import ModalityDropout
from understudy.data.column_changes import OptionalColumn
from understudy.data.episode import Dataset, Episode
from understudy.data.text_columns import TaskText
from understudy.data.window import Goal, Window
from understudy.execute.actor import ObservationWrapper
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.methods.generative.mdt import ContrastiveAlignment, Foresight, GoalEncoder
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_encoder, check_learner

STATE, GOAL, TASK = "observation.state", "observation.goal", "observation.task"
FEATURES = {STATE: Feature("float32", (2,)), GOAL: Feature("float32", (2,)),
            TASK: Feature("int64", (1,), "discrete", num_classes=(3,))}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# -- one goal at a time ---------------------------------------------------------------------------------------------


def test_one_of_the_given_goals_is_shown_each_equally_often():
    is_given = torch.ones(30_000, 2, dtype=torch.bool)
    obs = {"a": torch.zeros(30_000, 2, 1), "b": torch.zeros(30_000, 2, 1), "b?": is_given.clone(), "c": is_given}
    obs["b?"][:10_000] = False  # these windows have one goal
    out = ModalityDropout(("a", "b"))(obs, rng())
    visible = torch.stack([out["a?"], out["b?"]])
    assert (visible.sum(0) == 1).all() and (visible == visible[:, :, :1]).all()
    assert out["a?"][:10_000].all()
    assert stats.binomtest(int(out["a?"][10_000:, 0].sum()), 20_000, 0.5).pvalue > 1e-4
    assert out["c"] is is_given and obs["b?"][10_000:].all()  # what came in is not changed


def test_no_goal_is_made_up():
    hidden = torch.zeros(5, 1, dtype=torch.bool)
    obs = {"a": torch.zeros(5, 1, 2), "a?": hidden, "b": torch.zeros(5, 1, 2), "b?": hidden}
    out = ModalityDropout(("a", "b"))(obs, rng())
    assert not out["a?"].any() and not out["b?"].any()


# -- the token of the goal --------------------------------------------------------------------------------------------


def encoded(net, size=4, rows=2, **changes):
    obs = {STATE: torch.randn(size, rows, 2, generator=rng(1)), GOAL: torch.randn(size, rows, 2, generator=rng(2)),
           TASK: torch.randint(0, 3, (size, rows, 1), generator=rng(3))}
    obs |= {k.replace("_", "?"): torch.full((size, rows), v) if isinstance(v, bool) else v for k, v in changes.items()}
    with torch.no_grad():
        return net(obs)


def build_encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GoalEncoder(encoder=TokenEncoder(8)).build(FEATURES, 2).eval()


def test_encoder_contract():
    check_encoder(GoalEncoder(encoder=TokenEncoder(8)), FEATURES, rows=3)


def test_all_goals_write_the_same_token_and_hidden_ones_do_not_count():
    net, goal, task = build_encoder(), {GOAL + "_": True, TASK + "_": False}, {GOAL + "_": False, TASK + "_": True}
    by_goal, by_task, by_both = (encoded(net, **flags).tokens for flags in (goal, task, {}))
    assert by_goal.shape == (4, 4, 8)  # two rows of the state, then two of the goal
    assert torch.equal(by_goal[:, :2], by_task[:, :2])
    torch.testing.assert_close(by_both[:, 2:], (by_goal + by_task)[:, 2:] / 2)
    other = torch.randn(4, 2, 2, generator=rng(9))
    assert torch.equal(encoded(net, **task, **{GOAL: other}).tokens, by_task)
    assert not torch.allclose(encoded(net, **goal, **{GOAL: other}).tokens, by_goal)
    nothing = encoded(net, **{GOAL + "_": False, TASK + "_": False})
    assert nothing.mask[:, :2].all() and not nothing.mask[:, 2:].any() and (nothing.tokens[:, 2:] == 0).all()


def test_encoders_without_goals_or_without_anything_else_are_refused():
    with pytest.raises(UserError, match="does not read a column 'observation.words'"):
        GoalEncoder(("observation.words",)).build(FEATURES, 1)
    for goals in ((), tuple(FEATURES)):
        with pytest.raises(UserError, match="Some inputs of the policy must be goals"):
            GoalEncoder(goals).build(FEATURES, 1)


# -- alignment --------------------------------------------------------------------------------------------------------


def alignment(one, other, task, known, scale=1.0):
    """The loss where a window's context is a row of `one` with its goal, and a row of `other` with its words."""
    def context(obs, rng):
        assert (obs[GOAL + "?"] != obs[TASK + "?"]).any(), "one goal at a time"
        tokens = torch.where(obs[TASK + "?"].any(), torch.tensor(other), torch.tensor(one)).unsqueeze(1)
        return Context(tokens, torch.ones(len(tokens), 1, dtype=torch.bool))
    policy = SimpleNamespace(inputs=(STATE, GOAL, TASK), encoder=SimpleNamespace(width=len(one[0])), training=False,
                             augment=lambda obs, rng: obs, context=context)
    obs = {STATE: torch.zeros(len(one), 1, 2), GOAL: torch.zeros(len(one), 1, 2),
           TASK: torch.tensor(task).reshape(-1, 1, 1), TASK + "?": torch.tensor(known).reshape(-1, 1)}
    loss = ContrastiveAlignment(weight=2.0).build(policy)
    loss.projector = torch.nn.Identity()
    loss.log_scale.data.fill_(math.log(scale))
    return loss(policy, Batch(obs, torch.zeros(len(one), 1, 1), torch.ones(len(one), 1, dtype=torch.bool), {}, None),
                rng(), {})


def test_alignment_in_closed_form():
    """Contexts of unit vectors: the right pair has the similarity 1, and wrong ones 0."""
    unit = (3 * torch.eye(4)).tolist()  # lengths do not count
    loss = alignment(unit, unit, [0, 1, 2, 3], [True] * 4, scale=2.0)
    torch.testing.assert_close(loss, torch.full((4,), 2 * math.log(1 + 3 * math.exp(-2))))
    # the same words are no negatives of each other, and windows without words are left out
    loss = alignment(unit, unit, [0, 0, 2, 3], [True, True, True, False])
    one, two = 2 * math.log(1 + math.exp(-1)), 2 * math.log(1 + 2 * math.exp(-1))
    torch.testing.assert_close(loss, torch.tensor([one, one, two, 0.0]))


def test_alignment_reads_both_directions():
    """Window 0 is found by its words but not by its goal."""
    one, other = [[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]
    loss = alignment(one, other, [0, 1], [True, True])
    rows = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))]  # goals look for words
    columns = [math.log(2), math.log(2)]  # words look for goals
    torch.testing.assert_close(loss, torch.tensor(rows) + torch.tensor(columns))


def test_learner_contract():
    goals = (GOAL, "observation.word")
    policy = PolicyConfig(Regression(), MLP(8, 1), GoalEncoder(goals, TokenEncoder(8)), window=Window(2, 3),
                          inputs=(STATE, *goals), augmentations=(ModalityDropout(goals),))
    losses = ContrastiveAlignment(*goals), Foresight(hidden=(8,))
    check_learner(BehaviorCloning(batch_size=8, auxiliary_losses=losses), (policy,))


def test_alignment_of_a_column_that_the_policy_does_not_read_is_refused():
    policy = Policy(PolicyConfig(Regression()), {STATE: FEATURES[STATE], "action": Feature("float32", (1,))})
    with pytest.raises(UserError, match="does not read a column 'observation.goal'"):
        ContrastiveAlignment().build(policy)
    with pytest.raises(UserError, match="does not read numbers from a column 'observation.goal'"):
        Foresight(GOAL).build(policy)


# -- foresight --------------------------------------------------------------------------------------------------------


def test_foresight_is_the_squared_error_of_the_coded_column_after_the_chunk():
    steps = np.arange(12, dtype=np.float32)
    data = Dataset([Episode({STATE: np.stack([steps, -2 * steps], 1), "action": steps[:-1, None]})])
    policy = Policy(PolicyConfig(Regression(), window=Window(1, 3)), data.features()).fit_statistics(data)
    loss = Foresight(hidden=(4,), weight=3.0).build(policy)
    last = loss.predictor[-1]
    last.weight.data.zero_()
    last.bias.data.copy_(torch.tensor([0.5, -1.0]))
    batch = policy.windows(data, next_obs=True).gather(np.array([0, 5, 10]))
    after = np.minimum(np.array([0, 5, 10]) + 3, 11)  # the last observation stands for those after it
    coded = policy.codec.encode_obs({STATE: torch.from_numpy(data[0].steps[STATE][after])[:, None]})[STATE][:, 0]
    width = policy.encoder.tokens, policy.encoder.width
    captured = {"context": torch.randn(3, *width, generator=rng()), "context_mask": torch.ones(3, width[0]).bool()}
    expected = 3 * (torch.tensor([0.5, -1.0]) - coded).square().mean(1)
    torch.testing.assert_close(loss(policy, batch, rng(), captured), expected)


# -- columns that may be missing --------------------------------------------------------------------------------------


def test_what_is_given_is_marked_in_the_data_and_while_acting():
    steps = {STATE: np.zeros((3, 2), np.float32), "action": np.zeros((2, 1), np.float32)}
    data = Dataset([Episode(steps, {"task": task}) for task in ("go", "")])
    optional_data = data.map(TaskText(4, optional=True)).map(OptionalColumn(GOAL, like=STATE))
    assert [e.steps[TASK + "?"].tolist() for e in optional_data] == [[True] * 3, [False] * 3]
    assert optional_data[0].steps[GOAL + "?"].tolist() == [True] * 3 and GOAL not in optional_data[0].steps
    goals = (Goal(STATE, into=GOAL),)
    policy = PolicyConfig(Regression(), MLP(8, 1), GoalEncoder(encoder=TokenEncoder(8)), window=Window(goals=goals))
    method = Method(policy, learner=BehaviorCloning(1, 4), transforms=(TaskText(4, optional=True),
                                                                       OptionalColumn(GOAL, like=STATE)))
    actor, obs = fit_method(method, data, 0).actor, {STATE: torch.ones(2, 2)}
    words = torch.tensor(TaskText(4).encode("go").copy())

    def marks(actor):
        state = actor.start(obs, keys(0, range(2)))
        while "seen" not in state:
            state = next(v for k, v in state.items() if isinstance(v, dict) and v)
        return [bool(state["seen"][k + "?"].all()) for k in (GOAL, TASK)]
    assert marks(actor) == [False, False]
    assert marks(ObservationWrapper(actor, {TASK: words})) == [False, True]
    assert marks(ObservationWrapper(actor, {TASK: torch.zeros_like(words), GOAL: torch.ones(2)})) == [True, False]
    hidden = {GOAL: torch.ones(2), GOAL + "?": torch.tensor(False)}
    assert marks(ObservationWrapper(actor, hidden)) == [False, False]
