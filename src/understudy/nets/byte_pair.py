"""Byte-pair encoding of sequences of integers, on tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PAD = -1  # after the last token of a row


class BytePairEncoding(nn.Module):
    """A vocabulary of frequent sequences of symbols. Everything that is learned is in integer buffers.

    Learning starts from one token for each symbol. It joins the most frequent pair of neighboring tokens to a new
    token, again and again, until the vocabulary is full or no pair occurs twice. Among equally frequent pairs, the one
    with the smallest numbers is joined. A sequence is encoded by joining its pairs in the order in which they were
    learned. Both give the same result as Hugging Face's `tokenizers` without a pre-tokenizer, with
    ``min_frequency=2``.

    Args:
        vocab_size: Largest number of tokens, V.
        length: Length of the sequences, n.

    References:
        Sennrich et al. (2016), Neural Machine Translation of Rare Words with Subword Units, arXiv:1508.07909.
    """

    merges: Tensor
    expansions: Tensor
    lengths: Tensor

    def __init__(self, vocab_size: int, length: int):
        super().__init__()
        # Rows (left token, right token, joined token), in the order in which they were learned.
        self.register_buffer("merges", torch.zeros(0, 3, dtype=torch.int64))
        self.register_buffer("expansions", torch.zeros(vocab_size, length, dtype=torch.int64))
        self.register_buffer("lengths", torch.zeros(vocab_size, dtype=torch.int64))  # 0: there is no such token

    def fit(self, sequences: Tensor, n_symbols: int) -> None:
        """Learns the vocabulary.

        Args:
            sequences: Symbols from 0 to ``n_symbols - 1``, (N, n), int64.
            n_symbols: Number of symbols, at most V. Symbols that do not occur are in the vocabulary, too.
        """
        vocab_size, length = self.expansions.shape
        words, repeats = sequences.cpu().unique(dim=0, return_counts=True)
        tokens: list[tuple[int, ...]] = [(symbol,) for symbol in range(n_symbols)]
        numbers = {token: number for number, token in enumerate(tokens)}
        merges: dict[tuple[int, int], int] = {}
        counts = torch.zeros(vocab_size**2, dtype=torch.int64)
        _count_pairs(counts, words, repeats)
        while len(tokens) < vocab_size and length > 1:
            best = int(counts.argmax())  # the first of equals
            if counts[best] < 2:
                break
            left_token, right_token = divmod(best, vocab_size)
            joined = tokens[left_token] + tokens[right_token]
            if joined not in numbers:  # "ab" + "c" and "a" + "bc" are one token
                numbers[joined] = len(tokens)
                tokens.append(joined)
            merges.pop((left_token, right_token), None)  # a pair that occurs again later moves to the end
            merges[left_token, right_token] = numbers[joined]
            rows = _is_pair(words, left_token, right_token).any(1).nonzero().flatten()
            _count_pairs(counts, words[rows], -repeats[rows])
            words[rows] = _join_all(words[rows], left_token, right_token, numbers[joined])
            _count_pairs(counts, words[rows], repeats[rows])
        device = self.lengths.device
        self.merges = torch.tensor([[*pair, token] for pair, token in merges.items()], device=device).reshape(-1, 3)
        self.expansions.zero_()
        self.lengths.zero_()
        for number, token in enumerate(tokens):
            self.expansions[number, :len(token)] = torch.tensor(token, device=device)
            self.lengths[number] = len(token)

    def encode(self, sequences: Tensor) -> Tensor:
        """Encodes symbols (B, n), int64, as tokens (B, n). Each row ends with as many `PAD` as tokens were joined."""
        rows, n_merges, length = sequences, len(self.merges), sequences.shape[1]
        if not n_merges or length < 2:
            return rows
        vocab_size, position = len(self.lengths), torch.arange(length - 1, device=rows.device)
        sorted_pairs, rank = (self.merges[:, 0] * vocab_size + self.merges[:, 1]).sort()
        for _ in range(length - 1):
            left_tokens, right_tokens = rows[:, :-1], rows[:, 1:]
            pair = torch.where(right_tokens == PAD, PAD, left_tokens * vocab_size + right_tokens)
            index = torch.searchsorted(sorted_pairs, pair).clamp(max=n_merges - 1)
            # The pair that was learned first, and of its places the first.
            order = torch.where(sorted_pairs[index] == pair, rank[index], n_merges) * length + position
            first = order.amin(1)
            joins = first < n_merges * length
            if not joins.any():
                break
            token = self.merges[(first // length).clamp(max=n_merges - 1), 2]
            rows = torch.where(joins.unsqueeze(1), _join(rows, first % length, token), rows)
        return rows

    def decode(self, tokens: Tensor) -> Tensor:
        """Decodes tokens or `PAD`, (B, L), to symbols, (B, n). Tokens after the n-th symbol are ignored.

        Symbols are `PAD` where the tokens stand for fewer than n symbols.
        """
        slot = torch.arange(self.expansions.shape[1], device=tokens.device)
        ends = self.token_lengths(tokens).cumsum(1)
        number = (ends.unsqueeze(2) <= slot).sum(1)  # of the token that each symbol belongs to, (B, n)
        exists = number < tokens.shape[1]
        number = number.clamp(max=tokens.shape[1] - 1)
        token = tokens.gather(1, number).clamp(min=0)
        offset = slot - ends.gather(1, number) + self.lengths[token]
        symbols = self.expansions[token, offset.clamp(0, self.expansions.shape[1] - 1)]
        return torch.where(exists, symbols, PAD)

    def token_lengths(self, tokens: Tensor) -> Tensor:
        """Returns the number of symbols that each token stands for. 0 for `PAD`."""
        return torch.where(tokens == PAD, 0, self.lengths[tokens.clamp(min=0)])


def _is_pair(rows: Tensor, first: int, second: int) -> Tensor:
    return (rows[:, :-1] == first) & (rows[:, 1:] == second)


def _count_pairs(counts: Tensor, rows: Tensor, repeats: Tensor) -> None:
    """Adds the number of occurrences of each pair to (V * V,), where (first, second) is at ``first * V + second``."""
    is_pair = rows[:, 1:] != PAD
    pairs = (rows[:, :-1] * math.isqrt(len(counts)) + rows[:, 1:])[is_pair]
    counts.index_add_(0, pairs, repeats.unsqueeze(1).expand(is_pair.shape)[is_pair])


def _join_all(rows: Tensor, first: int, second: int, token: int) -> Tensor:
    """Joins all occurrences of a pair, from left to right."""
    while (is_match := _is_pair(rows, first, second)).any():
        joined = _join(rows, is_match.int().argmax(1), torch.full_like(rows[:, 0], token))
        rows = torch.where(is_match.any(1, keepdim=True), joined, rows)
    return rows


def _join(rows: Tensor, position: Tensor, token: Tensor) -> Tensor:
    """Replaces the tokens at `position` (B,) and after it with one token (B,) in each row (B, n)."""
    place = torch.arange(rows.shape[1], device=rows.device)
    position = position.unsqueeze(1)
    rows = torch.cat([rows, torch.full_like(rows[:, :1], PAD)], 1)
    shorter = rows.gather(1, place + (place > position))
    return torch.where(place == position, token.unsqueeze(1), shorter)
