"""One cell of benchmarks/return_curves.py with GAIL of imitation, which calls this script.

The settings are those of imitation's own example for CartPole (PPO with a discount of 0.95 in eight environments, and 8
updates of the discriminator in each round), but for rounds of 2,048 steps, between which the policy is evaluated.
TensorBoard, which it imports, is not installed.
"""

from __future__ import annotations

import sys
from unittest import mock

sys.modules["torch.utils.tensorboard"] = mock.MagicMock()

import gymnasium  # noqa: E402
import numpy as np  # noqa: E402
from curve import Curve  # noqa: E402
from imitation.algorithms.adversarial.gail import GAIL  # noqa: E402
from imitation.data.types import Trajectory  # noqa: E402
from imitation.rewards.reward_nets import BasicRewardNet  # noqa: E402
from imitation.util.networks import RunningNorm  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

N_ENVIRONMENTS = 8


def episodes(path: str) -> list[Trajectory]:
    """The demonstrations, whose observations have one row more than their actions."""
    with np.load(path, allow_pickle=False) as arrays:
        obs, action, ends = (arrays[name] for name in ("observations", "actions", "episode_ends"))
        parts = enumerate(zip([0, *ends], ends, arrays["terminal"], strict=False))
        return [Trajectory(obs[start + i:stop + i + 1], action[start:stop], None, bool(end))
                for i, (start, stop, end) in parts]


def main() -> None:
    demonstrations, name, n_steps, every, seed, out, *starts = sys.argv[1:]
    environments = DummyVecEnv([lambda: gymnasium.make(name)] * N_ENVIRONMENTS)
    environments.seed(int(seed))
    policy = PPO("MlpPolicy", environments, batch_size=64, ent_coef=0.0, learning_rate=4e-4, gamma=0.95, n_epochs=5,
                 n_steps=int(every) // N_ENVIRONMENTS, seed=int(seed), device="cpu")
    reward = BasicRewardNet(environments.observation_space, environments.action_space,
                            normalize_input_layer=RunningNorm)
    gail = GAIL(demonstrations=episodes(demonstrations), demo_batch_size=1024, gen_replay_buffer_capacity=512,
                n_disc_updates_per_round=8, venv=environments, gen_algo=policy, reward_net=reward,
                allow_variable_horizon=True)
    curve = Curve(name, every, starts)
    gail.train(int(n_steps), lambda number: curve.look(
        (number + 1) * int(every), lambda obs: policy.predict(obs, deterministic=True)[0]))
    curve.write(out)


if __name__ == "__main__":
    main()
