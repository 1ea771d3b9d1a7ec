"""VQ-BeT head: chooses the discrete codes of a chunk, decodes them, and corrects the result."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ...core import Above, AtLeast, part
from ...nets.feed_forward import feed_forward_layers
from ...nets.quantization import ResidualVQ
from ..base import HeadNet, TemperatureHead, gumbel_noise, repeat_into_padding

COMMITMENT_WEIGHT = 5.0  # of the distance between a latent and its codes
CODE_DECAY = 0.8  # fraction of the codes' moving averages that an update keeps


@part
class VQBeT(TemperatureHead):
    """Vector-quantized behavior transformer head: residual codes of a chunk, and an offset for each of them.

    `fit` trains an autoencoder of chunks whose latent is quantized by residual codebooks, and freezes it. It depends on
    the data and on the fields below alone, so a run that is started again finds the same codes. The network then
    predicts a distribution over the codes of each level, which are drawn independently of each other, and an offset for
    each code. A plan is the decoded chunk plus the offsets of the chosen codes.

    Chunks that extend past the end of their episode are encoded with their last action repeated.

    Args:
        n_codes: Number of codes of each codebook, K.
        n_levels: Number of codebooks, L.
        gamma: Exponent of the focal loss ``-(1 - p)**gamma * log(p)`` of a code.
        first_code_weight: Weight of the loss of the first level, which is the coarse one.
        other_code_weight: Weight of the loss of each further level.
        offset_weight: Weight of the absolute error of the plan. The authors have 10 for PushT and 100 for the kitchen.
        offset_codes: For which codes offsets are trained. ``"sampled"`` draws them from the predicted distribution, as
            the authors do. Such an offset is a median over all modes: where two modes are equally plausible, it
            corrects a code of the rarer one to the other one. ``"encoded"`` takes the codes of the demonstrated chunk.
        width: Width of the layers of the autoencoder.
        fit_steps: Number of updates of the autoencoder.
        fit_batch_size: Number of chunks in each of them.
        temperature: Temperature of the choice of codes. 0 takes the most likely ones.

    References:
        Lee et al. (2024), Behavior Generation with Latent Actions, arXiv:2403.03181.
    """

    n_codes: Annotated[int, AtLeast(2)] = 16
    n_levels: Annotated[int, AtLeast(1)] = 2
    gamma: Annotated[float, AtLeast(0)] = 2.0
    first_code_weight: Annotated[float, AtLeast(0)] = 5.0
    other_code_weight: Annotated[float, AtLeast(0)] = 0.5
    offset_weight: Annotated[float, AtLeast(0)] = 10.0
    offset_codes: Literal["sampled", "encoded"] = "sampled"
    latent_dim: Annotated[int, AtLeast(1)] = 512
    width: Annotated[int, AtLeast(1)] = 128
    fit_steps: Annotated[int, AtLeast(0)] = 1000
    fit_batch_size: Annotated[int, AtLeast(1)] = 512
    fit_lr: Annotated[float, Above(0)] = 1e-3
    temperature: Annotated[float, AtLeast(0)] = 1.0

    def noise(self, horizon, coded_dim):
        return (horizon, self.n_levels * self.n_codes)

    def build(self, trunk, coded_dim, spec):
        outputs = self.n_levels * self.n_codes * (1 + coded_dim)
        return HeadNet(trunk=trunk.build(0, outputs, 0, spec),
                       autoencoder=ChunkAutoencoder(self, spec.horizon, coded_dim))

    def fit(self, net, pairs):
        chunks = torch.cat([repeat_into_padding(action, mask) for _, action, mask in pairs()])
        net.autoencoder.fit(chunks, self.fit_steps, self.fit_batch_size, self.fit_lr)

    def loss(self, net, context, action, mask, rng):
        """Returns the focal loss of the chunk's codes, plus the weighted absolute error of each step, (B, H)."""
        logits, offset = self._predict(net, context, action)
        with torch.autocast(action.device.type, enabled=False):  # the codes of a chunk are the same in any precision
            encoded = net.autoencoder.encode(repeat_into_padding(action, mask))
        log_p = logits.log_softmax(-1).gather(-1, encoded.unsqueeze(-1)).squeeze(-1)  # (B, L)
        weight = torch.full_like(log_p[0], self.other_code_weight)
        weight[0] = self.first_code_weight
        focal = -(weight * (1 - log_p.exp()) ** self.gamma * log_p).sum(1)
        chosen = encoded
        if self.offset_codes == "sampled":
            noise = torch.randn(logits.shape, generator=rng, device=logits.device)
            chosen = (logits.detach() + gumbel_noise(noise)).argmax(-1)
        error = (self._decode(net, chosen, offset) - action).abs().mean(-1)
        return focal.unsqueeze(1) + self.offset_weight * error

    def sample(self, net, context, noise):
        logits, offset = self._predict(net, context, noise)
        gumbel = gumbel_noise(noise[:, 0]).unflatten(-1, (self.n_levels, -1))
        return self._decode(net, (logits + self.temperature * gumbel).argmax(-1), offset)

    def _predict(self, net, context, like):
        """Returns the logits of the codes (B, L, K), and their offsets (B, H, L, K, A)."""
        out = net.trunk(like[..., :0], like[..., :0], context).unflatten(-1, (self.n_levels, self.n_codes, -1))
        return out[..., 0].mean(1), out[..., 1:]

    @staticmethod
    def _decode(net, index, offset):
        """Returns the decoded chunk plus the offsets of its codes, (B, H, A)."""
        rows = index[:, None, :, None, None].expand(-1, offset.shape[1], -1, -1, offset.shape[-1])
        return net.autoencoder.decode(index) + offset.gather(3, rows).squeeze(3).sum(2)


