"""Elastic weight consolidation (EWC): a policy learns a new task and stays near the weights that earlier tasks need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...checkpoint import read_tensors
from ...core import AtLeast, ConfigError, part
from ...data.episode import Dataset
from ...policy import Policy
from ..behavior_cloning import AuxiliaryLoss


def fisher_information(policy: Policy, data: Dataset, n_windows: int = 1024, seed: int = 0) -> dict[str, Tensor]:
    """Computes the empirical Fisher information of each parameter: the mean squared gradient of single windows.

    Args:
        n_windows: Number of windows, drawn with replacement.
    """
    windows, rng = policy.training_windows(data), torch.Generator(policy.device).manual_seed(seed)
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for number in range(n_windows):
        batch = windows.batch(1, number, seed).to(policy.device)
        loss = policy.loss(batch, rng)[batch.mask].mean()
        for total, gradient in zip(fisher.values(), torch.autograd.grad(
                loss, list(parameters.values()), allow_unused=True, materialize_grads=True), strict=True):
            total += gradient.square() / n_windows
    return fisher


def save_anchor(policy: Policy, data: Dataset, path: Path | str, n_windows: int = 1024, seed: int = 0) -> None:
    """Writes the weights of a policy that has learned a task, and their Fisher information on its data, for `EWC`.

    The file is twice as large as the weights.
    """
    fisher, parameters = fisher_information(policy, data, n_windows, seed), dict(policy.named_parameters())
    save_file({f"{kind}.{name}": values[name].detach().cpu().contiguous().clone() for name in fisher
               for kind, values in (("fisher", fisher), ("weight", parameters))}, path)


def elastic_penalty(parameters: Iterable[Tensor], fisher: Iterable[Tensor], old: Iterable[Tensor]) -> Tensor:
    """Computes half the sum of ``fisher * (parameter - old)^2``, a scalar."""
    terms = zip(parameters, fisher, old, strict=True)
    return torch.stack([(f * (p - o).square()).sum() for p, f, o in terms]).sum() / 2


@part
class EWC(AuxiliaryLoss):
    """Auxiliary loss that keeps a policy near the weights of earlier tasks (elastic weight consolidation).

    It is ``weight / 2 * sum(fisher * (parameter - old)^2)`` for each earlier task.

    Start from the weights of the last task (`continue_from`).

    Args:
        anchors: Files of `save_anchor`, one for each earlier task.

    References:
        Kirkpatrick et al. (2017), Overcoming Catastrophic Forgetting in Neural Networks, arXiv:1612.00796.
    """

    anchors: tuple[str, ...]
    weight: Annotated[float, AtLeast(0)] = 1.0

    def build(self, policy):
        if not self.anchors:
            raise ConfigError("there is no earlier task", where="EWC.anchors",
                              hint="name the file of save_anchor of each, or leave EWC out")
        own, anchors = dict(policy.named_parameters()), []
        for path in self.anchors:
            tensors = {k: v.to(policy.device) for k, v in read_tensors(Path(path), "save_anchor writes it").items()}
            fisher = {name.removeprefix("fisher."): f for name, f in tensors.items() if name.startswith("fisher.")}
            if any(name not in own or own[name].shape != f.shape for name, f in fisher.items()):
                raise ConfigError("these are the weights of another network", where=path,
                                  hint="train on with the policy of the earlier task: continue_from(method, RUN)")
            anchors.append((list(fisher), list(fisher.values()), [tensors[f"weight.{name}"] for name in fisher]))

        def loss(policy, batch, rng, captured) -> Tensor:
            parameters = dict(policy.named_parameters())
            penalties = [elastic_penalty([parameters[n] for n in names], *anchor) for names, *anchor in anchors]
            return self.weight * torch.stack(penalties).sum().expand(len(batch))
        return loss
