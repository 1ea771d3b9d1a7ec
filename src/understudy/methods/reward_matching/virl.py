from __future__ import annotations

import copy
from dataclasses import field, replace
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ...checkpoint import FromStage
from ...core import Above, AtLeast, AtMost, Unsupported, part
from ...data.episode import Dataset
from ...data.mixture import ROUND, expert_episodes
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.reward_models import RewardedEngine, RewardModelConfig
from ...learn.rewards.transport_reward import EpisodeReward, EpisodeRewardConfig
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy
from ..needs import ENDS, NUMBERS
from ..registry import method
from .pwil import pwil


@part
class SiameseReward(EpisodeRewardConfig):
    """Reward model config: learned distances of a step, and of all steps so far, to a demonstration.

    The reward is ``exp(-(frame_weight * d_e + sequence_weight * d_h))``.

    Each step is compared with the step of the same number in the demonstration. Steps after the end of the
    demonstration are compared with its last step. d_e is the mean squared difference of the encodings of the next
    observation. d_h is the mean squared difference of the states of an LSTM that has read all encodings so far. `VIRL`
    trains them. Of several demonstrations the one that gives the highest return counts.

    Clips start with the episode and end at a random step, mostly early. A clip of a demonstration is to be near a copy
    of itself with noise and at another speed. It is to be at least `margin` away from a clip of an own episode, or from
    itself in shuffled order. Clips are also decoded, from the last state and from each encoding.

    Args:
        is_shuffled: The LSTM reads the own episode in shuffled order when rewards are computed, as a control.
        width: Size of an encoding and of a state.
        noise: Standard deviation of the noise, in coded units.
        warp: Largest relative change of the speed.
        own_rounds: Number of first rounds in which training tells own episodes from demonstrations. Later the policy is
            good, and its episodes would be made to look bad.
        n_clips: Number of triplets of clips in an update.
        loss_weights: Of the losses of states, of encodings, and of what is decoded from states and from encodings.

    References:
        Berseth et al. (2023), Towards Learning to Imitate from a Single Video Demonstration, arXiv:1901.07186.
    """

    frame_weight: Annotated[float, AtLeast(0)] = 1.0
    sequence_weight: Annotated[float, AtLeast(0)] = 1.0
    is_shuffled: bool = False
    width: Annotated[int, AtLeast(1)] = 32
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (64,)
    margin: Annotated[float, Above(0)] = 1.0
    noise: Annotated[float, AtLeast(0)] = 0.5
    warp: Annotated[float, AtLeast(0), AtMost(1)] = 0.2
    own_rounds: Annotated[int, AtLeast(1)] = 8
    n_clips: Annotated[int, AtLeast(1)] = 16
    loss_weights: Annotated[tuple[float, float, float, float], AtLeast(0)] = (0.7, 0.1, 0.1, 0.1)
    inputs = "next"

    def build(self, policy, data):
        return SiameseModel.of(self, policy, data)


