"""Updates of IQL, TD3+BC and cloning, here, in d3rlpy, imitation and a plain loop: python benchmarks/offline_rl.py

Networks of 256 x 2, batches of 256 transitions of 17 observed numbers and 6 actions, drawn anew for each update. The
plain loop is PyTorch alone, with the data as tensors, fused Adam and one call for all target weights. Its policy has
the same outputs as ours. That of d3rlpy has a standard deviation that does not depend on the observation.

Cloning with squared errors is compared with d3rlpy's. Cloning with likelihoods, with networks of 32 x 2 and batches of
32 and 256, is compared with imitation's, whose standard deviation does not depend on the observation. Ours also keeps
the average of the weights, and predicts the standard deviation.

The six goal-conditioned agents, with networks of 256 x 3, latent vectors of 512 numbers (QRL, CRL) and batches of 256,
are compared with OGBench's JAX agents after compilation, if OGBENCH_IMPLS names the folder `impls` of its repository.
The note has the time of compilation.

IQL, TD3+BC, AWAC and CQL are compared with the single files of CORL and their own store of transitions, if CORL names
its repository. AWAC and CQL have networks of 256 x 3 there, and so here. Its CQL clones its first 100,000 updates,
which is left out.

`d3rlpy`, `imitation` or `ogbench` after the command measures against that library alone, and keeps the other lines.
"""

from __future__ import annotations

import copy
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import measure

measure.one_thread()

STATE, ACTION, EPISODES, STEPS, BATCH, WIDTH = 17, 6, 20, 1000, 256, 256
AGENTS = ("gcbc", "gcivl", "gciql", "qrl", "crl", "hiql")
UPDATES = 20  # of one call
UPDATES_OF_IMITATION = 200  # each call of it prepares an epoch


def episodes() -> list[dict]:
    import numpy as np

    rng = np.random.default_rng(0)
    return [{"observation.state": rng.normal(size=(STEPS + 1, STATE)).astype("f"),
             "action": rng.uniform(-1, 1, (STEPS, ACTION)).astype("f"),
             "next.reward": rng.normal(size=STEPS).astype("f"), "next.terminated": np.arange(STEPS) == STEPS - 1}
            for _ in range(EPISODES)]


def ours(name: str, head=None, trunk=None, batch: int = BATCH, updates: int = UPDATES, *, compiled: bool = False
         ) -> Callable[[], object]:
    import torch

    from understudy.data.episode import Dataset, Episode
    from understudy.heads.likelihood.gaussian import Gaussian
    from understudy.heads.likelihood.regression import Regression
    from understudy.learn.behavior_cloning import BehaviorCloning
    from understudy.learn.captured import capture
    from understudy.learn.critics.td3 import TD3
    from understudy.learn.optimizer import OptimizerConfig
    from understudy.methods.offline_rl.iql import IQL
    from understudy.nets.encoders import ConcatEncoder
    from understudy.nets.feed_forward import FeedForward
    from understudy.policy import Policy, PolicyConfig

    constant = OptimizerConfig(weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
    default_head, config = {"IQL": (Gaussian(), IQL()), "TD3+BC": (Regression(), TD3(bc_weight=0.4)),
                            "BC": (Regression(), BehaviorCloning(optimizer=constant))}[name]
    data = Dataset([Episode(columns) for columns in episodes()])
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(head or default_head, trunk or FeedForward((WIDTH, WIDTH)), ConcatEncoder()),
                    data.features())
    learner = config.build(policy.fit_statistics(data), 0, 10_000, data)
    if compiled:
        capture(learner)
    sampler, number = learner.batch_sampler(data), itertools.count()
    return lambda: [learner.update(sampler.batch(batch, next(number), 0)) for _ in range(updates)]


def transitions() -> dict:
    import numpy as np

    return {k: np.concatenate([e[k][:STEPS] for e in episodes()]) for k in episodes()[0]}


def imitation(batch: int) -> Callable[[], object]:
    import tempfile

    import gymnasium as gym
    import numpy as np
    from imitation.algorithms.bc import BC
    from imitation.data.types import Transitions
    from imitation.util import logger

    flat = transitions()
    obs, action = flat["observation.state"], flat["action"]
    data = Transitions(obs=obs, acts=action, infos=np.array([{}] * len(obs)), next_obs=obs,
                       dones=flat["next.terminated"])
    learner = BC(observation_space=gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float32),
                 action_space=gym.spaces.Box(-1, 1, (ACTION,), np.float32), rng=np.random.default_rng(0),
                 demonstrations=data, batch_size=batch, device="cpu",
                 custom_logger=logger.configure(tempfile.mkdtemp(), []))
    return lambda: learner.train(n_batches=UPDATES_OF_IMITATION, progress_bar=False)


