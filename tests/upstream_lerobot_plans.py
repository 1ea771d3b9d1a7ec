"""Acts with policies of LeRobot by LeRobot's own functions, and writes the actions (run by a test, in a process of its
own):

    python upstream_lerobot_plans.py CHECKPOINT OBSERVATIONS.npz OUT.npz [CHECKPOINT OBSERVATIONS.npz OUT.npz ...]

OBSERVATIONS has one row of each column for each step, images as float32 with channels first, and `seeds`: those of
PyTorch's random numbers before each plan.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors


def act(checkpoint: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The actions of an episode, (T, A)."""
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_backbone_weights = None
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
    before, after = make_pre_post_processors(config, pretrained_path=checkpoint)
    seeds, actions = arrays.pop("seeds"), []
    policy.reset()
    for t in range(len(next(iter(arrays.values())))):
        if t % config.n_action_steps == 0:
            torch.manual_seed(int(seeds[t // config.n_action_steps]))
        obs = before({name: torch.from_numpy(column[t]) for name, column in arrays.items()})
        actions.append(after(policy.select_action(obs)))
    return torch.cat(actions).numpy()


if __name__ == "__main__":
    for checkpoint, observations, out in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3], strict=True):
        np.savez(out, actions=act(checkpoint, dict(np.load(observations))))
