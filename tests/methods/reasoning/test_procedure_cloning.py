"""Procedure cloning: the search that is cloned, networks over grids, and policies that are repeated."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fixtures.grid_maze import GridMaze
from fixtures.learning import call_step

from understudy.core import Context, Feature, HeadSpec, Unsupported, UserError, keys
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.evaluate.rollout import rollout
from understudy.execute.planners import Hierarchical, IteratedPlanner
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import training_data
from understudy.learn.objectives.class_prediction import ClassPrediction
from understudy.methods import find_method
from understudy.methods.reasoning.procedure_cloning import PROCEDURE, GridSearch, ProcedureEpisodes, ProcedureResult
from understudy.nets.feed_forward import FeedForward
from understudy.nets.grid import GridEncoder, PerToken
from understudy.policy import Planner, Policy, PolicyConfig
from understudy.testing import check_column_change, check_encoder, check_head, check_trunk, random_dataset

GRID, CELL = "observation.grid", "observation.cell"
FEATURES = {GRID: Feature("int64", (3, 4), "discrete", num_classes=(3,) * 12),
            CELL: Feature("int64", (2,), "discrete", num_classes=(3, 4))}
CHOICE = Feature("int64", (1,), "discrete", num_classes=(4,))
#  goal . .      x runs down, y to the right
#  #    # .
#  .    . .
MAZE = np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]])


def episode(grid=MAZE, cells=((2, 0), (2, 1), (2, 2))) -> Episode:
    n = len(cells)
    schema = {GRID: Feature("int64", grid.shape, "discrete", num_classes=(3,) * grid.size),
              CELL: Feature("int64", (2,), "discrete", num_classes=grid.shape), "action": CHOICE}
    steps = {GRID: np.broadcast_to(grid, (n, *grid.shape)), CELL: np.array(cells), "action": np.ones((n - 1, 1), int)}
    return Episode(steps, {"seed": 3}, schema=schema)


# -- the search -------------------------------------------------------------------------------------------------------


def test_the_search_reaches_one_ring_more_at_each_step():
    up, to_left, down = 2, 3, 4  # 1 + the number of the move
    maps = GridSearch().search(MAZE)
    assert maps.shape == (7, 3, 3) and not maps[0].any()
    assert np.array_equal(maps[1], [[0, down, 0], [0, 0, 0], [0, 0, 0]])
    assert np.array_equal(maps[2], [[0, down, down], [0, 0, 0], [0, 0, 0]])
    assert np.array_equal(maps[3], [[0, down, down], [0, 0, to_left], [0, 0, 0]])
    assert np.array_equal(maps[-1], [[0, down, down], [0, 0, to_left], [up, up, to_left]])


def test_of_equally_short_ways_the_first_move_counts():
    maps = GridSearch().search(np.array([[0, 0], [0, 2]]))
    assert maps[-1].tolist() == [[1, 1], [2, 0]]  # from the corner both ways are as long: right (0) before up (1)
    swapped = GridSearch(moves=((0, 1), (1, 0))).search(np.array([[0, 0], [0, 2]]))
    assert swapped[-1].tolist() == [[1, 2], [1, 0]]


def test_cells_without_a_way_stay_undecided():
    maps = GridSearch().search(np.array([[2, 1, 0]]))
    assert len(maps) == 1 and not maps.any()


def test_columns_that_are_not_there_are_refused_before_the_procedure_is_learned():
    with pytest.raises(UserError, match="the data have no column 'observation.place'"):
        find_method("procedure_cloning", {**FEATURES, "action": CHOICE}, cell="observation.place")


def test_a_map_whose_goal_has_another_class_is_refused():
    other = Dataset([episode(np.where(MAZE == 2, 3, MAZE))])
    with pytest.raises(UserError, match="has the class 2 of the goal at any step; there are the classes 0, 1, 3"):
        ProcedureEpisodes(GridSearch()).apply(other)
    assert len(ProcedureEpisodes(GridSearch(goal=3)).apply(other)) == 2


def test_the_last_map_is_the_column_and_leads_to_the_goal():
    relabeled = ProcedureResult(GridSearch())(episode())
    assert np.array_equal(relabeled.steps[PROCEDURE][1], GridSearch().search(MAZE)[-1])
    feature = relabeled.features()[PROCEDURE]
    assert (feature.shape, feature.kind, feature.num_classes) == ((3, 3), "discrete", (5,) * 9)
    check_column_change(ProcedureResult(GridSearch()), Dataset([episode()]), (PROCEDURE,))
    with pytest.raises(UserError, match="no column 'observation.grid'"):
        ProcedureResult(GridSearch())(Episode({"action": np.zeros((2, 1))}))
    with pytest.raises(UserError, match="shape .3,., but a map of cells has .W, H."):
        ProcedureResult(GridSearch())(Episode({GRID: np.zeros((2, 3)), "action": np.zeros((2, 1))}))


def test_each_step_of_the_data_becomes_an_episode_of_the_search():
    data = ProcedureEpisodes(GridSearch()).apply(Dataset([episode(), episode()]))
    assert len(data) == 4 and data.lengths.tolist() == [7] * 4  # six rings, and a step that changes nothing
    thought = data[1]
    assert np.array_equal(thought.steps[PROCEDURE][:7], GridSearch().search(MAZE))
    assert np.array_equal(thought.steps[PROCEDURE][7], thought.steps[PROCEDURE][6])
    assert (thought.steps[CELL] == [2, 1]).all() and thought.metadata["seed"] == 3
    batch = Window(action_offset=1).windows(data, (GRID, PROCEDURE), PROCEDURE).gather(np.array([8]))
    assert torch.equal(batch.obs[PROCEDURE][0, 0], torch.tensor(GridSearch().search(MAZE)[1]))
    assert torch.equal(batch.action[0, 0].reshape(3, 3), torch.tensor(GridSearch().search(MAZE)[2]))


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [GridEncoder((4, 6)), GridEncoder((4, 6), CELL), GridEncoder((4, 4, 4), None, 3)])
def test_the_encoder_keeps_the_contract(encoder):
    features = FEATURES if encoder.at else {GRID: FEATURES[GRID]}
    two = {**features, "observation.map": Feature("int64", (3, 4), "discrete", num_classes=(2,) * 12)}
    check_encoder(encoder, features)
    check_encoder(encoder, two, rows=3)


def test_without_convolutions_a_token_is_the_class_of_its_cell():
    obs = {GRID: torch.arange(12).reshape(1, 1, 3, 4) % 3, CELL: torch.tensor([[[1, 2]]])}
    every = GridEncoder(()).build({GRID: FEATURES[GRID]}, 1)(obs)
    assert torch.equal(every.tokens[0], torch.eye(3)[torch.arange(12) % 3])
    at = GridEncoder((), CELL).build(FEATURES, 1)(obs)
    assert torch.equal(at.tokens[0], every.tokens[0, 6:7])  # row 1, column 2


def test_a_token_sees_its_neighborhood_and_nothing_else():
    torch.manual_seed(0)  # units of some weights are 0 for both grids
    net = GridEncoder((4, 4)).build({GRID: Feature("int64", (9, 9), "discrete", num_classes=(3,) * 81)}, 1)
    grid = torch.zeros(1, 1, 9, 9, dtype=torch.long)
    changed = grid.clone()
    changed[..., 4, 4] = 1
    differs = (net({GRID: grid}).tokens != net({GRID: changed}).tokens).any(-1).reshape(9, 9)
    positions = differs.nonzero()
    assert differs[4, 4] and positions.min() >= 2
    assert positions.max() <= 6  # two convolutions of 3 x 3: 2 cells each way


def test_wrong_columns_are_refused():
    with pytest.raises(UserError, match="classes of cells, columns of one shape"):
        GridEncoder().build(FEATURES, 1)  # the cell of the agent is no grid
    with pytest.raises(UserError, match="does not read a column 'observation.agent'"):
        GridEncoder(at="observation.agent").build(FEATURES, 1)


@pytest.mark.parametrize("trunk", [PerToken(FeedForward((8,))), PerToken(FeedForward(()))])
def test_a_trunk_for_each_token_keeps_the_contract(trunk):
    check_trunk(trunk, multiple=4)


def test_all_tokens_have_the_same_weights():
    net = PerToken(FeedForward(())).build(0, 6, 0, HeadSpec(2, 3, 5, token_obs_steps=(0,) * 3))
    tokens = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    context = Context(tokens, torch.ones(2, 3, dtype=torch.bool))
    out = net(torch.zeros(2, 2, 0), torch.zeros(2, 2, 0), context)  # (B, H, 3 tokens of 2 outputs)
    turned = net(torch.zeros(2, 2, 0), torch.zeros(2, 2, 0), Context(tokens.flip(1), context.mask))
    torch.testing.assert_close(turned, out.unflatten(-1, (3, 2)).flip(2).flatten(2))
    with pytest.raises(Unsupported, match="5 outputs and 0 inputs per step cannot be divided among 3 tokens"):
        PerToken(FeedForward()).build(0, 5, 0, HeadSpec(1, 3, 5, token_obs_steps=(0,) * 3))


def test_classes_of_many_components_have_the_loss_of_each_alone():
    """Components with equally many classes are computed at once."""
    check_head(PolicyConfig(Categorical(), FeedForward((8,)), window=Window(1, 2)),
               Feature("int64", (3,), "discrete", num_classes=(4, 4, 4)))
    features = {"observation.state": Feature("float32", (2,)),
                "action": Feature("int64", (2,), "discrete", num_classes=(3, 3))}
    policy = Policy(PolicyConfig(Categorical(), FeedForward((8,))), features)
    policy.fit_statistics(random_dataset(features))
    batch = policy.windows(random_dataset(features)).batch(6, 0)
    logits = policy.net.trunk(torch.zeros(6, 1, 0), torch.zeros(6, 1, 0), policy.context(batch.obs))
    expected = sum(torch.nn.functional.cross_entropy(logits[:, 0, 3 * i:3 * i + 3], batch.action[:, 0, i].long(),
                                                     reduction="none") for i in range(2))
    torch.testing.assert_close(policy.loss(batch, torch.Generator())[:, 0], expected)
    coded = Normalizer("identity").build(features, ("observation.state",), "action").encode(
        torch.tensor([[[2, 0]]]), {})
    assert coded.tolist() == [[[0, 0, 1, 1, 0, 0]]]


# -- repetition -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountTo(Planner):
    """Adds 1 until the number that is observed."""

    inputs = ("observation.limit", "observation.count")
    features = {"observation.limit": Feature("int64", (1,), "discrete", num_classes=(9,)),
                "observation.count": Feature("int64", (1,), "discrete", num_classes=(9,))}
    window, action_dim, device = Window(action_offset=1), 1, torch.device("cpu")

    def noise(self, key, count):
        return torch.zeros(len(key), 0)

    def plan(self, obs, noise, guides=()):
        return torch.minimum(obs["observation.count"] + 1, obs["observation.limit"]).float()


@pytest.mark.parametrize("n_steps, found", [(1, [1, 1, 0]), (3, [3, 2, 0]), (50, [7, 2, 0])])
def test_a_policy_is_repeated_until_nothing_changes(n_steps, found):
    planner = IteratedPlanner(CountTo(), "observation.count", n_steps)
    assert planner.inputs == ("observation.limit",)
    limit = torch.tensor([7, 2, 0]).reshape(3, 1, 1)
    noise = planner.noise(keys(0, range(3)), torch.zeros(3, dtype=torch.int64))
    plan = planner.plan({"observation.limit": limit}, noise)
    assert plan[:, 0, 0].tolist() == found
    one = planner.plan({"observation.limit": limit[1:2]}, noise[1:2])
    assert torch.equal(one, plan[1:2])  # rows do not depend on each other


def test_what_cannot_be_repeated_is_refused():
    with pytest.raises(UserError, match="and not the results 'observation.other'"):
        IteratedPlanner(CountTo(), "observation.other")
    other = type("Other", (CountTo,), {"window": Window()})()
    with pytest.raises(UserError, match="must predict one result from the one before"):
        IteratedPlanner(other, "observation.count")


# -- auxiliary prediction ---------------------------------------------------------------------------------------------


def aux_policy(loss: ClassPrediction):
    encoder = GridEncoder((6,), CELL)
    config = PolicyConfig(Categorical(), FeedForward((8,)), encoder, inputs=(GRID, CELL))
    return config, BehaviorCloning(steps=4, batch_size=8, auxiliary_losses=(loss,))


def test_an_auxiliary_prediction_is_the_likelihood_of_the_column_and_trains_the_encoder():
    loss = ClassPrediction("map", (2,) * 12, PerToken(FeedForward(())), 0.5, "cells", (12, 6))
    config, learner = aux_policy(loss)
    label = Feature("int64", (3, 4), "discrete", num_classes=(2,) * 12)
    data = random_dataset({**FEATURES, "action": CHOICE, "map": label}, episodes=2, steps=8)
    policy = Policy(config, data.features()).fit_statistics(data)
    built = learner.build(policy, 0, 4, data)
    batch = built.batch_sampler(data).batch(8, 0)
    function = built.nets.auxiliary_losses[0]
    for parameter in function.parameters():
        torch.nn.init.zeros_(parameter)
    auxiliary_loss = call_step(built, "policy_loss", batch, torch.Generator().manual_seed(0))[1]
    torch.testing.assert_close(auxiliary_loss, torch.full((8,), 0.5 * 12 * np.log(2)))  # all classes are equally likely
    for parameter in function.parameters():
        torch.nn.init.normal_(parameter)
    call_step(built, "policy_loss", batch, torch.Generator().manual_seed(0))[1].sum().backward()
    assert built.policy.encoder.layers[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in built.policy.net.parameters())


# -- the method -------------------------------------------------------------------------------------------------------


def test_the_method_finds_the_way_in_a_corridor_that_it_has_not_seen():
    env = GridMaze(20, levels=10)
    data = rollout(env.expert(), env, 20, seed=0)
    method = find_method("procedure-cloning", data.features(), channels=16, n_layers=2, n_steps=40)
    (stage,) = method.stages
    fast = replace(method.learner, batch_size=16, optimizer=replace(method.learner.optimizer, lr=5e-3))
    stage = replace(stage, method=replace(stage.method, learner=replace(fast, steps=250)))
    method = replace(method, stages=(stage,), learner=replace(fast, steps=150))
    result = fit_method(method, data, 0)
    planner = result.method.inference[0].over(result.policy, result.modules)
    assert isinstance(planner, Hierarchical) and isinstance(planner.high, IteratedPlanner)
    episodes = rollout(result.actor, GridMaze(20), 20, seed=5)
    assert np.mean([e.metadata["success"] for e in episodes]) >= 0.6  # an untrained one succeeds in 0.05
    assert PROCEDURE in training_data(data, result.method).features()
