"""Likelihood and regression: one network evaluation per plan."""

from __future__ import annotations

from typing import Literal

from ..audit.scores.keyframes import KEYFRAME, MarkKeyframes
from ..core import ConfigError, Schema
from ..data.augment import RandomMasking
from ..data.codec import Normalizer
from ..data.episode_concat import EpisodeConcat
from ..data.relabel import ConcatColumns, TaskText, TimeLeft
from ..data.segments import ColumnSegments, CutSegments, StoredSegments
from ..data.shown_demonstration import ShowDemonstration, numeric_observations
from ..data.window import Goal, Window
from ..execute.chunking import RecedingHorizon
from ..execute.planner_config import MaskedGoalConfig
from ..heads.behavior_transformer import BeT
from ..heads.bins import Bins
from ..heads.categorical import Categorical
from ..heads.energy import AutoregressiveEnergy, EnergyModel
from ..heads.fast import FAST
from ..heads.flow import Flow
from ..heads.gmm import GMM
from ..heads.regression import Regression
from ..heads.transport import Transport
from ..heads.vq_bet import VQBeT
from ..learn.attention_supervision import MemorySupervision
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.information_bottleneck import InformationBottleneck
from ..learn.median_of_means import MedianOfMeans
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..learn.sample_weights import ColumnWeights
from ..nets.bottleneck import BottleneckEncoder
from ..nets.ema import ConstantDecay
from ..nets.encoders import TokenEncoder, simplest_encoder
from ..nets.feed_forward import FeedForward
from ..nets.mlp import MLP
from ..nets.pixels import PixelEncoder
from ..nets.recurrent import RecurrentEncoder
from ..nets.transformer import Transformer
from ..policy import PolicyConfig, camera_sizes


def bc(horizon: int = 1, features: Schema | None = None) -> Method:
    """Behavior cloning: regression to the mean of the demonstrations, or a distribution over discrete actions.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical() if discrete else Regression()
    return Method(PolicyConfig(head, window=Window(1, horizon)), RecedingHorizon(horizon), BehaviorCloning(steps=5000))


def fourier_transporter(crop: int = 17, n_angles: int = 72, features: Schema | None = None) -> Method:
    """Pick and place in an image, with scores that turn with the scene and with what is picked.

    Args:
        crop: Width and height in pixels of the crop around the pick, odd. It contains what is picked.
        n_angles: Number of angles by which it may be turned.
        features: The columns of the data.
    """
    policy = PolicyConfig(Transport(crop, n_angles=n_angles), encoder=PixelEncoder(),
                          codec=Normalizer(target="identity"), window=Window(1, 1),
                          inputs=tuple(camera_sizes(features or {})))
    learner = BehaviorCloning(steps=1000, batch_size=8, optimizer=OptimizerConfig(lr=3e-3))
    return Method(policy, RecedingHorizon(1), learner)


def robust_bc(horizon: int = 1, n_blocks: int = 32) -> Method:
    """Behavior cloning that survives wrong actions in the data: the median of many small blocks trains.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
        n_blocks: Number of blocks of a batch. More blocks survive a larger fraction of wrong actions.
    """
    learner = MedianOfMeans(n_blocks, steps=8000)
    return Method(PolicyConfig(Regression(), window=Window(1, horizon)), RecedingHorizon(horizon), learner)


def bc_gmm(horizon: int = 8, n_obs_steps: int = 2, n_action_steps: int = 4) -> Method:
    """Behavior cloning with a mixture of Gaussians over a chunk, so that two good ways are not averaged.

    Args:
        horizon: Number of actions in a chunk.
        n_obs_steps: Number of observations that the policy reads.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    return Method(
        PolicyConfig(GMM(), window=Window(n_obs_steps, horizon)),
        RecedingHorizon(n_action_steps),
        BehaviorCloning(steps=5000),
    )