class SiameseModel(EpisodeReward):
    """The reward model that `SiameseReward` configures. Its rewards change only with collection rounds."""

    n_rounds: Tensor

    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        config, size = self.config, sum(self.features[name].size for name in self.inputs)
        self.encoders = nn.ModuleList([feed_forward_layers((size, *config.hidden, config.width), "relu"),
                                       nn.LSTM(config.width, config.width, batch_first=True)])
        self.unroll = nn.LSTM(config.width, config.width, batch_first=True)
        self.decode = feed_forward_layers((config.width, *config.hidden, size), "relu")
        self.scoring = copy.deepcopy(self.encoders).requires_grad_(False)
        self.register_buffer("n_rounds", torch.tensor(0))
        self.own: list[Tensor] = []

    def follow(self, data: Dataset) -> Dataset:
        """Updates the networks of the rewards if there is a new round, and returns the episodes with rewards."""
        last, expert = max((e.metadata.get(ROUND, -1) for e in data), default=-1), set(expert_episodes(data))
        if last >= self.n_rounds:
            self.scoring.load_state_dict(self.encoders.state_dict())
            self.n_rounds.fill_(last + 1)
        self.own = [self.read(episode) for i, episode in enumerate(data)
                    if i not in expert and episode.metadata.get(ROUND, -1) < self.config.own_rounds]
        return self.annotate(data)

    def loss(self, own, expert, rng):
        return self.clip_loss(self.clips(rng)).mean().expand(len(own))

    def clip_loss(self, clips: Tensor) -> Tensor:
        """Returns the loss of triplets of a demonstration, a similar and another clip, (N, 3, T, D), of each, (N,)."""
        encode, remember = self.encoders
        e = encode(clips)
        h = remember(e.flatten(0, 1))[0][:, -1].unflatten(0, e.shape[:2])
        again = self.unroll(h[:, :2].flatten(0, 1).unsqueeze(1).repeat(1, clips.shape[2], 1))[0]
        decoded = [self.decode(code) for code in (again.unflatten(0, (-1, 2)), e[:, :2])]
        terms = (self.contrast(h), self.contrast(e).mean(1),
                 *((x - clips[:, :2]).square().mean((-2, -1)).sum(1) for x in decoded))
        return sum((w * term for w, term in zip(self.config.loss_weights, terms, strict=True)), h.new_zeros(len(h)))

    def contrast(self, codes: Tensor) -> Tensor:
        """Returns the distance of the first two codes plus what the first and third lack of the margin, (N, ...)."""
        first, similar, other = codes.unbind(1)
        return mean_square(first, similar) + (self.config.margin - mean_square(first, other)).relu()

    def clips(self, rng: Generator) -> Tensor:
        """Returns random triplets for `clip_loss`."""
        def uniform(*shape):
            return torch.rand(shape, generator=rng, device=rng.device)
        n, n_shown, longest = self.config.n_clips, len(self.lengths), int(self.lengths.max())
        steps = torch.cat([self.points, *self.own])
        lengths = torch.cat([self.lengths, self.lengths.new_tensor([len(episode) for episode in self.own])])
        T = longest - int(longest * float(uniform(1))**0.5)  # its density falls linearly to 0
        rows = torch.arange(T, device=rng.device).repeat(n, 1)
        episode, similar = (uniform(2, n) * n_shown).long()
        is_own = (uniform(n) < 0.5) & bool(self.own)
        other = torch.where(is_own, n_shown + (uniform(n) * len(self.own)).long(), episode)
        speed = 1 + self.config.warp * (2 * uniform(n, 1) - 1)
        drawn = torch.stack([rows, (rows * speed).round().long(),
                             torch.where(is_own[:, None], rows, uniform(n, T).argsort(1))], 1)
        chosen = torch.stack([episode, similar, other], 1)[..., None]
        clips = steps[(lengths.cumsum(0) - lengths)[chosen] + torch.minimum(drawn, lengths[chosen] - 1)]
        clips[:, 1] += self.config.noise * torch.randn(clips[:, 1].shape, generator=rng, device=rng.device)
        return clips

    @torch.no_grad()
    def rewards(self, steps):
        encode, remember = self.scoring
        order = torch.randperm(len(steps), generator=Generator().manual_seed(0)).to(steps.device)
        e, candidates = encode(steps), []
        h = remember(e[order] if self.config.is_shuffled else e)[0]
        for demonstration in self.points.split(self.lengths.tolist()):
            row = torch.arange(len(steps), device=steps.device).clamp(max=len(demonstration) - 1)
            expert = encode(demonstration)
            distance = (self.config.frame_weight * mean_square(e, expert[row])
                        + self.config.sequence_weight * mean_square(h, remember(expert)[0][row]))
            candidates.append((-distance).exp())
        return max(candidates, key=lambda rewards: float(rewards.sum()))


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Returns the mean squared difference of vectors, (..., D), (...)."""
    return (a - b).square().mean(-1)


@method("Berseth et al. 2023 (VIRL), arXiv 1901.07186, with numbers in place of pictures, and TD3 in place of TRPO",
        rows=("186",), needs=(NUMBERS, ENDS, "an environment"),
        when="if there is one demonstration, and an environment to follow it in.")
@part
class VIRL(TD3):
    """TD3 with the learned distance of each step, and of all steps so far, from those of a demonstration.

    It trains a `SiameseReward`. After each round of collection all stored steps get new rewards.
    """

    reward: RewardModelConfig | FromStage | None = SiameseReward()
    reward_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant"))

    def method(self, n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1) -> Method:
        return replace(pwil(n_rounds, n_episodes, noise), learner=self)

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> VIRLEngine:
        return VIRLEngine(self, policy, seed, steps, data)


class VIRLEngine(RewardedEngine):
    """Learner of `VIRL`, which computes new rewards when episodes have been collected."""

    config: VIRL

    def register_reward(self, data):
        if not isinstance(self.config.reward, SiameseReward):
            raise Unsupported("it trains the networks of a SiameseReward", where="VIRL.reward",
                              hint="use SiameseReward(), or TD3 for another reward")
        self.reward = self.register("reward", self.config.reward.build(self.policy, data), self.config.reward_optimizer)

    def batch_sampler(self, data, sampling_weights=None):
        assert isinstance(self.reward, SiameseModel)
        return super().batch_sampler(self.reward.follow(data), sampling_weights)
