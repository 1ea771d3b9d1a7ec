"""Goal-conditioned learners: the losses of OGBench's agents, exact values of a chain, and data that they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from folders import TESTS
from torch import nn

from understudy import make
from understudy.core import Batch, ConfigError, DataError, Feature, Unsupported, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Goal, Window
from understudy.evaluate.rollout import rollout
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.goal_conditioned import VALUE_GOAL
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.goal_conditioned.crl import CRL
from understudy.methods.goal_conditioned.gciql import GCIQL
from understudy.methods.goal_conditioned.gcivl import GCIVL
from understudy.methods.goal_conditioned.hiql import HIQL, NEAR_GOAL, SUBGOAL
from understudy.methods.goal_conditioned.qrl import QRL
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE, GOAL = "observation.state", "observation.goal"
NETWORKS = CriticConfig((8, 7))
OGBENCH = np.load(TESTS / "fixtures/ogbench_losses.npz")  # written by benchmarks/peers/ogbench_losses.py


UNSCALED = Normalizer(obs="identity")


def goal_policy(inputs=(STATE, GOAL), codec=UNSCALED) -> PolicyConfig:
    return PolicyConfig(Gaussian(std=1.0), FeedForward((8, 7)), ConcatEncoder(), codec, Window(goals=(Goal(STATE),)),
                        inputs)


def peer_batch() -> Batch:
    def column(name):
        return torch.from_numpy(OGBENCH[f"batch/{name}"])[:, None]
    goals = {GOAL: column("actor_goals"), VALUE_GOAL: column("value_goals")}
    return Batch({STATE: column("observations"), **goals}, column("actions"), torch.ones(6, 1, dtype=torch.bool),
                 {f"{VALUE_GOAL}.reached": column("rewards") == 0}, {STATE: column("next_observations"), **goals})


def peer_learner(name: str, learner, policy: PolicyConfig | None = None):
    """The learner of a peer's agent, before its weights are set, on data whose actions reach from -1 to 1."""
    rng = np.random.default_rng(0)
    columns = {STATE: rng.normal(size=(9, 3)), SUBGOAL: np.zeros((9, 4)), "action": rng.uniform(-1, 1, (8, 2))}
    columns["action"][:2] = [[-1, -1], [1, 1]]
    data = Dataset([Episode({k: v.astype(np.float32) for k, v in columns.items()})])
    policy = Policy(policy or goal_policy(), data.features()).fit_statistics(data)
    built = replace(learner, critic=NETWORKS, batch_size=6).build(policy, 0, 10, data)
    copy_weights(policy.net.layers, f"{name}/modules_{'low_' * (name == 'hiql')}actor/actor_net", "mean_net")
    return built