def bc_bins(n_bins: int = 32, edges: Literal["uniform", "quantile"] = "uniform", autoregressive: bool = True,
            n_obs_steps: int = 2) -> Method:
    """Behavior cloning with a distribution over intervals of each action component, one action at a time.

    Args:
        n_bins: Number of intervals of each component.
        edges: Intervals of equal width ("uniform"), or with equally many demonstrated values ("quantile").
        autoregressive: True predicts each component from those before it. False treats them as independent.
        n_obs_steps: Number of observations that the policy reads.
    """
    head = Bins(n_bins, edges, autoregressive)
    return Method(PolicyConfig(head, window=Window(n_obs_steps, 1)), RecedingHorizon(), BehaviorCloning(steps=5000))


def bc_rnn_gmm(n_obs_steps: int = 10, width: int = 400) -> Method:
    """Behavior cloning with a memory: an LSTM over the last observations, then a mixture of Gaussians.

    Args:
        n_obs_steps: Number of observations that the LSTM reads.
        width: Size of its state.
    """
    return Method(
        PolicyConfig(GMM(), encoder=RecurrentEncoder(width), window=Window(n_obs_steps, 1)),
        RecedingHorizon(),
        BehaviorCloning(batch_size=100),
    )


def attention_tuner(column: str = "recalled", n_obs_steps: int = 32, width: int = 128, depth: int = 4,
                    weight: float = 10.0, features: Schema | None = None) -> Method:
    """Behavior cloning with a transformer over the last observations, whose attention learns which of them to recall.

    Args:
        column: Column with the distances to the recalled steps: see `attention_supervision.steps_since_recalled`.
        n_obs_steps: Number of observations that the transformer reads. Earlier steps cannot be recalled.
        width: Width of its tokens.
        depth: Number of its layers over the observations.
        weight: Weight of the loss that trains the attention.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    trunk = Transformer(width, 1, 2, "block_causal", encoder_depth=depth)
    window = Window(n_obs_steps, n_obs_steps, action_offset=1 - n_obs_steps, obs_pad_mask=True)
    policy = PolicyConfig(Categorical() if discrete else Regression(), trunk, TokenEncoder(width), window=window)
    learner = BehaviorCloning(5000, 64, auxiliary_losses=(MemorySupervision(column, weight=weight),))
    return Method(policy, RecedingHorizon(1, n_obs_steps - 1), learner)


def cec(field: str = "proficiency", n_obs_steps: int = 64, width: int = 128, depth: int = 3, n_episodes: int = 1000,
        features: Schema | None = None) -> Method:
    """Cross-episodic curriculum: a transformer over several episodes, the worst demonstrators first.

    Args:
        field: Metadata field of the episodes that orders the demonstrators, worst first.
        n_obs_steps: Number of observations that the transformer reads, over several episodes.
        width: Width of its tokens.
        depth: Number of its layers over the observations.
        n_episodes: Number of sequences of episodes that it learns from.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical() if discrete else GMM(5, joint=False)
    trunk = Transformer(width, 1, 1, "block_causal", encoder_depth=depth)
    window = Window(n_obs_steps, n_obs_steps, action_offset=1 - n_obs_steps, obs_pad_mask=True)
    return Method(PolicyConfig(head, trunk, TokenEncoder(width), window=window),
                  RecedingHorizon(1, n_obs_steps - 1), BehaviorCloning(5000, 32),
                  (EpisodeConcat(field, n_episodes=n_episodes, into=""),))


def keyframe_bc(n_obs_steps: int = 5, fraction: float = 0.1, weight: float = 5.0) -> Method:
    """Behavior cloning from a history in which keyframes count more: steps whose action the last ones do not tell.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        fraction: Fraction of the steps that are keyframes.
        weight: Weight of a keyframe. Other steps have weight 1.
    """
    learner = BehaviorCloning(steps=5000, sample_weights=ColumnWeights(KEYFRAME, weight))
    return Method(PolicyConfig(Regression(), window=Window(n_obs_steps, 1)), RecedingHorizon(), learner,
                  transforms=(MarkKeyframes(fraction),))


