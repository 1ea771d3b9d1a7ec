"""Losses of the agents fql and rebrac of github.com/seohongpark/fql, which tests compare with those of understudy.

    .venv-peers/ogbench/bin/python benchmarks/peers/fql_losses.py FQL tests/fixtures/fql_losses.json

FQL is a clone of that repository. Networks, noise and batch are sines: the losses alone are those of the agents.
"""

import importlib
import json
import sys
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

B, STATE, ACTION = 6, 3, 2
REBRAC = {"tanh_squash": False, "alpha_actor": 0.3, "alpha_critic": 0.2}


def sines(shape, phase: float) -> np.ndarray:
    """Numbers from -1 to 1 without a pattern."""
    return np.sin(1.7 * np.arange(1, np.prod(shape, dtype=int) + 1) ** 1.3 + phase).reshape(shape).astype(np.float32)


def make_batch() -> dict[str, np.ndarray]:
    actions = sines((B, ACTION), 9)
    return {"observations": sines((B, STATE), 0), "next_observations": sines((B, STATE), 1), "rewards": sines(B, 4),
            "actions": actions / np.abs(actions).max(0), "masks": 1 - (np.arange(B) % 3 == 0).astype(np.float32),
            "next_actions": sines((B, ACTION), 7)}


def critic(first: int):
    def scores(obs, actions, params=None):
        return jnp.stack([jnp.sin(obs.sum(-1) + k) + jnp.cos(2 * actions + k).sum(-1) for k in (first, first + 1)])
    return scores


def flow(obs, x, times, params=None, is_encoded=False):
    return jnp.sin(x + times + obs.sum(-1, keepdims=True))


def one_step(obs, noise, params=None):
    return 1.2 * jnp.cos(noise + obs.sum(-1, keepdims=True))


def actor(phase: float):
    def distribution(obs, params=None):
        mode = jnp.sin(obs.sum(-1, keepdims=True) + jnp.arange(ACTION) + phase)
        return SimpleNamespace(mode=lambda: mode, stddev=lambda: jnp.ones(1))
    return distribution


NETWORKS = {"critic": critic(0), "target_critic": critic(2), "actor_bc_flow": flow, "actor_onestep_flow": one_step,
            "actor": actor(0.0), "target_actor": actor(0.5)}


def main(folder: str, out: str) -> None:
    sys.path.insert(0, folder)
    result, rng = {}, jax.random.PRNGKey(0)
    for name, options in (("fql", {"normalize_q_loss": True}), ("rebrac", REBRAC)):
        module = importlib.import_module(f"agents.{name}")
        agent_class = module.FQLAgent if name == "fql" else module.ReBRACAgent
        config = {**module.get_config().to_dict(), **options, "ob_dims": (STATE,), "action_dim": ACTION}
        agent = agent_class(rng=rng, network=SimpleNamespace(select=NETWORKS.__getitem__), config=config)
        with mock.patch.multiple(jax.random, normal=lambda key, shape: sines(shape, 20),
                                 uniform=lambda key, shape: (sines(shape, 21) + 1) / 2), jax.disable_jit():
            critic_loss, _ = agent.critic_loss(make_batch(), None, rng)
            _, actor_losses = agent.actor_loss(make_batch(), None, rng)
        result[name] = {"critic": critic_loss, **{k: v for k, v in actor_losses.items() if k.endswith("_loss")}}
    with open(out, "w", encoding="utf-8") as file:
        json.dump({name: {k: round(float(v), 7) for k, v in values.items()} for name, values in result.items()}, file,
                  indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
