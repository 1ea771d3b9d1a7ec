"""Losses of d3rlpy for fixed weights and one fixed batch, which tests compare with those of understudy.

    .venv-peers/d3rlpy/bin/python benchmarks/peers/d3rlpy_losses.py tests/fixtures/d3rlpy_losses.json

The weights, the batch and the noise are sines.
"""

import dataclasses
import json
import sys
from unittest import mock

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos import (
    AWACConfig,
    BCQConfig,
    BEARConfig,
    CalQLConfig,
    CQLConfig,
    CRRConfig,
    DDPGConfig,
    DiscreteBCQConfig,
    DiscreteCQLConfig,
    DiscreteSACConfig,
    DoubleDQNConfig,
    DQNConfig,
    IQLConfig,
    NFQConfig,
    PLASConfig,
    PLASWithPerturbationConfig,
    PRDCConfig,
    TACRConfig,
    TD3PlusBCConfig,
)
from d3rlpy.algos.qlearning.torch import bear_impl
from d3rlpy.models import IQNQFunctionFactory, QRQFunctionFactory, VectorEncoderFactory
from d3rlpy.models.torch.distributions import SquashedGaussianDistribution
from d3rlpy.models.torch.imitators import forward_vae_sample_n
from d3rlpy.models.torch.q_functions import iqn_q_function
from d3rlpy.models.torch.q_functions.base import QFunctionOutput
from d3rlpy.ope import FQE, FQEConfig
from d3rlpy.torch_utility import TorchMiniBatch, TorchTrajectoryMiniBatch

B, STATE, ACTION, HIDDEN, SAMPLES, CLASSES, QUANTILES = 6, 3, 2, (8, 7), 4, 3, 5


def sines(shape, phase: float) -> np.ndarray:
    """Numbers from -1 to 1 without a pattern."""
    return np.sin(1.7 * np.arange(1, np.prod(shape, dtype=int) + 1) ** 1.3 + phase).reshape(shape).astype(np.float32)


def fill(module, phase: int, scale: float = 1.0) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(scale * torch.from_numpy(sines(tuple(parameter.shape), phase + i)))


def noise(*shape, **options) -> torch.Tensor:
    """In place of functions whose first arguments are sizes, or a tuple of them."""
    return torch.from_numpy(sines(shape if isinstance(shape[0], int) else tuple(shape[0]), 20))


def make_batch() -> TorchMiniBatch:
    actions = sines((B, ACTION), 9)
    columns = (sines((B, STATE), 0), actions / np.abs(actions).max(0), sines(B, 4), sines((B, STATE), 1), np.zeros(B),
               np.arange(B) % 3 == 0, np.ones(B))
    obs, action, reward, following, returns, ends, intervals = (
        torch.from_numpy(np.asarray(c, np.float32).reshape(B, -1)) for c in columns)
    return TorchMiniBatch(obs, action, reward, following, None, returns, ends, intervals, "cpu")


def build(config, **options):
    """The implementation of an algorithm whose networks have sines as weights."""
    names = ["actor_encoder_factory", "critic_encoder_factory"]
    imitates = config in (BCQConfig, BEARConfig, PLASConfig, PLASWithPerturbationConfig)
    names += ["value_encoder_factory"] if config is IQLConfig else ["imitator_encoder_factory"] if imitates else []
    encoder = VectorEncoderFactory(list(HIDDEN))
    algorithm = config(**{name: encoder for name in names}, **options).create(device="cpu:0")
    algorithm.create_impl((STATE,), ACTION)
    implementation = algorithm.impl
    modules = implementation._modules
    scale = 0.3 if imitates and config is not BEARConfig else 1.0
    fill(modules.policy, 100, scale)
    for i in range(len(modules.q_funcs)):
        fill(modules.q_funcs[i], 200 + 50 * i)
        fill(modules.targ_q_funcs[i], 300 + 50 * i)
    if config is IQLConfig:
        fill(modules.value_func, 400)
    if hasattr(modules, "targ_policy"):
        fill(modules.targ_policy, 500, scale)
    if config is PLASWithPerturbationConfig:
        fill(modules.perturbation, 800, 0.3)
        fill(modules.targ_perturbation, 900, 0.3)
    if imitates:
        fill(modules.vae_encoder, 600, 0.3)
        fill(modules.vae_decoder, 700, 0.3)
    return implementation


