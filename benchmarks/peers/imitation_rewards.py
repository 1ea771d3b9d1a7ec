"""Rewards and losses of imitation's discriminators for fixed weights and one fixed batch, which tests compare.

    .venv-peers/imitation/bin/python benchmarks/peers/imitation_rewards.py tests/fixtures/imitation_rewards.json

The weights and the batch are sines.
"""

import json
import sys
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from imitation.algorithms.adversarial.airl import AIRL
from imitation.algorithms.adversarial.gail import GAIL
from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet
from torch.nn import functional as F

B, STATE, ACTION, HIDDEN, DISCOUNT = 6, 3, 2, (8, 7), 0.97


def sines(shape, phase: float) -> torch.Tensor:
    """Numbers from -1 to 1 without a pattern."""
    numbers = np.sin(1.7 * np.arange(1, np.prod(shape, dtype=int) + 1) ** 1.3 + phase)
    return torch.from_numpy(numbers.reshape(shape).astype(np.float32))


def transitions(phase: int) -> tuple[torch.Tensor, ...]:
    ends = torch.arange(B) % 3 == 0
    return sines((B, STATE), phase), sines((B, ACTION), phase + 1), sines((B, STATE), phase + 2), ends


def losses(algorithm, net, log_prob) -> dict:
    """Reward, logit and loss of an algorithm, of which only the functions of its discriminator are used."""
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(sines(tuple(parameter.shape), 100 + i))
    trainer = mock.Mock(spec=algorithm, _reward_net=net)
    logits = [algorithm.logits_expert_is_high(trainer, *transitions(phase), *log_prob(phase)) for phase in (0, 10)]
    labels = torch.cat([torch.zeros(B), torch.ones(B)])
    loss = F.binary_cross_entropy_with_logits(torch.cat(logits), labels)
    gradient = torch.autograd.grad(loss, net.parameters())
    return {"logit": logits[0].tolist(), "loss": loss.item(), "gradient": [g.norm().item() for g in gradient]}


def main(path: str) -> None:
    spaces = gym.spaces.Box(-1, 1, (STATE,)), gym.spaces.Box(-1, 1, (ACTION,))
    basic = BasicRewardNet(*spaces, hid_sizes=HIDDEN)
    shaped = BasicShapedRewardNet(*spaces, reward_hid_sizes=HIDDEN, potential_hid_sizes=HIDDEN,
                                  discount_factor=DISCOUNT)
    gail = losses(GAIL, basic, lambda phase: (None,))
    airl = losses(AIRL, shaped, lambda phase: (sines((B,), phase + 3),))
    from imitation.algorithms.adversarial.gail import RewardNetFromDiscriminatorLogit
    gail["reward"] = RewardNetFromDiscriminatorLogit(basic)(*transitions(0)).tolist()
    airl["reward"] = shaped(*transitions(0)).tolist()
    with open(path, "w") as file:
        json.dump({"gail": gail, "airl": airl}, file)


if __name__ == "__main__":
    main(sys.argv[1])