def bottleneck_bc(n_obs_steps: int = 5, width: int = 32, weight: float = 0.01) -> Method:
    """Behavior cloning from a history through a noisy code that keeps little besides what tells the action.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        width: Width of the code.
        weight: Weight of the penalty on the information in the code.
    """
    policy = PolicyConfig(Regression(), encoder=BottleneckEncoder(width), window=Window(n_obs_steps, 1))
    return Method(policy, RecedingHorizon(),
                  BehaviorCloning(steps=5000, auxiliary_losses=(InformationBottleneck(weight),)))


def interactive_language(column: str | None = "subtask", max_bytes: int = 64, extra_steps: int = 0,
                         features: Schema | None = None) -> Method:
    """Behavior cloning of labeled segments of long recordings, for instructions that may change at every step.

    Args:
        column: Column of text that says what is done at each step. Each run of the same text is a segment. None takes
            the segments in the metadata of each episode, which may overlap: see `StoredSegments`.
        max_bytes: Number of bytes of an instruction.
        extra_steps: Number of steps to keep after the end of each segment. Where another task begins at once, they
            would show the wrong one.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    detector = StoredSegments() if column is None else ColumnSegments(column)
    # One observation: in a longer history, an old instruction would still be read after it has changed.
    policy = PolicyConfig(Categorical() if discrete else Regression(), MLP(), TokenEncoder(), window=Window())
    return Method(policy, RecedingHorizon(), BehaviorCloning(steps=10_000),
                  (CutSegments(detector, extra_steps), TaskText(max_bytes)))


def one_shot(columns: tuple[str, ...] = (), n_frames: int = 8, horizon: int = 8, width: int = 128,
             features: Schema | None = None) -> Method:
    """One-shot imitation: a transformer that does what one given demonstration shows.

    Args:
        columns: Observed columns of numbers that the policy reads, also of the demonstration. Empty for all that the
            data have.
        n_frames: Number of frames of the demonstration.
        horizon: Number of actions in a chunk. Half of them are executed.
        width: Width of the tokens.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    columns = columns or numeric_observations(features or {}) or ("observation.state",)
    show = ShowDemonstration(columns, n_frames)
    # The policy does not read the task: it could ignore the demonstration then.
    policy = PolicyConfig(Categorical() if discrete else Flow(), Transformer(width, 1, encoder_depth=2),
                          TokenEncoder(width), window=Window(1, horizon), inputs=(*columns, *show.into))
    return Method(policy, RecedingHorizon(max(horizon // 2, 1)), BehaviorCloning(steps=10_000), (show,))


def gcbc(column: str = "observation.state", features: Schema | None = None) -> Method:
    """Goal-conditioned behavior cloning: the goal of each step is a later observation of its episode.

    Args:
        column: The column whose later values are goals.
        features: The columns of the data. Images and text are encoded as tokens.
    """
    policy = PolicyConfig(Regression(), trunk=FeedForward((512, 512, 512), "gelu"), encoder=simplest_encoder(features),
                          window=Window(goals=(Goal(column),)))
    return Method(
        policy,
        learner=BehaviorCloning(
            steps=20_000,
            batch_size=1024,
            ema=ConstantDecay(0.0),
            optimizer=OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None),
        ),
    )


def maskdp(horizon: int = 32, time_left: int | None = None, ratios: tuple[float, ...] = (0.15, 0.35, 0.55, 0.75, 0.95),
           column: str = "observation.state") -> Method:
    """Masked decision prediction: complete trajectories with hidden states and actions, and act towards a goal.

    Args:
        horizon: Number of steps of a trajectory. Goals are at most horizon - 1 steps away.
        time_left: Number of steps in which the goal shall be reached. None: --condition time_left=NUMBER gives it.
        ratios: Fractions of hidden states and actions. Each window draws one.
        column: The column of states. Goals are values of it.
    """
    entries, joint = (column, "action"), ConcatColumns(("action", column), offset=0)
    window = Window(horizon, horizon, obs_offset=horizon - 1, obs_pad_mask=True)
    policy = PolicyConfig(Regression(), Transformer(128, 2, 4, encoder_depth=3), TokenEncoder(128), window=window,
                          inputs=entries, target=joint.into, augmentations=(RandomMasking(entries, ratios),))
    learner = BehaviorCloning(20_000, 128, OptimizerConfig(lr=3e-4, warmup_steps=500))
    return Method(policy, RecedingHorizon(), learner, (joint, TimeLeft(length=time_left)),
                  inference=(MaskedGoalConfig(column),))


def bet(n_obs_steps: int = 5, n_clusters: int = 24, horizon: int = 1, n_action_steps: int = 1,
        every_step: bool = False) -> Method:
    """Behavior transformer: choose a cluster of demonstrated actions, then correct its center.

    Args:
        n_obs_steps: Number of observations that the policy reads. Its history keeps it in the mode that it chose.
        n_clusters: Number of clusters.
        horizon: Number of actions in a chunk. More than one are clustered as chunks.
        n_action_steps: Number of actions that are executed before the next plan.
        every_step: As in the paper, predict an action from each observation of the history and those before it: as many
            losses for a window as it has observations. Only the action for the newest one is executed.

    Raises:
        ConfigError: Chunks are longer than one action, and `every_step` is set.
    """
    if every_step and (horizon, n_action_steps) != (1, 1):
        raise ConfigError(f"every_step predicts one action for each observation, and horizon is {horizon}, "
                          f"n_action_steps {n_action_steps}", where="bet.every_step", hint="leave both at 1")
    past = n_obs_steps - 1 if every_step else 0
    window = Window(n_obs_steps, past + horizon, action_offset=-past, obs_pad_mask=every_step)
    trunk = Transformer(72, 4, 4, "block_causal") if every_step else Transformer(72, 4, 4)
    policy = PolicyConfig(BeT(n_clusters, joint=not every_step), trunk, TokenEncoder(72), window=window)
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, weight_decay=0.1, warmup_steps=100))
    return Method(policy, RecedingHorizon(n_action_steps, skip=past), learner)


