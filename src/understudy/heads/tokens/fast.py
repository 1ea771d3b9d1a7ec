"""FAST head: chunks as short sequences of tokens, by a cosine transform and byte-pair encoding."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from ...core import Above, AtLeast, UserError, part
from ...nets.base import precomputed
from ...nets.byte_pair import PAD, BytePairEncoding
from ..base import HeadNet, TemperatureHead, repeat_into_padding, scan, uniform_noise

FORBIDDEN = -1e9  # logit of a token that does not fit into the rest of the chunk


@part
class FAST(TemperatureHead):
    """Autoregressive head over the tokens of a chunk (frequency-space action sequence tokenization).

    The cosine transform of a chunk over its steps is scaled and rounded. Smooth chunks have few coefficients other than
    0. They are ordered from low to high frequencies, with all components of a frequency side by side, and joined to
    tokens by byte-pair encoding, which `fit` learns from the data. The network predicts each token from the tokens
    before it.

    The last action of a chunk that extends past the end of its episode is repeated before the transform. A coefficient
    beyond the range of the training data is set to the nearest end of this range.

    Differences from the published tokenizer: a token that does not fit into the rest of the chunk has probability 0, in
    training and in plans. Every sequence can therefore be decoded, and no token marks the end. (The published decoder
    returns zeros for a sequence of another length.) The published implementation also stores integers as characters,
    and a pre-tokenizer for text keeps it from joining some of them.

    Use it with ``Normalizer(target="quantile")``, and with a trunk that can be causal, such as `Transformer`.

    Args:
        scale: Factor of the coefficients before rounding. The root mean square error of a chunk is at most 0.5 / scale.
        vocab_size: Number of tokens. It must be at least the number of different coefficients.
        max_tokens: Largest number of tokens of a plan. None allows one for each number in the chunk. What a longer
            sequence would add, the highest frequencies, is 0 in plans.
        width: Width of the embedding of a token.
        temperature: 0 chooses the most likely token each time, as the paper does. 1 samples from the distribution.

    References:
        Pertsch et al. (2025), FAST: Efficient Action Tokenization for Vision-Language-Action Models, arXiv:2501.09747.
    """

    scale: Annotated[float, Above(0)] = 10.0
    vocab_size: Annotated[int, AtLeast(1)] = 1024
    max_tokens: Annotated[int | None, AtLeast(1)] = None
    width: Annotated[int, AtLeast(1)] = 64
    temperature: Annotated[float, AtLeast(0)] = 0.0

    def noise(self, horizon, coded_dim):
        return (self.max_tokens or horizon * coded_dim,)

    def build(self, trunk, coded_dim, spec):
        # Every token may read all observations, because it stands for all steps of the chunk.
        n_tokens, newest = self.noise(spec.horizon, coded_dim)[0], max(spec.token_obs_steps, default=0)
        spec_of_tokens = replace(spec, horizon=n_tokens, causal=True, action_start=newest)
        return HeadNet(trunk=trunk.build(self.width, self.vocab_size, 0, spec_of_tokens),
                       tokenizer=ChunkTokenizer(self, spec.horizon, coded_dim), n_tokens=n_tokens,
                       embedding=nn.Embedding(self.vocab_size + 1, self.width))  # the last one is the start

    def fit(self, net, pairs):
        net.tokenizer.fit(torch.cat([repeat_into_padding(action, mask) for _, action, mask in pairs()]))

    def loss(self, net, context, action, mask, rng):
        """Returns the negative log-likelihood of the chunk's tokens, spread evenly over its steps, (B, H)."""
        tokens = net.tokenizer.encode(repeat_into_padding(action, mask))[:, :net.n_tokens]
        log_p = self._logits(net, context, tokens).log_softmax(-1)
        token_loss = -log_p.gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        chunk = torch.where(tokens == PAD, 0.0, token_loss).sum(1)
        return (chunk / mask.sum(1).clamp(min=1)).unsqueeze(1).expand(mask.shape)

    def sample(self, net, context, noise):
        context, place = precomputed(net.trunk, context), torch.arange(net.n_tokens, device=noise.device)

        def step(tokens, i, uniform):
            logits = self._logits(net, context, tokens).index_select(1, i.reshape(1)).squeeze(1)
            if self.temperature:
                p = (logits / self.temperature).softmax(-1).cumsum(-1)
                token = (uniform.unsqueeze(1) * p[:, -1:] > p[:, :-1]).sum(-1)
            else:
                token = logits.argmax(-1)
            return torch.where(place == i, token.unsqueeze(1), tokens)
        tokens = torch.zeros_like(noise, dtype=torch.int64)
        tokens = scan(step, tokens, place, uniform_noise(noise).T)
        return net.tokenizer.decode(tokens)

    @staticmethod
    def _logits(net, context, tokens):
        """Returns the logits of each token given the tokens before it, (B, L, V)."""
        start = torch.full_like(tokens[:, :1], net.embedding.num_embeddings - 1)
        x = net.embedding(torch.cat([start, tokens[:, :-1].clamp(min=0)], 1))
        logits = net.trunk(x, x[..., :0], context)
        pairs = net.tokenizer.pairs
        lengths = pairs.token_lengths(tokens)
        n_missing = pairs.expansions.shape[1] - (lengths.cumsum(1) - lengths)  # symbols, at each token
        fits = (pairs.lengths > 0) & (pairs.lengths <= n_missing.unsqueeze(-1))
        return torch.where(fits, logits, FORBIDDEN)