class ScoredClasses(torch.nn.Module):
    """A network that reads an observation and a class, and gives one value, in place of an output for each class.

    Or it gives several quantiles of the value.
    """

    def __init__(self, phase: int, n_quantiles: int):
        super().__init__()
        sizes = (STATE + CLASSES, *HIDDEN)
        hidden = [layer for n, m in zip(sizes, HIDDEN, strict=False) for layer in (torch.nn.Linear(n, m),
                                                                                   torch.nn.ReLU())]
        self.layers = torch.nn.Sequential(*hidden, torch.nn.Linear(HIDDEN[-1], n_quantiles))
        fill(self.layers, phase)

    def forward(self, x):
        pairs = torch.cat([x[:, None].expand(-1, CLASSES, -1), torch.eye(CLASSES).expand(len(x), -1, -1)], -1)
        quantiles = self.layers(pairs)
        n = quantiles.shape[-1]
        levels = (torch.arange(n)[None] + 0.5) / n
        return QFunctionOutput(quantiles.mean(-1), *((quantiles, levels) if n > 1 else (None, None)))


def of_classes(batch: TorchMiniBatch) -> TorchMiniBatch:
    """The batch with classes as actions."""
    return dataclasses.replace(batch, actions=(torch.arange(B) % CLASSES).float()[:, None])


def losses_of_classes(batch: TorchMiniBatch, n_quantiles: int = 1, **options) -> dict:
    """Losses of DQN, double DQN, NFQ, discrete CQL, discrete BCQ and discrete SAC."""
    encoder, result = VectorEncoderFactory(list(HIDDEN)), {}
    for name, config, phase in (("dqn", DoubleDQNConfig, 300), ("discrete_cql", DiscreteCQLConfig, 300),
                                ("plain_dqn", DQNConfig, 309), ("nfq", NFQConfig, 200)):
        algorithm = config(encoder_factory=encoder, **options).create(device="cpu:0")
        algorithm.create_impl((STATE,), CLASSES)
        modules = algorithm.impl._modules
        fill(modules.q_funcs[0], 200)
        fill(modules.targ_q_funcs[0], phase)  # that of NFQ is copied in each update
        result[name] = {"loss": algorithm.impl.compute_loss(batch, algorithm.impl.compute_target(batch)).loss}
    algorithm = DiscreteBCQConfig(encoder_factory=encoder, share_encoder=False, beta=0.0, **options).create("cpu:0")
    algorithm.create_impl((STATE,), CLASSES)
    bcq = algorithm.impl
    fill(bcq._modules.imitator, 108, 0.5)
    fill(bcq._modules.q_funcs[0], 200)
    fill(bcq._modules.targ_q_funcs[0], 300)
    loss = bcq.compute_loss(batch, bcq.compute_target(batch))
    result["discrete_bcq"] = {"value": loss.td_loss, "cloning": loss.imitator_loss,
                              "classes": bcq.predict_best_action(batch.observations)}
    algorithm = DiscreteSACConfig(actor_encoder_factory=encoder, initial_temperature=0.5, **options).create("cpu:0")
    algorithm.create_impl((STATE,), CLASSES)
    sac = algorithm.impl
    fill(sac._modules.policy, 100)
    for forwarder, phase in ((sac._q_func_forwarder, 200), (sac._targ_q_func_forwarder, 300)):
        for i, network in enumerate(forwarder.forwarders):
            network.set_q_func(ScoredClasses(phase + 50 * i, n_quantiles))
    temperature = sac.update_temp(sac._modules.policy(batch.observations))["temp_loss"]
    with torch.no_grad():  # as it was before this update
        sac._modules.log_temp._parameter.fill_(np.log(0.5))
    critic = sac.compute_critic_loss(batch, sac.compute_target(batch))
    with mock.patch.object(sac, "update_temp", lambda dist: {}):
        policy = sac.compute_actor_loss(batch)["loss"]
    return {**result, "discrete_sac": {"critic": critic, "policy": policy, "temperature": temperature}}