def peer(name: str) -> Callable[[], object]:
    import d3rlpy

    d3rlpy.seed(0)
    flat = transitions()
    data = d3rlpy.dataset.MDPDataset(flat["observation.state"], flat["action"], flat["next.reward"],
                                     flat["next.terminated"].astype("f"))
    config = {"IQL": d3rlpy.algos.IQLConfig, "TD3+BC": d3rlpy.algos.TD3PlusBCConfig,
              "BC": d3rlpy.algos.BCConfig}[name]
    learner = config(batch_size=BATCH).create(device="cpu:0")
    learner.build_with_dataset(data)
    return lambda: [learner.update(data.sample_transition_batch(BATCH)) for _ in range(UPDATES)]


def plain(name: str) -> Callable[[], object]:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    rows = {"obs": (0, "observation.state"), "following": (1, "observation.state"), "action": (0, "action"),
            "reward": (0, "next.reward"), "ends": (0, "next.terminated")}
    data = {k: torch.from_numpy(np.concatenate([e[column][first:first + STEPS] for e in episodes()])).float()
            for k, (first, column) in rows.items()}

    def network(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
                             nn.Linear(WIDTH, outputs))

    policy = network(STATE, 2 * ACTION if name == "IQL" else ACTION)
    critics = nn.ModuleList(network(STATE + ACTION, 1) for _ in range(2))
    value, targets = network(STATE, 1), copy.deepcopy(nn.ModuleList([critics, policy])).requires_grad_(False)
    sources, copies = [*critics.parameters()], [*targets[0].parameters()]
    if name == "TD3+BC":
        sources, copies = [*sources, *policy.parameters()], [*copies, *targets[1].parameters()]
    optimizers = {id(m): torch.optim.Adam(m.parameters(), 3e-4, fused=True) for m in (policy, critics, value)}
    count = itertools.count()

    def step(module, loss):
        loss.backward(inputs=list(module.parameters()))
        optimizers[id(module)].step()
        optimizers[id(module)].zero_grad()

    def scores(networks, obs, action):
        x = torch.cat([obs, action], -1)
        return torch.stack([net(x).squeeze(-1) for net in networks])

    def iql(batch):
        score = scores(targets[0], batch["obs"], batch["action"]).amin(0)
        error = score - value(batch["obs"]).squeeze(-1)
        step(value, (torch.where(error > 0, 0.7, 0.3) * error.square()).mean())
        with torch.no_grad():
            target = batch["reward"] + 0.99 * (1 - batch["ends"]) * value(batch["following"]).squeeze(-1)
        step(critics, (scores(critics, batch["obs"], batch["action"]) - target).square().sum(0).mean())
        with torch.no_grad():
            weight = (3 * (score - value(batch["obs"]).squeeze(-1))).exp().clamp(max=100)
        mean, raw = policy(batch["obs"]).chunk(2, -1)
        std = F.softplus(raw) + 0.01
        step(policy, (weight * (0.5 * ((batch["action"] - mean) / std).square() + std.log()).sum(-1)).mean())

    def td3_bc(batch):
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(batch["action"])).clamp(-0.5, 0.5)
            plan = (targets[1](batch["following"]) + noise).clamp(-1, 1)
            following = scores(targets[0], batch["following"], plan).amin(0)
            target = batch["reward"] + 0.99 * (1 - batch["ends"]) * following
        step(critics, (scores(critics, batch["obs"], batch["action"]) - target).square().sum(0).mean())
        if next(count) % 2 == 0:
            plan = policy(batch["obs"])
            score = scores(critics[:1], batch["obs"], plan)[0]
            distance = (plan - batch["action"]).square().mean()
            step(policy, 0.4 * distance - score.mean() / score.detach().abs().mean())

    def update():
        index = torch.randint(len(data["obs"]), (BATCH,))
        (iql if name == "IQL" else td3_bc)({k: v[index] for k, v in data.items()})
        torch._foreach_lerp_(copies, sources, 0.005)

    return lambda: [update() for _ in range(UPDATES)]


