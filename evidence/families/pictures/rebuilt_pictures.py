"""Row 269: diffusion policies of pictures whose U-Net, or whose encoder, must also rebuild the observation."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from evidence.experiment import Experiment
from evidence.families.pictures.frozen_encoders import (
    CAMERA,
    FAST,
    OWN,
    PICTURE,
    ROWS,
    SHIFTS,
    NearPush,
    PushesToGoals,
    part,
    progress,
)
from evidence.measures import flags, train_once
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.denoising.diffusion import Diffusion
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.objectives.representation_objectives import NetworkObjective, encoding_size, flat_encoding
from understudy.methods.generative.crossway_diffusion import BottleneckReconstruction
from understudy.nets.unet import UNet
from understudy.policy import PolicyConfig

SIZES = {25: ("task",), 100: ("task", "more")}  # parts by the number of their pushes


@dataclass(frozen=True)
class EncodingReconstruction(BottleneckReconstruction):
    """Rebuilds the observation from its encoding alone, by the same decoder: type D of the paper's code."""

    captures = ("context", "context_mask")

    def networks(self, policy):
        layer = nn.Linear(encoding_size(policy), policy.config.trunk.widths[-1])
        return {**super().networks(policy), "projection": nn.Sequential(layer, nn.ReLU())}

    def loss(self, networks, policy, batch, rng, captured):
        projected = networks.projection(flat_encoding(captured)).unsqueeze(1)
        return super().loss(networks, policy, batch, rng, {"trunk_bottleneck": projected})


def diffusion(*losses: NetworkObjective) -> Method:
    """A policy whose parts of the data `pushed` chooses."""
    policy = PolicyConfig(Diffusion(5, n_train_steps=50, prediction="sample"),
                          UNet((32, 64), 3, time_width=32, layout="gemm"), CAMERA, window=Window(1, 4),
                          inputs=(PICTURE, OWN), augmentations=SHIFTS)
    return Method(policy, RecedingHorizon(2), BehaviorCloning(1000, 64, FAST, auxiliary_losses=losses))


def pushed(experiment, arm: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" and "progress" of the policies from 25 and from 100 pushes, at starts of their own, and of each."""
    measured, done, rows = {}, [], min(ROWS, episodes)
    for number, (size, parts) in enumerate(SIZES.items()):
        policy = train_once(experiment, replace(arm, transforms=(part(*parts),)), data, seed).policy
        rollouts = rollout(PolicyActor(FixedBatch(policy, rows), arm.executor), NearPush(rows), episodes, seed=starts,
                           first=number * episodes)
        measured[f"success from {size}"] = flags(rollouts)["success"]
        done += map(progress, rollouts)
    return {**measured, "success": sum(measured.values(), []), "progress": [sum(done) / len(done)]}


TABLE = Experiment(PushesToGoals(), env="push-images", first_seed=2690, episodes=100, measure=pushed,
                   levels={"plain": 0.5}, arms={
    "bottleneck": diffusion(BottleneckReconstruction(8)),
    "plain": diffusion(),
    "encoding": diffusion(EncodingReconstruction(8))})
