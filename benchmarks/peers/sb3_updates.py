"""One update of SAC, TD3 and PPO of stable-baselines3, on fixed weights, a fixed batch and fixed noise.

    python benchmarks/peers/sb3_updates.py     # in an environment with benchmarks/peers/sb3.txt

writes `tests/fixtures/sb3_updates.npz`, which `tests/learn/critics/test_sb3_updates.py` compares this library with: the
batch, the noise, and of each network the weights before, the gradient, the loss and the weights after the update.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.type_aliases import ReplayBufferSamples

OUT = Path(__file__).parents[2] / "tests" / "fixtures" / "sb3_updates.npz"
B, OBS, ACTIONS, HIDDEN, RATE = 16, 3, 2, [8, 8], 0.01
PLAIN = {"activation_fn": torch.nn.ReLU}


def waves(*shape: int, phase: float) -> np.ndarray:
    return np.sin(1.7 * np.arange(np.prod(shape)) + phase).astype(np.float32).reshape(shape)


BATCH = {"obs": waves(B, OBS, phase=1), "next_obs": waves(B, OBS, phase=2), "actions": 0.8 * waves(B, ACTIONS, phase=3),
         "rewards": waves(B, 1, phase=4), "dones": (np.arange(B) % 5 == 4).astype(np.float32)[:, None],
         "noise": np.stack([1.3 * waves(B, ACTIONS, phase=5), 1.3 * waves(B, ACTIONS, phase=6)])}


class Numbers(gymnasium.Env):
    """Spaces alone: nothing is stepped."""

    observation_space = gymnasium.spaces.Box(-1, 1, (OBS,))
    action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,))

    def reset(self, *, seed=None, options=None):
        return np.zeros(OBS, np.float32), {}


class Classes(Numbers):
    action_space = gymnasium.spaces.Discrete(3)


class Recorder:
    """What is stored: arrays by name."""

    def __init__(self):
        self.arrays = dict(BATCH)

    def fill(self, name: str, network: torch.nn.Module) -> None:
        """Gives the network fixed weights, and keeps them."""
        with torch.no_grad():
            for i, (key, p) in enumerate(network.named_parameters()):
                p.copy_(torch.from_numpy(0.6 * waves(*p.shape, phase=i + len(name))))
                self.arrays[f"{name}/before/{key}"] = p.detach().numpy().copy()

    def watch(self, name: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Keeps the gradients and the weights of the next step of the optimizer."""
        step = optimizer.step

        def recorded(*args, **kwargs):
            for key, p in network.named_parameters():
                if p.grad is not None:
                    self.arrays[f"{name}/gradient/{key}"] = p.grad.numpy().copy()
            result = step(*args, **kwargs)
            for key, p in network.named_parameters():
                self.arrays[f"{name}/after/{key}"] = p.detach().numpy().copy()
            return result
        optimizer.step = recorded

    def losses(self, name: str, model, *names: str) -> None:
        for key in names:
            self.arrays[f"{name}/loss/{key}"] = np.float32(model.logger.name_to_value[f"train/{key}"])


def samples() -> ReplayBufferSamples:
    names = ("obs", "actions", "next_obs", "dones", "rewards")
    return ReplayBufferSamples(*(torch.from_numpy(BATCH[k]) for k in names))


def off_policy(recorder: Recorder, kind: type, name: str) -> None:
    kwargs = {"policy_kwargs": {"net_arch": HIDDEN, **PLAIN}, "learning_rate": RATE, "device": "cpu", "seed": 0}
    kwargs |= {"ent_coef": "auto_0.7"} if kind is SAC else {"policy_delay": 1}
    model = kind("MlpPolicy", Numbers(), **kwargs)
    model._setup_learn(1)
    model.replay_buffer.sample = lambda *args, **options: samples()
    for part in ("actor", "critic"):
        recorder.fill(f"{name}-{part}", getattr(model, part))
        recorder.watch(f"{name}-{part}", getattr(model, part), getattr(model, part).optimizer)
    recorder.fill(f"{name}-critic_target", model.critic_target)
    if kind is TD3:
        recorder.fill(f"{name}-actor_target", model.actor_target)
    model.train(1, B)
    recorder.losses(name, model, "actor_loss", "critic_loss", *(["ent_coef_loss"] if kind is SAC else []))
    if kind is SAC:
        recorder.arrays["sac/temperature"] = model.log_ent_coef.detach().exp().numpy()


def ppo(recorder: Recorder, env: gymnasium.Env, name: str, squashed: bool) -> None:
    optimizer = {"eps": 1e-8}
    model = PPO("MlpPolicy", env, n_steps=B, batch_size=B, n_epochs=1, learning_rate=RATE, ent_coef=0.1, vf_coef=1.0,
                max_grad_norm=1e9, device="cpu", seed=0,
                policy_kwargs={"net_arch": HIDDEN, **PLAIN, "optimizer_kwargs": optimizer})
    model._setup_learn(1)
    if squashed:
        model.policy.action_dist = SquashedDiagGaussianDistribution(ACTIONS)
    recorder.fill(name, model.policy)
    recorder.watch(name, model.policy, model.policy.optimizer)
    actions = BATCH["actions"] if squashed else np.arange(B)[:, None] % 3
    buffer, starts = model.rollout_buffer, np.arange(B) % 6 == 0  # episodes of 6 steps, the last of which is cut off
    with torch.no_grad():
        values, log_prob, _ = model.policy.evaluate_actions(torch.from_numpy(BATCH["obs"]), torch.from_numpy(
            actions if squashed else actions.flatten()))
    old = log_prob + torch.from_numpy(0.3 * waves(B, phase=7))
    for t in range(B):
        buffer.add(BATCH["obs"][t:t + 1], actions[t:t + 1], BATCH["rewards"][t], np.array([starts[t]]), values[t],
                   old[t:t + 1])
    last = torch.tensor([0.4])
    buffer.compute_returns_and_advantage(last, np.array([False]))
    recorder.arrays |= {f"{name}/{k}": np.asarray(v, np.float32).reshape(-1) for k, v in {
        "actions": actions, "starts": starts, "values": values, "old_log_prob": old, "log_prob": log_prob,
        "advantages": buffer.advantages, "returns": buffer.returns, "last_value": last}.items()}
    model.train()
    recorder.losses(name, model, "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")


def main() -> None:
    recorder, noise = Recorder(), list(torch.from_numpy(BATCH["noise"]))
    torch.distributions.Normal.rsample = lambda self, *shape: self.loc + self.scale * noise.pop(0)
    off_policy(recorder, SAC, "sac")
    with mock.patch.object(torch.Tensor, "normal_", lambda self, mean, std, **options: self.copy_(
            mean + std * torch.from_numpy(BATCH["noise"][1]) if self.shape == (B, ACTIONS) else torch.zeros(()))):
        off_policy(recorder, TD3, "td3")
    ppo(recorder, Numbers(), "ppo-numbers", squashed=True)
    ppo(recorder, Classes(), "ppo-classes", squashed=False)
    np.savez_compressed(OUT, **recorder.arrays)
    print(f"{OUT}: {len(recorder.arrays)} arrays, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