def vq_bet(n_obs_steps: int = 5, horizon: int = 5, n_action_steps: int = 1,
           offset_codes: Literal["sampled", "encoded"] = "sampled") -> Method:
    """Vector-quantized behavior transformer: choose the codes of a chunk, decode them, and correct the result.

    Args:
        n_obs_steps: Number of observations that the policy reads. Its history keeps it in the mode that it chose.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        offset_codes: For which codes offsets are trained. "sampled" is the paper's, "encoded" keeps rare ways.
    """
    policy = PolicyConfig(VQBeT(offset_codes=offset_codes), trunk=Transformer(120, 6, 6), encoder=TokenEncoder(120),
                          window=Window(n_obs_steps, horizon))
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, weight_decay=2e-4, warmup_steps=100))
    return Method(policy, RecedingHorizon(n_action_steps), learner)


def fast(horizon: int = 16, n_action_steps: int = 8, max_tokens: int | None = None, temperature: float = 0.0) -> Method:
    """Action tokens: the cosine transform of a chunk as a few tokens, each predicted from those before it.

    Args:
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        max_tokens: Largest number of tokens of a chunk. None allows one for each number. Fewer make plans faster.
        temperature: 0 takes the most likely token each time, 1 samples.
    """
    policy = PolicyConfig(FAST(max_tokens=max_tokens, temperature=temperature), trunk=Transformer(128, 4, 4),
                          codec=Normalizer(target="quantile"), window=Window(1, horizon))
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, warmup_steps=100))
    return Method(policy, RecedingHorizon(n_action_steps), learner)


def ibc(horizon: int = 1, n_negatives: int = 64, autoregressive: bool = False) -> Method:
    """Implicit behavioral cloning: learn an energy of observation and action, and search its minimum.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
        n_negatives: Number of random actions that a demonstrated one is compared with in training.
        autoregressive: Search one number of the chunk after the other, each with its own energy, instead of all
            at once. It takes longer to train, and suits chunks and actions of many components.
    """
    head = AutoregressiveEnergy(n_negatives) if autoregressive else EnergyModel(n_negatives)
    policy = PolicyConfig(head, trunk=MLP(256, 3), window=Window(2, horizon))
    learner = BehaviorCloning(4000, 64, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100))
    return Method(policy, RecedingHorizon(horizon), learner)
