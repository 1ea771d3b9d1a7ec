"""Retrieval: the actions of the most similar situations, alone or together with what is trained."""

from __future__ import annotations

from ..checkpoint import FromStage
from ..data.codec import Normalizer
from ..data.operations import Crop, Filter
from ..data.relabel import ConstantColumn, FirstObservation, MotionToFirst
from ..data.window import Window
from ..execute.aligned_replay import AlignedReplay
from ..execute.chunking import RecedingHorizon
from ..execute.following import FollowDemonstration
from ..execute.planar_frame import PlanarFrame
from ..execute.wrappers import SkillWrapper
from ..heads.gaussian import Gaussian
from ..heads.gmm import GMM
from ..heads.mcnn import MCNN
from ..heads.neighbors import Neighbors
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.latent_labels import SKILL, LatentLabels
from ..learn.method import Method, Stage
from ..learn.optimizer import OptimizerConfig
from ..learn.retrieval import SAMPLING_WEIGHT, Retrieve
from ..learn.skill_autoencoder import SkillAutoencoder
from ..learn.state_action_vae import StateActionVAE
from ..nets.encoders import ConcatEncoder
from ..nets.feed_forward import FeedForward
from ..nets.vision import ResNet
from ..policy import PolicyConfig


def knn(n_neighbors: int = 1, n_obs_steps: int = 1, horizon: int = 8, n_action_steps: int = 4) -> Method:
    """Nearest neighbors: the mean chunk of the most similar situations.

    Args:
        n_neighbors: Number of situations. With one, its chunk is replayed.
        n_obs_steps: Number of observations that are compared.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    policy = PolicyConfig(
        Neighbors(n_neighbors, weights="equal"), encoder=ConcatEncoder(), window=Window(n_obs_steps, horizon)
    )
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(steps=1))


def vinn(n_neighbors: int = 5, weights: str = "hf://timm/resnet18.a1_in1k") -> Method:
    """Visual imitation by nearest neighbors, by the features of a fixed image network.

    Args:
        n_neighbors: Number of situations. Nearer ones count more.
        weights: The weights of the image network, a ResNet-18.
    """
    policy = PolicyConfig(
        Neighbors(n_neighbors), encoder=ConcatEncoder(ResNet(weights, pool="mean")), window=Window(1, 1)
    )
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps=1))


def search_bc(max_steps: int = 128, ratio: float | None = 2.0, n_obs_steps: int = 1) -> Method:
    """Search: follow the most similar demonstration, and search again when the situations differ.

    Args:
        max_steps: Largest number of steps until the next search.
        ratio: Largest distance of the situations while one is followed, relative to that at the search. None: any.
        n_obs_steps: Number of observations that are compared.
    """
    policy = PolicyConfig(Neighbors(1), encoder=ConcatEncoder(), window=Window(n_obs_steps, horizon=2))
    return Method(policy, FollowDemonstration(max_steps, ratio), BehaviorCloning(steps=1))


def retrieve_align_replay(
    descriptor: str = "observation.environment_state", view: str = "observation.environment_state",
    pose: str = "observation.state", step: tuple[float, ...] = (1.0,), tolerance: float = 0.05, first: int = 0,
    frame: str | None = None, poses: tuple[str, ...] = (),
) -> Method:
    """Retrieval, alignment and replay of demonstrations, from whose starts the robot moved away in the prior data.

    Args:
        descriptor: Column that tells which demonstration fits.
        view: Column that tells where the robot is relative to the object.
        pose: Column with the pose of the effector.
        step: How far an action of 1 moves each component of the pose in one step.
        tolerance: Alignment ends at actions smaller than this.
        first: First step of a demonstration that is repeated. -6 is the sixth from the end.
        frame: Column with the pose in whose frame the velocities are, such as that of the effector. None: the world's.
        poses: Columns whose pose is given in that frame too. See `PlanarFrame`.
    """
    task = (Filter("dataset", equals=("task",)), Crop(first))
    prior = Filter("dataset", equals=("prior",))
    wrapper = None if frame is None else PlanarFrame(frame, poses)
    memory = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), window=Window(1, 2),
                          inputs=tuple(dict.fromkeys((descriptor, view))))
    look = PolicyConfig(Neighbors(1, "equal"), encoder=ConcatEncoder(), inputs=(descriptor,), target=view)
    align = PolicyConfig(Regression(), FeedForward((128, 128)), ConcatEncoder(), inputs=(view, "observation.goal"))
    retrieval = Method(look, learner=BehaviorCloning(1), transforms=(*task, Crop(0, 1)), wrapper=wrapper)
    alignment = Method(align, learner=BehaviorCloning(2000, 256, OptimizerConfig(3e-3)), wrapper=wrapper,
                       transforms=(MotionToFirst(pose, step), prior, FirstObservation(view)))
    return Method(memory, AlignedReplay(FromStage("retrieval"), FromStage("alignment"), tolerance=tolerance),
                  BehaviorCloning(1), task, wrapper=wrapper,
                  stages=(Stage("retrieval", retrieval, "task"), Stage("alignment", alignment, "prior")))


def mcnn(memory_fraction: float = 0.1, decay: float = 10.0, n_obs_steps: int = 1, horizon: int = 1) -> Method:
    """Memory-consistent network: near a stored example its action, farther away a bounded network.

    Args:
        memory_fraction: Number of stored examples, as a fraction of the steps of the data.
        decay: Inverse distance at which the weight of a stored example is 1 / e.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk. All are executed before the next plan.
    """
    policy = PolicyConfig(MCNN(memory_fraction, decay), trunk=FeedForward(), encoder=ConcatEncoder(),
                          window=Window(n_obs_steps, horizon))
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(steps=5000, batch_size=256))


def behavior_retrieval(
    fraction: float = 0.25, latent_dim: int = 14, beta: float = 1e-4, n_obs_steps: int = 1, horizon: int = 1
) -> Method:
    """Behavior cloning of a task's demonstrations and of the prior steps that are most like them.

    Args:
        fraction: Fraction of the prior steps to learn from.
        latent_dim: Number of components of the embedding in which steps are compared.
        beta: Weight of the KL divergence of the embedding.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk. All are executed before the next plan.
    """
    policy = PolicyConfig(GMM(), window=Window(n_obs_steps, horizon))
    embedding = Stage("embedding", Method(policy, learner=StateActionVAE(latent_dim, beta)), dataset="prior")
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(sampling_column=SAMPLING_WEIGHT),
                  (Retrieve(FromStage("embedding", "embedding"), fraction=fraction),), (embedding,))


def skill_retrieval(fraction: float = 0.1, period: int = 10, latent_dim: int = 8, beta: float = 0.1) -> Method:
    """Skills from prior data, chosen by a policy that learns from a task and from the prior pieces most like it.

    Args:
        fraction: Fraction of the prior pieces to learn from.
        period: Number of steps of a skill.
        latent_dim: Number of components of a skill.
        beta: Weight of the KL divergence of the autoencoder.
    """
    low = PolicyConfig(Gaussian(), codec=Normalizer(unscaled=(SKILL,)))
    skills = Method(low, learner=SkillAutoencoder(period, beta),
                    transforms=(ConstantColumn(SKILL, (0.0,) * latent_dim),))
    posterior = FromStage("skills", "posterior")
    return Method(PolicyConfig(GMM()), RecedingHorizon(), BehaviorCloning(sampling_column=SAMPLING_WEIGHT),
                  (Retrieve(posterior, fraction=fraction), LatentLabels(posterior)),
                  (Stage("skills", skills, dataset="prior"),), wrapper=SkillWrapper(FromStage("skills"), period))