def fitted_evaluation(batch: TorchMiniBatch, **options) -> dict:
    """The loss of fitted Q evaluation of the policy of TD3+BC, whose actions after the step are given as well."""
    policy = d3rlpy.algos.TD3PlusBCConfig(actor_encoder_factory=VectorEncoderFactory(list(HIDDEN))).create("cpu:0")
    policy.create_impl((STATE,), ACTION)
    fill(policy.impl._modules.policy, 100)
    fqe = FQE(policy, FQEConfig(encoder_factory=VectorEncoderFactory(list(HIDDEN)), **options), device="cpu:0")
    fqe.create_impl((STATE,), ACTION)
    fill(fqe.impl._modules.q_funcs[0], 200)
    fill(fqe.impl._modules.targ_q_funcs[0], 300)
    following = policy.impl.predict_best_action(batch.next_observations)
    return {"loss": fqe.impl.compute_loss(batch, fqe.impl.compute_target(batch, following))}


def advantage_weighted(batch: TorchMiniBatch) -> dict:
    """Losses and weights of AWAC and CRR."""
    awac, crr = build(AWACConfig, n_action_samples=SAMPLES, lam=2.0), build(CRRConfig, beta=2.0)
    binary = build(CRRConfig, advantage_type="max", weight_type="binary")
    output = awac._modules.policy(batch.observations)
    return {"awac": {"policy": awac.compute_actor_loss(batch, output).actor_loss,
                     "weights": awac._compute_weights(batch.observations, batch.actions)[:, 0],
                     "std": output.logstd.exp()[0]},
            "crr": {"weights": crr._compute_weight(batch.observations, batch.actions)[:, 0],
                    "binary": binary._compute_weight(batch.observations, batch.actions)[:, 0],
                    "critic": crr.compute_critic_loss(batch, crr.compute_target(batch)).critic_loss,
                    "policy": crr.compute_actor_loss(batch, crr._modules.policy(batch.observations)).actor_loss}}


def deterministic(batch: TorchMiniBatch) -> dict:
    """Losses of DDPG, PLAS without and with a perturbation, and PRDC, whose data are the batch."""
    ddpg, plas, prdc = build(DDPGConfig), build(PLASConfig), build(PRDCConfig)
    perturbed = build(PLASWithPerturbationConfig, action_flexibility=0.2)
    prdc._nbsr.fit(torch.cat([prdc._beta * batch.observations, batch.actions], 1).numpy())
    actions, latents = prdc._modules.policy(batch.observations), perturbed._modules.policy(batch.observations)
    with mock.patch("torch.distributions.normal._standard_normal", noise):
        cloning = plas.compute_imitator_grad(batch)["loss"]
    return {"ddpg": {"critic": ddpg.compute_critic_loss(batch, ddpg.compute_target(batch)).critic_loss},
            "plas": {"vae": cloning, "critic": plas.compute_critic_loss(batch, plas.compute_target(batch)).critic_loss,
                     "policy": plas.compute_actor_loss(batch, plas._modules.policy(batch.observations)).actor_loss},
            "plas_with_perturbation": {
                "critic": perturbed.compute_critic_loss(batch, perturbed.compute_target(batch)).critic_loss,
                "policy": perturbed.compute_actor_loss(batch, latents).actor_loss},
            "prdc": {"policy": prdc.compute_actor_loss(batch, actions).actor_loss}}