def lines_of_d3rlpy() -> list[measure.Line]:
    lines = []
    for name, goals in {"IQL": {"d3rlpy": 1.5, "plain": 0.9}, "TD3+BC": {"d3rlpy": 1.5, "plain": 0.9},
                        "BC": {"d3rlpy": 2.2}}.items():
        sides = {"ours": ours(name), "d3rlpy": peer(name), **({"plain": plain(name)} if "plain" in goals else {})}
        seconds = measure.interleaved(sides, repeats=7)
        lines += [measure.compared(f"{name}, updates, against {other}", seconds, "ours", other, amount=UPDATES,
                                   unit="1/s", goal=goal) for other, goal in goals.items()]
    return lines


def small_cloning(batch: int, *, compiled: bool = False) -> Callable[[], object]:
    """Cloning with the likelihoods and the sizes of imitation's."""
    from understudy.heads.likelihood.gaussian import Gaussian
    from understudy.nets.feed_forward import FeedForward

    return ours("BC", Gaussian(), FeedForward((32, 32), "tanh"), batch, UPDATES_OF_IMITATION, compiled=compiled)


def lines_of_imitation() -> list[measure.Line]:
    lines = []
    for batch in (32, 256):  # the goals are those of benchmarks/compiled_updates.py
        seconds = measure.interleaved({"ours": small_cloning(batch), "imitation": imitation(batch)}, repeats=7)
        lines.append(measure.compared(f"BC, batches of {batch}, updates, against imitation", seconds, "ours",
                                      "imitation", amount=UPDATES_OF_IMITATION, unit="1/s"))
    return lines


def named_method(name: str, *, compiled: bool = False, **sizes: object) -> Callable[[], object]:
    """A named method with networks of three layers, and with other sizes of its learner."""
    import torch

    from understudy.data.episode import Dataset, Episode
    from understudy.learn.captured import capture
    from understudy.learn.method import training_data
    from understudy.methods import find_method
    from understudy.nets.feed_forward import FeedForward
    from understudy.policy import Policy

    recorded = Dataset([Episode(columns) for columns in episodes()])
    method = find_method(name, recorded.features())
    config = replace(method.policy, trunk=FeedForward((WIDTH,) * 3, getattr(method.policy.trunk, "activation", "relu")))
    learning = replace(method.learner, **sizes)
    data = training_data(recorded, method)
    torch.manual_seed(0)
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = learning.build(policy, 0, 10_000, data)
    if compiled:
        capture(learner)
    sampler, number = learner.batch_sampler(data), itertools.count()
    return lambda: [learner.update(sampler.batch(BATCH, next(number), 0)) for _ in range(UPDATES)]


def corl(file: str) -> Callable[[], object]:
    """The learner of a single file, with its own store of transitions."""
    import numpy as np
    import torch
    from peers.corl import opened

    module = opened(Path(os.environ["CORL"]) / "algorithms" / "offline" / f"{file}.py")
    torch.manual_seed(0)

    def trained(kind: str, *sizes: float) -> list:
        network = getattr(module, kind)(*sizes)
        return [network, torch.optim.Adam(network.parameters(), lr=3e-4)]

    def twice(kind: str, *sizes: int) -> list:
        return [*trained(kind, *sizes), *trained(kind, *sizes)]

    learner = {
        "iql": lambda: module.ImplicitQLearning(1.0, *trained("GaussianPolicy", STATE, ACTION, 1.0),
                                                *trained("TwinQ", STATE, ACTION), *trained("ValueFunction", STATE)),
        "td3_bc": lambda: module.TD3_BC(1.0, *trained("Actor", STATE, ACTION, 1.0), *twice("Critic", STATE, ACTION)),
        "awac": lambda: module.AdvantageWeightedActorCritic(*trained("Actor", STATE, ACTION, WIDTH),
                                                            *twice("Critic", STATE, ACTION, WIDTH)),
        "cql": lambda: module.ContinuousCQL(*twice("FullyConnectedQFunction", STATE, ACTION),
                                            *trained("TanhGaussianPolicy", STATE, ACTION, 1.0), -float(ACTION),
                                            bc_steps=0),
    }[file]()
    flat = transitions()
    data = module.ReplayBuffer(STATE, ACTION, EPISODES * STEPS)
    data.load_d4rl_dataset({
        "observations": flat["observation.state"], "actions": flat["action"], "rewards": flat["next.reward"],
        "next_observations": np.concatenate([e["observation.state"][1:] for e in episodes()]),
        "terminals": flat["next.terminated"]})
    update = getattr(learner, "train", None) or learner.update
    return lambda: [update(data.sample(BATCH)) for _ in range(UPDATES)]


