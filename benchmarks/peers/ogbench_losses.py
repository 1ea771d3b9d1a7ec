"""Losses of OGBench's agents for fixed weights and one fixed batch, which tests compare with those of understudy.

    .venv-peers/ogbench/bin/python benchmarks/peers/ogbench_losses.py OGBENCH/impls tests/fixtures/ogbench_losses.npz

The weights and the batch are sines. The networks are small, with ReLU and without layer normalization, because OGBench
normalizes after the activation function and understudy before it.
"""

import importlib
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np

B, STATE, ACTION, HIDDEN, LATENT = 6, 3, 2, (8, 7), 16
DDPG = {"actor_loss": "ddpgbc"}
AGENTS: dict[str, dict[str, Any]] = {
    "gcivl": {}, "hiql": {"rep_dim": 4}, "gciql": DDPG, "crl": {**DDPG, "latent_dim": LATENT},
    "qrl": {**DDPG, "latent_dim": LATENT}}
LOSSES = {"gcivl": ("value_loss", "actor_loss"), "hiql": ("value_loss", "low_actor_loss", "high_actor_loss"),
          "gciql": ("value_loss", "critic_loss", "actor_loss"), "crl": ("contrastive_loss", "actor_loss"),
          "qrl": ("value_loss", "dynamics_loss", "actor_loss")}


def sines(shape, phase: float) -> np.ndarray:
    """Numbers from -1 to 1 without a pattern."""
    return np.sin(1.7 * np.arange(1, np.prod(shape, dtype=int) + 1) ** 1.3 + phase).reshape(shape).astype(np.float32)


def make_batch() -> dict[str, np.ndarray]:
    states = ("observations", "next_observations", "value_goals", "actor_goals", "low_actor_goals", "high_actor_goals",
              "high_actor_targets")
    batch = {name: sines((B, STATE), phase) for phase, name in enumerate(states)}
    reached = np.arange(B) % 3 == 0
    batch["value_goals"][reached] = batch["observations"][reached]
    actions = sines((B, ACTION), 9)
    return {**batch, "actions": actions / np.abs(actions).max(0), "rewards": reached - np.float32(1),
            "masks": 1 - reached.astype(np.float32)}


def main(impls: str, out: str) -> None:
    sys.path.insert(0, impls)
    networks = importlib.import_module("utils.networks")

    class ReluMLP(networks.MLP):
        activations: Any = nn.relu

    networks.MLP = ReluMLP
    batch = make_batch()
    arrays = {f"batch/{name}": value for name, value in batch.items()}
    for name, options in AGENTS.items():
        module = importlib.import_module(f"agents.{name}")
        config = module.get_config()
        config.update({"value_hidden_dims": HIDDEN, "actor_hidden_dims": HIDDEN, "layer_norm": False, **options})
        (agent_class,) = [value for key, value in vars(module).items() if key.endswith("Agent")]
        agent = agent_class.create(0, batch["observations"], batch["actions"], config)
        leaves, structure = jax.tree_util.tree_flatten_with_path(agent.network.params)
        weights = [0.7 * sines(leaf.shape, i) for i, (_, leaf) in enumerate(leaves)]
        params = jax.tree_util.tree_unflatten(structure, weights)
        for (path, _), value in zip(leaves, weights, strict=True):
            arrays[f"{name}/{'/'.join(key.key for key in path)}"] = value
        agent = agent.replace(network=agent.network.replace(params=params))
        for loss in LOSSES[name]:
            arrays[f"{name}/{loss}"] = np.asarray(getattr(agent, loss)(batch, params)[0])
            print(name, loss, arrays[f"{name}/{loss}"])
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