def constrained(batch: TorchMiniBatch) -> dict:
    """Losses of BEAR without entropy, where the plans that it compares are those that act.

    It compares plans of the policy before they are squashed with plans of the autoencoder that are squashed once more.
    """
    bear = build(BEARConfig, n_target_samples=SAMPLES, n_mmd_action_samples=SAMPLES, initial_alpha=0.7,
                 alpha_threshold=0.02, mmd_sigma=2.0)
    with torch.no_grad():
        bear._modules.log_temp._parameter.fill_(-200)

    def latents(shape, **options):
        """Noise of several samples for each observation, in the order of `noise`."""
        return noise(shape).reshape(B, SAMPLES, -1).transpose(0, 1).reshape(shape)

    def cloned(with_squash, **options):
        return forward_vae_sample_n(**options).clamp(-1, 1)

    with (mock.patch("torch.distributions.normal._standard_normal", noise), mock.patch("torch.randn", latents),
          mock.patch.object(bear_impl, "forward_vae_sample_n", cloned),
          mock.patch.object(SquashedGaussianDistribution, "sample_n_without_squash",
                            SquashedGaussianDistribution.sample_n)):
        critic = bear.compute_critic_loss(batch, bear.compute_target(batch)).critic_loss
        policy = bear.compute_actor_loss(batch, bear._modules.policy(batch.observations))
        return {"vae": bear.compute_imitator_loss(batch), "critic": critic, "policy": policy.actor_loss,
                "constraint": policy.mmd_loss}


def of_histories() -> dict:
    """Losses of TACR without noise on target actions, for histories of four steps.

    Its actor is a network of the observation at each step. The peer scores the action of a step with the observation
    after it; here the actions are those of the observations after it.
    """
    algorithm = TACRConfig(critic_encoder_factory=VectorEncoderFactory(list(HIDDEN)), n_critics=1,
                           target_smoothing_sigma=0.0, context_size=5).create("cpu:0")
    algorithm.create_impl((STATE,), ACTION)
    tacr = algorithm.impl
    sizes = (STATE, *HIDDEN)
    hidden = [layer for n, m in zip(sizes, HIDDEN, strict=False) for layer in (torch.nn.Linear(n, m), torch.nn.ReLU())]
    actor = torch.nn.Sequential(*hidden, torch.nn.Linear(HIDDEN[-1], ACTION), torch.nn.Tanh())
    fill(actor, 100)
    fill(tacr._modules.q_funcs[0], 200)
    fill(tacr._modules.targ_q_funcs[0], 300)
    obs, action, reward = (torch.from_numpy(sines((2, 5, n), phase)) for n, phase in ((STATE, 0), (ACTION, 9), (1, 4)))
    ends = (torch.arange(10) % 4 == 3).float().reshape(2, 5, 1)
    batch = TorchTrajectoryMiniBatch(obs, action, reward, reward, ends, torch.zeros(2, 5), torch.ones(2, 5), "cpu:0")
    shorter = dataclasses.replace(batch, observations=obs[:, :4], actions=action[:, :4], masks=torch.ones(2, 4))
    tacr._modules = dataclasses.replace(tacr._modules, transformer=lambda x, *others: actor(x).roll(-1, 1))
    steps, masks = batch.to_transition_batch()
    critic = tacr.compute_critic_loss(steps, tacr.compute_target(batch, steps), masks)
    tacr._modules = dataclasses.replace(tacr._modules, transformer=lambda x, *others: actor(x))
    return {"critic": critic, "policy": tacr.compute_actor_loss(shorter)}


def conservative_loss(algorithm, batch: TorchMiniBatch) -> torch.Tensor:
    """The loss of each critic without its weight and threshold."""
    with mock.patch.object(torch.Tensor, "uniform_", lambda x, low, high: x.copy_(noise(x.shape))):
        weighted = algorithm._compute_conservative_loss(batch.observations, batch.actions, batch.next_observations,
                                                        batch.returns_to_go)
    return weighted / algorithm._conservative_weight + algorithm._alpha_threshold


def with_quantiles(batch: TorchMiniBatch) -> dict:
    """Losses with quantiles of the return in place of its mean."""
    options = {"q_func_factory": QRQFunctionFactory(n_quantiles=QUANTILES)}
    result = {**losses_of_classes(of_classes(batch), QUANTILES, **options),
              "fitted_q": fitted_evaluation(batch, **options)}
    with mock.patch("torch.randn", noise):
        td3, plas = build(TD3PlusBCConfig, **options), build(PLASConfig, **options)
        bcq = build(BCQConfig, n_action_samples=SAMPLES, action_flexibility=0.2, **options)
        for name, peer in (("td3_bc", td3), ("plas", plas), ("bcq", bcq)):
            result[name] = {"critic": peer.compute_critic_loss(batch, peer.compute_target(batch)).critic_loss}
        result["td3_bc"]["policy"] = td3.compute_actor_loss(batch, td3._modules.policy(batch.observations)).actor_loss
    return {f"quantile_{name}": values for name, values in result.items()}


