"""Losses of CORL's single-file learners for fixed weights and one fixed batch, which tests compare with understudy's.

    .venv-peers/ogbench/bin/python benchmarks/peers/corl_losses.py CORL tests/fixtures/corl_losses.json

CORL is a clone of github.com/tinkoff-ai/CORL, here at 6afec90. The weights, the batch and the noise are sines, as in
d3rlpy_losses.py, and as in fql_losses.py for ReBRAC, which is in JAX. The networks are smaller than those of the files,
and the autoencoder of SPOT does not squash what it decodes, because understudy's does not.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from corl import opened
from torch import nn

B, STATE, ACTION, HIDDEN, SAMPLES, CRITICS = 6, 3, 2, (8, 7), 4, 3
FILES = {"edac": "offline/edac.py", "rebrac": "offline/rebrac.py", "awac": "offline/awac.py", "cql": "offline/cql.py",
         "spot": "finetune/spot.py"}


def sines(shape, phase: float) -> np.ndarray:
    """Numbers from -1 to 1 without a pattern."""
    return np.sin(1.7 * np.arange(1, np.prod(shape, dtype=int) + 1) ** 1.3 + phase).reshape(shape).astype(np.float32)


def noise(shape, **options) -> torch.Tensor:
    """In place of normal noise. Of several samples for each observation, each sample has its own."""
    drawn = torch.from_numpy(sines(tuple(shape), 20))
    if shape[1:-1] != (SAMPLES,):
        return drawn
    return torch.from_numpy(sines((SAMPLES, B, shape[-1]), 20)).transpose(0, 1)


def fill(module, phase: int, scale: float = 1.0):
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(scale * torch.from_numpy(sines(tuple(parameter.shape), phase + i)))
    return module


def layers(inputs: int, *outputs: int, last: type | None = None) -> nn.Sequential:
    sizes, modules = (inputs, *HIDDEN), []
    for n, m in zip(sizes, HIDDEN, strict=False):
        modules += [nn.Linear(n, m), nn.ReLU()]
    modules += [nn.Linear(HIDDEN[-1], n) for n in outputs]
    return nn.Sequential(*modules, *([last()] if last else []))


def make_batch() -> list[torch.Tensor]:
    """Observations, actions, rewards, the observations after them, and whether the episode ended there."""
    actions = sines((B, ACTION), 9)
    columns = (sines((B, STATE), 0), actions / np.abs(actions).max(0), sines((B, 1), 4), sines((B, STATE), 1),
               (np.arange(B) % 3 == 0).astype(np.float32)[:, None])
    return [torch.from_numpy(column) for column in columns]


def nothing(module) -> torch.optim.Optimizer:
    """An optimizer that leaves a network as it is."""
    return torch.optim.SGD(module.parameters(), lr=0.0)


def edac(module) -> dict:
    actor, critics = module.Actor(STATE, ACTION, HIDDEN[0]), module.VectorizedCritic(STATE, ACTION, HIDDEN[0], CRITICS)
    actor.trunk, actor.mu, actor.log_sigma = layers(STATE), *(nn.Linear(HIDDEN[-1], ACTION) for _ in range(2))
    fill(actor, 100, 0.3)
    sizes = (STATE + ACTION, *HIDDEN, 1)
    linear = [module.VectorizedLinear(n, m, CRITICS) for n, m in zip(sizes, sizes[1:], strict=False)]
    critics.critic = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])
    learner = module.EDAC(actor, nothing(actor), critics, nothing(critics), eta=0.7)
    for ensemble, phase in ((learner.critic, 200), (learner.target_critic, 300)):
        with torch.no_grad():
            for i in range(CRITICS):
                for k, parameter in enumerate(ensemble.parameters()):  # weights are transposed, biases are rows
                    n, m = parameter[i].shape
                    numbers = sines((m,) if k % 2 else (m, n), phase + 50 * i + k)
                    parameter[i].copy_(torch.from_numpy(numbers.T.reshape(n, m)))
    learner.log_alpha = torch.tensor([0.5]).log()
    learner.alpha = learner.log_alpha.exp()
    state, action, reward, following, ends = make_batch()
    with mock.patch("torch.distributions.normal._standard_normal", noise):
        return {"critic": learner._critic_loss(state, action, reward, following, ends),
                "diversity": learner._critic_diversity_loss(state, action),
                "policy": learner._actor_loss(state)[0], "temperature": learner._alpha_loss(state)}


def twin_critics(build, name: str) -> list[nn.Module]:
    critics = [build() for _ in range(2)]
    for i, critic in enumerate(critics):
        setattr(critic, name, layers(STATE + ACTION, 1))
        fill(critic, 200 + 50 * i)
    return critics


def spot(module) -> dict:
    actor, vae = module.Actor(STATE, ACTION, 1.0), module.VAE(STATE, ACTION, 2 * ACTION, 1.0, 8)
    actor.net = layers(STATE, ACTION, last=nn.Tanh)
    vae.encoder_shared, vae.decoder = layers(STATE + ACTION), layers(STATE + 2 * ACTION, ACTION)
    vae.mean, vae.log_std = (nn.Linear(HIDDEN[-1], 2 * ACTION) for _ in range(2))
    fill(actor, 400)
    for part, phase in ((nn.ModuleList([vae.encoder_shared, vae.mean, vae.log_std]), 600), (vae.decoder, 700)):
        fill(part, phase, 0.3)
    first, second = twin_critics(lambda: module.Critic(STATE, ACTION), "net")
    learner = module.SPOT(1.0, actor, nothing(actor), first, nothing(first), second, nothing(second), vae, nothing(vae),
                          beta=0.25, lambd=0.7, policy_freq=1)
    fill(learner.actor_target, 500)
    fill(learner.critic_1_target, 300)
    fill(learner.critic_2_target, 350)
    with mock.patch("torch.randn_like", lambda like: noise(like.shape)):
        cloning, training = learner.vae_train(make_batch()), learner.train(make_batch())
    return {"vae": cloning["VAE/vae_loss"], "critic": training["critic_loss"], "policy": training["actor_loss"]}


def awac(module) -> dict:
    actor = module.Actor(STATE, ACTION, HIDDEN[0])
    actor._mlp = layers(STATE, ACTION, last=nn.Tanh)
    fill(actor._mlp, 100)
    with torch.no_grad():
        actor._log_std.fill_(np.log(0.6))
    first, second = twin_critics(lambda: module.Critic(STATE, ACTION, HIDDEN[0]), "_mlp")
    learner = module.AdvantageWeightedActorCritic(actor, nothing(actor), first, nothing(first), second, nothing(second),
                                                  awac_lambda=2.0)
    fill(learner._target_critic_1, 300)
    fill(learner._target_critic_2, 350)
    state, action, reward, following, ends = make_batch()
    with mock.patch("torch.distributions.normal._standard_normal", noise):
        return {"critic": learner._critic_loss(state, action, reward, ends, following),
                "policy": learner._actor_loss(state, action)}


def cql(module) -> dict:
    actor = module.TanhGaussianPolicy(STATE, ACTION, 1.0, log_std_offset=0.0)
    actor.base_network = TwoOutputs(layers(STATE))
    fill(actor.base_network, 100)
    first, second = twin_critics(lambda: module.FullyConnectedQFunction(STATE, ACTION), "network")
    learner = module.ContinuousCQL(first, nothing(first), second, nothing(second), actor, nothing(actor), -ACTION,
                                   backup_entropy=True, cql_n_actions=SAMPLES, cql_alpha=5.0)
    fill(learner.target_critic_1, 300)
    fill(learner.target_critic_2, 350)
    state, action, reward, following, ends = make_batch()
    with (mock.patch("torch.distributions.normal._standard_normal", noise),
          mock.patch.object(torch.Tensor, "uniform_", lambda drawn, low, high: drawn.copy_(
              torch.from_numpy(sines(tuple(drawn.shape), 20))))):
        critic, *_ = learner._q_loss(state, action, following, reward, ends, torch.tensor(0.5), {})
    return {"critic": critic}


class TwoOutputs(nn.Module):
    """Mean and logarithm of the standard deviation, from layers of their own."""

    def __init__(self, hidden: nn.Module):
        super().__init__()
        self.hidden, self.outputs = hidden, nn.ModuleList(nn.Linear(HIDDEN[-1], ACTION) for _ in range(2))

    def forward(self, obs):
        return torch.cat([layer(self.hidden(obs)) for layer in self.outputs], -1)


def rebrac(module) -> dict:
    """The parameters of the networks are one number: the first of the critic's, and the phase of the policy."""
    def scores(params, obs, actions):
        return jnp.stack([jnp.sin(obs.sum(-1) + k) + jnp.cos(2 * actions + k).sum(-1)
                          for k in (params["first"], params["first"] + 1)])

    def plan(params, obs):
        return jnp.sin(obs.sum(-1, keepdims=True) + jnp.arange(ACTION) + params["first"])

    actor, critic = (state.create(apply_fn=apply, params={"first": jnp.array(0.0)},
                                  target_params={"first": jnp.array(target)}, tx=optax.sgd(0.0))
                     for state, apply, target in ((module.ActorTrainState, plan, 0.5),
                                                  (module.CriticTrainState, scores, 2.0)))
    state, action, reward, following, ends = (column.numpy() for column in make_batch())
    batch = {"states": state, "actions": action, "rewards": reward[:, 0], "next_states": following, "dones": ends[:, 0],
             "next_actions": sines((B, ACTION), 7)}
    metrics = module.Metrics.create(["critic_loss", "q_min", "actor_loss", "bc_mse_policy", "bc_mse_random",
                                     "action_mse"])
    key = jax.random.PRNGKey(0)
    with mock.patch.object(jax.random, "normal", lambda key, shape: sines(shape, 20)):
        _, _, metrics = module.update_critic(key, actor, critic, batch, 0.99, 0.2, 0.005, 0.2, 0.5, metrics)
        *_, metrics = module.update_actor(key, actor, critic, batch, 0.3, 0.005, True, metrics)
    means = metrics.compute()
    return {"critic": means["critic_loss"][0], "policy": means["actor_loss"][0]}


def main(folder: str, out: str) -> None:
    learners = {"edac": edac, "spot": spot, "rebrac": rebrac, "awac": awac, "cql": cql}
    result = {name: learner(opened(Path(folder) / "algorithms" / FILES[name])) for name, learner in learners.items()}
    with open(out, "w", encoding="utf-8") as file:
        json.dump({name: {k: round(torch.as_tensor(v).item(), 7) for k, v in values.items()}
                   for name, values in result.items()}, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