@torch.no_grad()
def copy_weights(layers, path: str, last: str | None = None, member: int | None = None) -> None:
    """Fills linear layers from the arrays of a network of OGBench, or of one member of an ensemble."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    names = [f"{path}/Dense_{i}" for i in range(len(linear))]
    if last is not None:
        names[-1] = f"{path.rpartition('/')[0]}/{last}"
    for layer, name in zip(linear, names, strict=True):
        kernel, bias = (torch.from_numpy(OGBENCH[f"{name}/{part}"]) for part in ("kernel", "bias"))
        layer.weight.copy_((kernel if member is None else kernel[member]).T)
        layer.bias.copy_(bias if member is None else bias[member])


def copy_ensemble(networks, path: str) -> None:
    for member, layers in enumerate(networks.layers):
        copy_weights(layers, path, member=member)


def assert_equal(loss, *names: str) -> None:
    """Compares a loss, whose rows are not reduced, with the sum of losses of OGBench."""
    terms = loss if isinstance(loss, tuple) else (loss,)
    value = sum(float(term.detach().double().mean()) for term in terms)
    assert value == pytest.approx(sum(float(OGBENCH[name]) for name in names), rel=1e-6, abs=1e-5)


def test_gcivl_has_the_losses_of_ogbench():
    learner, batch = peer_learner("gcivl", GCIVL()), peer_batch()
    copy_ensemble(learner.nets.value, "gcivl/modules_value/value_net")
    copy_ensemble(learner.nets.target.value, "gcivl/modules_target_value/value_net")
    assert_equal(call_step(learner, "value_loss", batch, torch.Generator()), "gcivl/value_loss")
    assert_equal(call_step(learner, "policy_loss", batch, torch.Generator()), "gcivl/actor_loss")


def test_hiql_has_the_losses_of_ogbench():
    low = goal_policy((STATE, SUBGOAL), Normalizer(obs="identity", unscaled=(SUBGOAL,)))
    learner, batch = peer_learner("hiql", HIQL(), low), peer_batch()
    copy_ensemble(learner.nets.value, "hiql/modules_value/value_net")
    copy_ensemble(learner.nets.target.value, "hiql/modules_target_value/value_net")
    for transform in learner.nets.high.codec.obs_transforms:  # OGBench does not normalize
        transform.set_statistics(torch.zeros(3), torch.ones(3))
    copy_weights(learner.nets.representation.layers[0], "hiql/modules_goal_rep/layers_0")
    copy_weights(learner.nets.high.net.layers, "hiql/modules_high_actor/actor_net", "mean_net")
    near, far, later = (torch.from_numpy(OGBENCH[f"batch/{name}"])[:, None] for name in (
        "low_actor_goals", "high_actor_goals", "high_actor_targets"))
    batch = batch.replace(obs={**batch.obs, GOAL: far, NEAR_GOAL: near, f"{STATE}.later": later})
    assert_equal(call_step(learner, "value_loss", batch, torch.Generator()), "hiql/value_loss")
    assert_equal(call_step(learner, "low_loss", batch, torch.Generator()), "hiql/low_actor_loss")
    assert_equal(call_step(learner, "high_loss", batch, torch.Generator()), "hiql/high_actor_loss")


def test_gciql_has_the_losses_of_ogbench():
    learner, batch = peer_learner("gciql", GCIQL()), peer_batch()
    copy_weights(learner.nets.value.layers[0], "gciql/modules_value/value_net")
    copy_ensemble(learner.nets.critic, "gciql/modules_critic/value_net")
    copy_ensemble(learner.nets.target.critic, "gciql/modules_target_critic/value_net")
    assert_equal(call_step(learner, "value_loss", batch, torch.Generator()), "gciql/value_loss")
    assert_equal(call_step(learner, "critic_loss", batch, torch.Generator()), "gciql/critic_loss")
    assert_equal(call_step(learner, "policy_loss", batch, torch.Generator()), "gciql/actor_loss")


def test_crl_has_the_losses_of_ogbench():
    learner, batch = peer_learner("crl", CRL(latent_dim=16)), peer_batch()
    phi, psi = learner.nets.critic
    copy_ensemble(phi, "crl/modules_critic/phi")
    copy_ensemble(psi, "crl/modules_critic/psi")
    assert_equal(call_step(learner, "critic_loss", batch, torch.Generator()), "crl/contrastive_loss")
    assert_equal(call_step(learner, "policy_loss", batch, torch.Generator()), "crl/actor_loss")


def test_qrl_has_the_losses_of_ogbench():
    learner, batch = peer_learner("qrl", QRL(latent_dim=16)), peer_batch()
    phi, distance, dynamics, log_multiplier = learner.nets.value
    copy_weights(phi.layers[0], "qrl/modules_value/phi")
    copy_weights(dynamics, "qrl/modules_dynamics")
    with torch.no_grad():
        distance.mix.copy_(torch.from_numpy(OGBENCH["qrl/modules_value/alpha/value"]))
        log_multiplier[0].copy_(torch.from_numpy(OGBENCH["qrl/modules_lam/log_value"]))
    assert_equal(call_step(learner, "value_loss", batch, torch.Generator()), "qrl/value_loss", "qrl/dynamics_loss")
    assert_equal(call_step(learner, "policy_loss", batch, torch.Generator()), "qrl/actor_loss")


# -- the contract, and what is refused --------------------------------------------------------------------------------

LEARNERS = {"gcivl": GCIVL(), "hiql": HIQL(subgoal_steps=3), "gciql": GCIQL(), "crl": CRL(latent_dim=8),
            "qrl": QRL(latent_dim=8, component_dim=4)}


@pytest.mark.parametrize("name", LEARNERS)
def test_contract(name):
    inputs = (STATE, SUBGOAL) if name == "hiql" else (STATE, GOAL)
    check_learner(replace(LEARNERS[name], batch_size=8, critic=replace(NETWORKS, layer_norm=True)),
                  [goal_policy(inputs, Normalizer(unscaled=inputs[1:] * (name == "hiql")))])


def one_goal_data(*lengths: int) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset([Episode({STATE: rng.normal(size=(n + 1, 3)).astype(np.float32),
                             "action": rng.normal(size=(n, 2)).astype(np.float32)}) for n in lengths])


@pytest.mark.parametrize(("discount", "steps"), [(0.0, {1}), (1.0, {1, 2, 3, 4})])
def test_goals_of_values_have_the_distances_of_any_discount(discount, steps):
    data = one_goal_data(5)
    policy = Policy(goal_policy(), data.features()).fit_statistics(data)
    learner = GCIVL(discount=discount, p_curgoal=0.0, p_randomgoal=0.0).build(policy, 0, 1, data)
    first = learner.batch_sampler(data).gather(np.zeros(100, np.int64), np.random.default_rng(0))
    assert set(first.extra[f"{VALUE_GOAL}.steps"].flatten().tolist()) == steps


@pytest.mark.parametrize("name", LEARNERS)
def test_episodes_of_one_step_are_refused(name):
    data = one_goal_data(1, 1)
    with pytest.raises(DataError, match="no episode has two steps.*\n.*understudy train bc"):
        fit_method(find_method(name, data.features()), data, 0)


@pytest.mark.parametrize("name", LEARNERS)
def test_data_without_actions_or_the_goal_are_refused(name):
    data = one_goal_data(5)
    without = Dataset([Episode({STATE: episode.steps[STATE]}) for episode in data])
    with pytest.raises(UserError, match="no column 'action'.*\n.*--columns action=(NAME|COLUMN)"):
        fit_method(find_method(name, without.features()), without, 0)
    with pytest.raises(ConfigError, match="no column 'observation.pose'.*observation.state"):
        fit_method(find_method(name, data.features(), column="observation.pose"), data, 0)
    with pytest.raises(ConfigError, match="'action' is not observed.*\n.*--column"):
        fit_method(find_method(name, data.features(), column="action"), data, 0)


@pytest.mark.parametrize("name", ["gciql", "crl", "qrl"])
def test_classes_have_no_gradient(name):
    config, schema = goal_policy(), {STATE: Feature("float32", (3,)),
                                     "action": Feature("int64", (1,), "discrete", num_classes=(4,))}
    with pytest.raises(Unsupported, match="the actions are classes, but this method learns numbers"):
        find_method(name, schema)
    with pytest.raises(Unsupported, match="classes.*\n.*gcivl or hiql"):
        LEARNERS[name].build(Policy(replace(config, head=Categorical()), schema), 0, 1, one_goal_data(5))


def test_policies_that_do_not_fit_are_refused():
    data = one_goal_data(5)
    config = goal_policy()
    with pytest.raises(ConfigError, match="has 0 goals, but this learner needs one"):
        GCIVL().build(Policy(replace(config, window=Window(), inputs=(STATE,)), data.features()), 0, 1, data)
    with pytest.raises(Unsupported, match="values are those of single steps"):
        GCIVL().build(Policy(replace(config, window=replace(config.window, horizon=4)), data.features()), 0, 1, data)
    with pytest.raises(ConfigError, match="reads observation.state, observation.goal, but it must read"):
        HIQL().build(Policy(config, data.features()), 0, 1, data)
    with pytest.raises(ConfigError, match="12 components cannot be divided into groups of 8"):
        QRL(latent_dim=12)


@pytest.mark.parametrize("name", ["fb", "hilp", "hiql"])
def test_a_history_is_refused_where_a_vector_takes_the_place_of_the_goal(name):
    data = one_goal_data(5)
    method = find_method(name, data.features())
    method = replace(method, policy=replace(method.policy, window=replace(method.policy.window, n_obs_steps=2)))
    with pytest.raises(Unsupported, match="the vector in place of the goal is that of one observation"):
        fit_method(method, data, 0)


def test_an_environment_without_the_goal_is_refused():
    data = one_goal_data(5)
    method = find_method("gcivl", data.features())
    result = fit_method(replace(method, learner=replace(method.learner, steps=1)), data, 0)
    with pytest.raises(UserError, match="'observation.goal'"):
        rollout(result.actor, make("four_rooms:play"), 1)


# -- ten states, in a ring where every step leads to the next one, or in a chain where steps lead both ways ------------

N_STATES = 10
STATES, GOALS = np.divmod(np.arange(N_STATES**2), N_STATES)
RING = torch.tensor((GOALS - STATES) % N_STATES)  # distances


def tabular_learner(learner, lr: float, is_ring: bool):
    """A learner on ten walks, whose states are one-hot vectors, and its batches."""
    rng = np.random.default_rng(0)

    def walk(start):
        place = [start]
        for step in rng.choice([1] if is_ring else [-1, 1], 40):
            place.append((place[-1] + step) % N_STATES if is_ring else min(max(place[-1] + step, 0), N_STATES - 1))
        return Episode({STATE: np.eye(N_STATES, dtype=np.float32)[place],
                        "action": rng.normal(size=(40, 1)).astype(np.float32)})
    data = Dataset([walk(start) for start in range(N_STATES)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy(goal_policy(), data.features()).fit_statistics(data)
        built = replace(learner, optimizer=OptimizerConfig(lr=lr, weight_decay=0.0, grad_clip_norm=None),
                        critic=CriticConfig((64,))).build(policy, 0, learner.steps, data)
    return built, built.batch_sampler(data)


def all_pairs() -> dict[str, torch.Tensor]:
    rows = torch.eye(N_STATES)[:, None]
    return {STATE: rows[STATES], GOAL: rows[GOALS]}


def exact_values(discount: float) -> torch.Tensor:
    return -(1 - discount**RING) / (1 - discount)


class KnownValues(GCIVL):
    """GCIVL whose values are those of a table, (states, goals)."""

    table = exact_values(0.9).view(N_STATES, N_STATES)

    def values(self, nets, network, obs, goal):
        return self.table[obs[STATE][:, 0].argmax(1), obs[goal][:, 0].argmax(1)].expand(2, -1)


class WrongValues(KnownValues):
    """The same with errors."""

    table = KnownValues.table + torch.arange(N_STATES)[:, None] / 100


def test_exact_values_have_no_loss():
    built, sampler = tabular_learner(KnownValues(discount=0.9), 1e-3, is_ring=True)
    batch = sampler.batch(512, 0)
    is_back = (batch.obs[STATE] == batch.obs[VALUE_GOAL]).flatten(1).all(1)  # only the same row is the goal
    is_clear = ~is_back | batch.extra[f"{VALUE_GOAL}.reached"][:, 0]
    assert call_step(built, "value_loss", batch, torch.Generator())[is_clear].max() < 1e-9
    wrong, _ = tabular_learner(WrongValues(discount=0.9), 1e-3, is_ring=True)
    assert call_step(wrong, "value_loss", batch, torch.Generator()).mean() > 1e-4


@pytest.mark.slow
def test_gcivl_learns_exact_values():
    built, sampler = tabular_learner(GCIVL(steps=1500, discount=0.9, target_decay=0.95), 3e-3, is_ring=True)
    for step in range(1500):
        built.update(sampler.batch(128, step))
    with torch.no_grad():
        values = built.config.values(built.nets, built.nets.value, all_pairs(), GOAL).mean(0)
    assert (values - exact_values(0.9)).abs().max() < 0.3  # of values from 0 to -6.1


@pytest.mark.slow
def test_qrl_learns_exact_distances():
    built, sampler = tabular_learner(QRL(steps=2000, latent_dim=32, epsilon=1e-3), 1e-2, is_ring=False)
    for step in range(2000):
        built.update(sampler.batch(128, step))
    with torch.no_grad():
        states, goals = (built.config.represent(built.nets, all_pairs(), column) for column in (STATE, GOAL))
        distances = built.nets.value[1](states, goals)
    assert (distances - torch.tensor(abs(GOALS - STATES))).abs().max() < 0.4  # of distances from 0 to 9
