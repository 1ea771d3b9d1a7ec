from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...checkpoint import BuiltModule, FromStage
from ...core import AtLeast, Batch, Feature, Schema, Unsupported, part
from ...data.codec import CodecModule
from ...data.episode import Dataset
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.gmm import GMM
from ...learn.algorithm import Algorithm, Net, loss
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.cloning.latent_labels import LatentEncoder
from ...learn.cloning.retrieval import SAMPLING_WEIGHT, Retrieve
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.ema import EMADecay, WarmupDecay
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@part
class StateActionVAE(Algorithm):
    """Learns an embedding of observations together with actions, to find windows that are alike (`Retrieve`).

    A variational autoencoder reads the observations of a window and its actions, both as the codec of the policy codes
    them, and reconstructs them. Its loss is the mean squared error plus `beta` times the KL divergence from a standard
    normal distribution.

    It is the learner of a stage. Its checkpoint has the modules "policy" and "embedding". The policy is trained by
    behavior cloning on the same batches. It does not change the embedding, and is the baseline that learns from all
    data of the stage.

    Args:
        beta: Weight of the KL divergence, which is a sum over the components.
        widths: Widths of the hidden layers of the encoder, and of the decoder.
        encoder: What is compared. It has no trained weights: cameras need ``ConcatEncoder(vision=...)``, whose
            features are reconstructed in place of the images.
        optimizer: Optimizer of both modules.
        ema: Decay of the averaged weights, which are stored.

    References:
        Du et al. (2023), Behavior Retrieval: Few-Shot Imitation Learning by Querying Unlabeled Datasets,
        arXiv:2304.08742. The defaults come from the authors' code for states, which trains about 2,000 epochs.
    """

    latent_dim: Annotated[int, AtLeast(1)] = 14
    beta: Annotated[float, AtLeast(0)] = 1e-4
    widths: Annotated[tuple[int, ...], AtLeast(1)] = (300, 400)
    encoder: ConcatEncoder = field(default_factory=ConcatEncoder)
    steps: Annotated[int, AtLeast(0)] = 5000
    batch_size: Annotated[int, AtLeast(1)] = 100
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        spec = StateActionEmbeddingSpec(self.latent_dim, self.widths, self.encoder, policy.config)
        embedding = StateActionEmbedding(spec, policy.features, policy.codec)
        return {"policy": Net(nn.ModuleDict({"policy": policy, "embedding": embedding}), self.optimizer,
                              average=self.ema)}

    @loss("policy")
    def losses(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the loss of the policy, (B, H), and of the autoencoder, (B,)."""
        values = nets.embedding.values(batch)
        mean, log_std = nets.embedding.posterior(values)
        latent = mean + log_std.exp() * torch.randn(mean.shape, generator=rng, device=mean.device)
        reconstruction = (nets.embedding.decoder(latent) - values).square().mean(-1)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
        return (nets.policy.loss(batch, rng), reconstruction + self.beta * divergence,
                {"reconstruction": reconstruction, "kl": divergence})


@dataclass(frozen=True)
class StateActionEmbeddingSpec:
    """Settings and columns that determine a `StateActionEmbedding`, without its weights.

    Attributes:
        policy: The policy of the stage. The embedding has its codec and reads its windows.
    """

    latent_dim: int
    widths: tuple[int, ...]
    encoder: ConcatEncoder
    policy: PolicyConfig


class StateActionEmbedding(BuiltModule, LatentEncoder):
    """Embedding of a window: the mean of its latent, followed by its coded actions (0 after the end).

    Args:
        codec: Codec module to share with the policy. None builds a new one without statistics.
    """

    kind, description = "embedding", StateActionEmbeddingSpec

    def __init__(self, about: StateActionEmbeddingSpec, features: Schema, codec: CodecModule | None = None):
        super().__init__(about, features)
        policy = about.policy
        if policy.window.goals:
            raise Unsupported("goals are drawn at random, so that windows have no fixed latent",
                              where="StateActionVAE", hint="leave the goals out of the window of the stage's policy")
        self.inputs = tuple(k for k in features if k != policy.target)
        self.codec = policy.codec.build(features, self.inputs, policy.target) if codec is None else codec
        self.encoder = about.encoder.build({k: features[k] for k in self.inputs}, policy.window.n_obs_steps)
        actions = policy.window.horizon * self.codec.width
        size = self.encoder.tokens * self.encoder.width + actions
        self.latent = Feature("float32", (about.latent_dim + actions,))
        self.net = feed_forward_layers((size, *about.widths, 2 * about.latent_dim))
        self.decoder = feed_forward_layers((about.latent_dim, *about.widths, size))

    def windows(self, data):
        policy = self.about.policy
        return policy.window.windows(data, self.inputs, policy.target)

    def values(self, batch: Batch) -> Tensor:
        """Returns coded observations and actions of each window, (B, size)."""
        action = self.codec.encode(batch.action, batch.obs) * batch.mask.unsqueeze(-1)
        context = self.encoder(self.codec.encode_obs(batch.obs))
        return torch.cat([context.flat(), action.flatten(1)], -1)

    def posterior(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and logarithm of the standard deviation of the latent, (B, latent_dim) each."""
        mean, log_std = self.net(values).chunk(2, -1)
        return mean, log_std.clamp(-10, 5)

    def forward(self, batch):
        values = self.values(batch)
        actions = self.latent.size - self.about.latent_dim
        return torch.cat([self.posterior(values)[0], values[:, -actions:]], -1).float()


@method("Du et al. 2023, arXiv 2304.08742, which retrieves above a threshold and has a recurrent policy",
        needs=(NUMBERS, "prior data (--prior)", "no cameras in the embedding"),
        when="if the task has few demonstrations and much unlabeled prior data contains it; its gain is undecided "
             "here.")
def behavior_retrieval(
    fraction: float = 0.25, latent_dim: int = 14, beta: float = 1e-4, n_obs_steps: int = 1, horizon: int = 1
) -> Method:
    """Behavior cloning of a task's demonstrations and of the steps of prior data that are most like them.

    Args:
        fraction: Fraction of the prior steps to learn from.
        latent_dim: Number of components of the embedding in which steps are compared.
        beta: Weight of the KL divergence of the embedding.
        horizon: Number of actions in a chunk. All are executed before the next plan.
    """
    policy = PolicyConfig(GMM(), window=Window(n_obs_steps, horizon))
    embedding = Stage("embedding", Method(policy, learner=StateActionVAE(latent_dim, beta)), dataset="prior")
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(sampling_column=SAMPLING_WEIGHT),
                  (Retrieve(FromStage("embedding", "embedding"), fraction=fraction),), (embedding,))