def with_drawn_levels(batch: TorchMiniBatch) -> dict:
    """Losses with quantiles at drawn levels, whose targets are at equally spaced ones."""
    options = {"q_func_factory": IQNQFunctionFactory(n_quantiles=QUANTILES, n_greedy_quantiles=QUANTILES)}
    drawn = torch.from_numpy(0.5 + 0.5 * sines((B, QUANTILES), 21))

    def levels(batch_size, n_quantiles, **options):
        return drawn if torch.is_grad_enabled() else ((torch.arange(n_quantiles) + 0.5) / n_quantiles).repeat(
            batch_size, 1)

    with mock.patch.object(iqn_q_function, "_make_taus", levels), mock.patch("torch.randn", noise):
        result = losses_of_classes(of_classes(batch), QUANTILES, **options)
        td3 = build(TD3PlusBCConfig, **options)
        result |= {"fitted_q": fitted_evaluation(batch, **options),
                   "td3_bc": {"critic": td3.compute_critic_loss(batch, td3.compute_target(batch)).critic_loss}}
    used = ("dqn", "discrete_cql", "plain_dqn", "nfq", "fitted_q", "td3_bc")
    return {f"drawn_{name}": result[name] for name in used}


def losses() -> dict:
    batch, result = make_batch(), {}
    iql = build(IQLConfig)
    output = iql._modules.policy(batch.observations)
    critic = iql.compute_critic_loss(batch, iql.compute_target(batch))
    result["iql"] = {"value": critic.v_loss, "critic": critic.q_loss, "weights": iql._compute_weight(batch)[:, 0],
                     "policy": iql.compute_actor_loss(batch, output).actor_loss, "std": output.logstd.exp()[0]}
    with mock.patch("torch.distributions.normal._standard_normal", noise):
        result |= advantage_weighted(batch)
        cql = build(CQLConfig, n_action_samples=SAMPLES, soft_q_backup=True, initial_temperature=0.5)
        output = cql._modules.policy(batch.observations)
        cal_ql = build(CalQLConfig, n_action_samples=SAMPLES)
        returns = dataclasses.replace(batch, returns_to_go=torch.from_numpy(5 * sines((B, 1), 11)))
        result["cal_ql"] = {"conservative": conservative_loss(cal_ql, returns)}
        result["cql"] = {"conservative": conservative_loss(cql, batch),
                         "target": cql.compute_target(batch)[:, 0], "std": output.logstd.exp()}
    with mock.patch("torch.randn", noise):
        td3 = build(TD3PlusBCConfig)
        critic = td3.compute_critic_loss(batch, td3.compute_target(batch))
        policy = td3.compute_actor_loss(batch, td3._modules.policy(batch.observations))
        result["td3_bc"] = {"critic": critic.critic_loss, "policy": policy.actor_loss}
        bcq = build(BCQConfig, n_action_samples=SAMPLES, action_flexibility=0.2)
        critic = bcq.compute_critic_loss(batch, bcq.compute_target(batch))
        with mock.patch("torch.distributions.normal._standard_normal", noise):
            result["bcq"] = {"vae": bcq.compute_imitator_grad(batch)["loss"], "critic": critic.critic_loss,
                             "policy": bcq.compute_actor_grad(batch).actor_loss}
    result |= {**deterministic(batch), "bear": constrained(batch),
               **losses_of_classes(of_classes(batch)), "fitted_q": fitted_evaluation(batch),
               **with_quantiles(batch), **with_drawn_levels(batch), "tacr": of_histories()}
    return {name: {key: value.detach().numpy().round(7).tolist() for key, value in values.items()}
            for name, values in result.items()}


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump({"d3rlpy": d3rlpy.__version__, **losses()}, file, indent=1)