class ChunkAutoencoder(nn.Module):
    """Autoencoder of chunks with a quantized latent. Its weights are frozen outside `fit`.

    Args:
        horizon: Number of steps of a chunk, H.
        coded_dim: Width of one coded step, A.
    """

    def __init__(self, config: VQBeT, horizon: int, coded_dim: int):
        super().__init__()
        self.shape = (horizon, coded_dim)
        widths = config.width, config.width
        self.encoder = feed_forward_layers((horizon * coded_dim, *widths, config.latent_dim))
        self.decoder = feed_forward_layers((config.latent_dim, *widths, horizon * coded_dim))
        self.quantizer = ResidualVQ(config.n_levels, config.n_codes, config.latent_dim)
        self.requires_grad_(False)

    def encode(self, chunk: Tensor) -> Tensor:
        """Encodes chunks (B, H, A) as codes (B, L)."""
        return self.quantizer.encode(self.encoder(chunk.flatten(1)))

    def decode(self, index: Tensor) -> Tensor:
        """Decodes codes (B, L) to chunks (B, H, A)."""
        return self.decoder(self.quantizer.decode(index)).unflatten(1, self.shape)

    @torch.enable_grad()
    def fit(self, chunks: Tensor, steps: int, batch_size: int, lr: float) -> None:
        """Trains new weights and codes on chunks without padding, (N, H, A). The result depends on the arguments alone.
        """
        rng, chunks = torch.Generator().manual_seed(0), chunks.flatten(1)
        self._initialize(rng)
        self.requires_grad_(True)
        optimizer = torch.optim.Adam(self.parameters(), lr, weight_decay=1e-4)
        for _ in range(steps):
            rows = torch.randint(len(chunks), (min(batch_size, len(chunks)),), generator=rng).to(chunks.device)
            batch = chunks[rows]
            latent = self.encoder(batch)
            self.quantizer.update(latent, CODE_DECAY, rng)
            index = self.quantizer.encode(latent)
            # The latent receives the gradient of the decoder's input unchanged, as if nothing were quantized.
            decoded = self.decoder(latent + (self.quantizer.decode(index) - latent).detach())
            commitment = self.quantizer.commitment(latent, index).mean()
            optimizer.zero_grad()
            ((decoded - batch).abs().mean() + COMMITMENT_WEIGHT * commitment).backward()
            optimizer.step()
        optimizer.zero_grad()
        self.requires_grad_(False)

    @torch.no_grad()
    def _initialize(self, rng):
        self.quantizer.counts.zero_()
        for layer in (*self.encoder, *self.decoder):
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(nn.init.orthogonal_(torch.empty(layer.weight.shape), generator=rng))
                nn.init.zeros_(layer.bias)