class ChunkTokenizer(nn.Module):
    """Converts chunks to tokens and back. `decode` undoes `encode` up to the rounding of the coefficients.

    Args:
        horizon: Number of steps of a chunk, H.
        coded_dim: Width of one coded step, A.
    """

    transform: Tensor
    limits: Tensor

    def __init__(self, config: FAST, horizon: int, coded_dim: int):
        super().__init__()
        self.scale, self.shape = config.scale, (horizon, coded_dim)
        self.pairs = BytePairEncoding(config.vocab_size, horizon * coded_dim)
        self.register_buffer("limits", torch.zeros(2, dtype=torch.int64))  # smallest and largest coefficient
        self.register_buffer("transform", cosine_transform(horizon).float(), persistent=False)

    def fit(self, chunks: Tensor) -> None:
        """Learns the range of the coefficients and the vocabulary from chunks without padding, (N, H, A)."""
        coefficients = self.coefficients(chunks)
        low, high = int(coefficients.min()), int(coefficients.max())
        vocab_size = len(self.pairs.lengths)
        if high - low >= vocab_size:
            raise UserError(f"the coefficients of the chunks go from {low} to {high}, which are more values than the "
                            f"{vocab_size} tokens of the vocabulary", where="FAST",
                            hint="use a smaller scale, a larger vocab_size, or Normalizer(target=\"quantile\")")
        self.limits.copy_(torch.tensor([low, high]))
        self.pairs.fit(coefficients - low, high - low + 1)

    def coefficients(self, chunk: Tensor) -> Tensor:
        """Returns the rounded cosine coefficients of chunks (B, H, A), low frequencies first, (B, H * A), int64."""
        transform = cosine_transform(self.shape[0]).to(chunk.device)  # float32 would round some to the other side
        return (self.scale * (transform @ chunk.double())).round().long().flatten(1)

    def encode(self, chunk: Tensor) -> Tensor:
        """Encodes chunks (B, H, A) as tokens, (B, H * A) with `PAD` after the last token of each."""
        return self.pairs.encode(self.coefficients(chunk).clamp(self.limits[0], self.limits[1]) - self.limits[0])

    def decode(self, tokens: Tensor) -> Tensor:
        """Decodes tokens (B, L) to chunks (B, H, A). Coefficients that no token stands for are 0."""
        symbols = self.pairs.decode(tokens)
        coefficients = torch.where(symbols == PAD, 0, symbols + self.limits[0]).to(self.transform.dtype)
        return self.transform.T @ (coefficients.unflatten(1, self.shape) / self.scale)


def cosine_transform(n: int) -> Tensor:
    """Returns the matrix of the orthonormal discrete cosine transform (DCT-II), (n, n), float64."""
    step = torch.arange(n, dtype=torch.float64)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi / n * step.unsqueeze(1) * (step + 0.5))
    return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])