def lines_of_corl() -> list[measure.Line]:
    if "CORL" not in os.environ:
        raise measure.NotInstalled("CORL names no folder")
    from understudy.learn.critic import CriticConfig

    lines, deep = [], CriticConfig((WIDTH,) * 3)
    sides = {"IQL": ("iql", lambda: ours("IQL")), "TD3+BC": ("td3_bc", lambda: ours("TD3+BC")),
             "AWAC": ("awac", lambda: named_method("awac", critic=deep)),
             "CQL": ("cql", lambda: named_method("cql", critic=deep))}
    for name, (file, own) in sides.items():
        seconds = measure.interleaved({"ours": own(), "CORL": corl(file)}, repeats=7)
        lines.append(measure.compared(f"{name}, updates, against CORL", seconds, "ours", "CORL", amount=UPDATES,
                                      unit="1/s", goal=1.0))
    return lines


def jax_agent(name: str) -> Callable[[], object]:
    """OGBench's agent, with its own sampler of batches."""
    import importlib

    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    import jax
    import numpy as np

    module, datasets = importlib.import_module(f"agents.{name}"), importlib.import_module("utils.datasets")
    config, flat = module.get_config(), transitions()
    sizes = {"batch_size": BATCH, "actor_hidden_dims": (256,) * 3, "value_hidden_dims": (256,) * 3}
    config.update({k: v for k, v in sizes.items() if k in config})  # GCBC has no value
    following = np.concatenate([e["observation.state"][1:] for e in episodes()])
    data = datasets.Dataset.create(observations=flat["observation.state"], actions=flat["action"],
                                   next_observations=following, terminals=flat["next.terminated"].astype("f"))
    sampler = getattr(datasets, config["dataset_class"])(data, config)
    example = sampler.sample(1)
    (agent_class,) = [value for key, value in vars(module).items() if key.endswith("Agent")]
    agents = [agent_class.create(0, example["observations"], example["actions"], config)]

    def updates():
        for _ in range(UPDATES):
            agents[0], _ = agents[0].update(sampler.sample(BATCH))
        jax.block_until_ready(agents[0].network.params)
    return updates


def against_jax(name: str, *, compiled: bool = False, goal: float = 1.0) -> measure.Line:
    """The line of a goal-conditioned agent, whose peer is compiled in any case."""
    if "OGBENCH_IMPLS" not in os.environ:
        raise measure.NotInstalled("OGBENCH_IMPLS names no folder")
    sys.path.insert(0, os.environ["OGBENCH_IMPLS"])
    sides = {"ours": named_method(name, compiled=compiled, **({"latent_dim": 512} if name in ("qrl", "crl") else {})),
             "OGBench": jax_agent(name)}
    first = {side: measure.cpu(work) for side, work in sides.items()}
    seconds = measure.interleaved(sides, repeats=7)
    compilation = {side: first[side] - seconds[side][0] for side in sides}
    ours = f"compilation: {compilation['ours']:.0f} s, " if compiled else ""
    return measure.compared(f"{name}, {'compiled ' * compiled}updates, against OGBench's JAX agent", seconds, "ours",
                            "OGBench", amount=UPDATES, unit="1/s", goal=goal,
                            note=f"{ours}OGBench's{'' if compiled else ' compilation'}: {compilation['OGBench']:.1f} s")


def lines_of_ogbench() -> list[measure.Line]:
    return [against_jax(name) for name in AGENTS]


if __name__ == "__main__":
    parts = {"d3rlpy": lines_of_d3rlpy, "imitation": lines_of_imitation, "": lines_of_corl, "ogbench": lines_of_ogbench}
    measured = measure.beside(parts, ("torch", "numpy", "d3rlpy", "imitation", "stable-baselines3", "jax", "flax"))
    if len(sys.argv) > 1:
        measured = measure.with_stored("offline_rl", *measured)
    measure.save("offline_rl", measured[0], packages=(), more={"versions": measured[1]})
