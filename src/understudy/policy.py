"""Policies: conditional generative models of a window of one column, given windows of other columns.

The column need not be an action. With another target, the same class is a world model, an inverse dynamics model, a
subgoal planner or a reward model.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Generator, Tensor, nn

from . import config
from .checkpoint import (
    CheckpointModule,
    find_checkpoint,
    is_lerobot_checkpoint,
    load_features,
    load_tensors,
    load_weights,
    read_checkpoint_json,
    replacement_hint,
    save_features,
    save_weights,
)
from .core import (
    Batch,
    ConfigError,
    Context,
    DataWarning,
    Feature,
    HeadSpec,
    Schema,
    State,
    Unsupported,
    UserError,
    check_observed,
    column_naming_hint,
    is_read_by_default,
    missing_action,
    normal,
    part,
    role,
    short_name,
    unknown_name,
)
from .data.augment import Augmentation
from .data.codec import Codec, Normalizer
from .data.episode import Dataset
from .data.image_layout import check_image_layout
from .data.window import Window, Windows
from .files import write_json
from .heads.base import (
    Cost,
    DenoisingHead,
    Head,
    LikelihoodHead,
    PreconditionedHead,
    StepwiseHead,
    TargetNetworkHead,
    TemperatureHead,
)
from .heads.guidance import DirectCost, EnergyCost, LimitedCost
from .hints import unit_hint
from .nets.base import Encoder, Trunk, record_intermediate
from .nets.encoders import TokenEncoder
from .nets.feature_cache import with_cached_features
from .nets.mlp import MLP
from .nets.pretrained.files import save_pretrained_files
from .nets.vision import without_downloads

NO_TARGET = Feature("float32", (0,))  # of a policy without a target


@dataclass(frozen=True)
class PolicyConfig:
    """Config of a policy: everything but its weights and the features of the data.

    Args:
        head: How the output of the network becomes an action, and its loss.
        encoder: Encodes observations as tokens.
        codec: Converts between the units of the data and the units of the network.
        window: Which rows are observed and which are predicted.
        inputs: Names of the observation columns. Empty for every "observation." column.
        target: Name of the predicted column. Empty for a policy that predicts nothing, whose encoder is trained on
            data without actions.
        augmentations: Changes of observations in training.

    Example:
        >>> config = PolicyConfig(Flow(n_steps=5), window=Window(n_obs_steps=2, horizon=16))
        >>> policy = Policy(config, data.features()).fit_statistics(data)
    """

    head: Head
    trunk: Trunk = field(default_factory=MLP)
    encoder: Encoder = field(default_factory=TokenEncoder)
    codec: Codec = field(default_factory=Normalizer)
    window: Window = field(default_factory=Window)
    inputs: tuple[str, ...] = ()
    target: str = "action"
    augmentations: tuple[Augmentation, ...] = ()

    def __post_init__(self):
        check_parts(self, {"head": Head, "trunk": Trunk, "encoder": Encoder, "codec": Codec, "window": Window},
                    "such as PolicyConfig(Flow())")
        if isinstance(self.inputs, str):
            raise ConfigError(f"inputs is {self.inputs!r}, but must be a tuple of names", where="PolicyConfig.inputs",
                              hint=f"write inputs=({self.inputs!r},)")


def check_parts(owner: object, kinds: Mapping[str, type], example: str) -> None:
    """Raises ConfigError for the first field with a wrong type. `example` is the hint if the field is not a class."""
    for field_name, kind in kinds.items():
        if not isinstance(content := getattr(owner, field_name), kind):
            is_class = isinstance(content, type)
            raise ConfigError(f"{field_name} is {content.__name__ if is_class else repr(content)}, but must be an "
                              f"object of a class of {kind.__name__}", where=f"{type(owner).__name__}.{field_name}",
                              hint=f"{content.__name__}() makes one" if is_class else example)


class NetworkGuidance(ABC):
    """Base class of guidance that wraps the network of a policy."""

    def select_rows(self, rows: Tensor) -> NetworkGuidance:
        """Returns the guidance of some rows. Override it if the guidance contains tensors with rows."""
        return self

    def select_components(self, components: slice) -> NetworkGuidance:
        """Returns the guidance of a policy that plans only some components of the action."""
        return self

    def for_head(self, head: DenoisingHead) -> NetworkGuidance:
        """Returns the guidance for a policy with this head, by default the same for all.

        Raises Unsupported if the guidance cannot wrap the network of this head.
        """
        return self

    @abstractmethod
    def guided_net(self, net: Callable, without: Callable[..., Context],
                   encode: Callable[[Tensor], Tensor]) -> Callable:
        """Returns the network that is used instead of `net`.

        Args:
            net: Called as `net(x, t, context)`.
            without: `without(*keys)` encodes the same observation without these columns.
            encode: Converts actions in world units to coded actions, for the current observation.
        """

    def fixed(self, coded_action: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns a clean chunk with the entries that this guidance fixes. By default none.

        Args:
            coded_action: Coded actions, (B, H, A): the plan, or an estimate of it whose cost other guides compute.
        """
        return coded_action


class CostGuidance(ABC):
    """Base class of guidance that lowers a cost of the estimated clean chunk at each denoising step.

    If `through_network` is False, no gradient of the plan's costs passes the network: see `heads.guidance.DirectCost`.
    """

    through_network: bool = True

    def select_rows(self, rows: Tensor) -> CostGuidance:
        """Returns the guidance of some rows: see `NetworkGuidance.select_rows`."""
        return self

    def select_components(self, components: slice) -> CostGuidance:
        """Returns the guidance of a policy that plans only some components of the action."""
        raise Unsupported(f"the cost of {type(self).__name__} cannot be split over the parts of an action",
                          where="FactoredPlanner", hint="guide each of its planners, or implement select_components")

    @abstractmethod
    def cost(self, coded_action: Tensor, encode: Callable, decode: Callable) -> Tensor:
        """Returns the cost of each row, (B,).

        Args:
            coded_action: Estimate of the clean chunk, coded, (B, H, A).
            encode: Converts actions in world units to coded actions, for the current observation.
            decode: Converts coded actions to world units, for the current observation.
        """


class LimitedCostGuidance(CostGuidance):
    """Base class of cost guidance whose cost is at least 0, and whose strength saturates.

    No sampling step is guided past the point where the cost would be 0, however large the cost is: see
    `heads.guidance.LimitedCost`. Costs of other guides that act at the same time are limited together with it.
    """


class EnergyGuidance(CostGuidance):
    """Base class of cost guidance whose cost is an energy: plans are weighted by ``exp(-cost)``.

    The effect does not depend on the number of sampling steps: see `heads.guidance.EnergyCost`. Costs of other guides
    that act at the same time keep their own strength.
    """


@dataclass(frozen=True)
class LastChunk:
    """The chunk that an executor was running when it asked for a new plan.

    Executors pass it with the guides. It does not change how a chunk is sampled. Planners that choose between several
    samples read it.

    Args:
        chunk: The old chunk in world units, (B, H, A).
        cursor: The step of the old chunk at which the new chunk begins, (B,).
        exists: False where no chunk was planned yet, (B,).
    """

    chunk: Tensor
    cursor: Tensor
    exists: Tensor

    def select_rows(self, rows: Tensor) -> LastChunk:
        """Returns the last chunks of some rows."""
        return LastChunk(self.chunk[rows], self.cursor[rows], self.exists[rows])

    def select_components(self, components: slice) -> LastChunk:
        """Returns the last chunks with only some components of the action."""
        return LastChunk(self.chunk[..., components], self.cursor, self.exists)

    def aligned(self) -> tuple[Tensor, Tensor]:
        """Returns the old action at each new step, (B, H, A), and False where the old chunk has none, (B, H)."""
        horizon, action_dim = self.chunk.shape[1:]
        step = self.cursor.unsqueeze(1) + torch.arange(horizon, device=self.chunk.device)
        index = step.clamp(max=horizon - 1).unsqueeze(-1).expand(-1, -1, action_dim)
        return self.chunk.gather(1, index), (step < horizon) & self.exists.unsqueeze(1)


class _BoundGuides:
    """All guidance of one plan together, bound to the observation of this plan.

    Args:
        encode: Converts actions in world units to coded actions, for this observation.
        decode: Converts coded actions to world units.
    """

    def __init__(self, guides: Iterable[NetworkGuidance | CostGuidance], head: DenoisingHead,
                 encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]):
        guides = tuple(guides)
        self.encode, self.decode = encode, decode
        self.of_network = [g.for_head(head) for g in guides if isinstance(g, NetworkGuidance)]
        self.energies = [g for g in guides if isinstance(g, EnergyGuidance)]
        self.costs = [g for g in guides if isinstance(g, CostGuidance) and not isinstance(g, EnergyGuidance)]

    def guided_net(self, net: Callable, without: Callable[..., Context]) -> Callable:
        """Returns the network, wrapped by each guide: see `NetworkGuidance.guided_net`."""
        for guide in self.of_network:
            net = guide.guided_net(net, without, self.encode)
        return net

    def fixed(self, coded_action: Tensor) -> Tensor:
        """Returns a clean chunk with the entries that the guides fix."""
        for guide in self.of_network:
            coded_action = guide.fixed(coded_action, self.encode)
        return coded_action

    def cost(self) -> Cost | None:
        """Returns the cost that the head lowers at each denoising step. None if no guide has one."""
        cost, energy = self._summed(self.costs), self._summed(self.energies)
        if cost is not None and any(isinstance(g, LimitedCostGuidance) for g in self.costs):
            cost = LimitedCost(cost)
        return cost if energy is None else EnergyCost(energy, cost)

    def _summed(self, guides: Sequence[CostGuidance]) -> Cost | None:
        if not guides:
            return None
        cost = partial(self._total_cost, guides)
        return cost if all(g.through_network for g in guides) else DirectCost(cost)

    def _total_cost(self, guides: Sequence[CostGuidance], coded_action: Tensor) -> Tensor:
        return cast(Tensor, sum(g.cost(self.fixed(coded_action), self.encode, self.decode) for g in guides))


Guide = NetworkGuidance | CostGuidance | LastChunk


def sampling_guides(guides: tuple[Guide, ...]) -> tuple[NetworkGuidance | CostGuidance, ...]:
    """Returns the guides that change how a chunk is sampled."""
    return tuple(g for g in guides if not isinstance(g, LastChunk))


@part
class ClassifierFreeGuidance(NetworkGuidance):
    """Classifier-free guidance: moves the prediction away from the prediction without some columns.

    The policy must be trained with `ConditionDropout` for these columns.

    Args:
        keys: Columns that are dropped for the second prediction.
        scale: 1 is the plain policy, 0 the policy without the columns.

    References:
        Ho and Salimans (2022), Classifier-Free Diffusion Guidance, arXiv:2207.12598.
    """

    keys: tuple[str, ...]
    scale: float = 2.0

    def guided_net(self, net, without, encode):
        bare = without(*self.keys)

        def wrapped(x, t, context):
            plain = net(x, t, bare)
            return plain + self.scale * (net(x, t, context) - plain)
        return wrapped


@dataclass(frozen=True)
class Clamp(NetworkGuidance):
    """Guidance that fixes entries of a chunk, and lets the policy complete the remaining entries.

    At every denoising step the network reads the given entries in place of noisy ones, and the plan has them unchanged.
    `Inpaint` draws a plan towards known actions instead, and can leave them. A policy completes given entries best if
    it was trained so, as with `Flow(times=PrefixTimes(...))` or ``times="each"``.

    Args:
        action: Actions in world units, (B, H, A). Values that are not given do not matter.
        is_given: True where an entry is given, (B, H, A), or (B, H, 1) for whole steps.
        clean_times: Whether the network reads the time 1, which is the time of clean actions, at steps that are given
            as a whole. None if the head was trained with times that differ from step to step.

    References:
        Ajay et al. (2023), Is Conditional Generative Modeling All You Need for Decision-Making?, arXiv:2211.15657,
        whose plans of states begin with the current state.
        Black et al. (2025), Training-Time Action Conditioning for Efficient Real-Time Chunking, arXiv:2512.05964.
    """

    action: Tensor
    is_given: Tensor
    clean_times: bool | None = None

    def select_rows(self, rows):
        return replace(self, action=self.action[rows], is_given=self.is_given[rows])

    def select_components(self, components):
        mask = self.is_given if self.is_given.shape[-1] == 1 else self.is_given[..., components]
        return replace(self, action=self.action[..., components], is_given=mask)

    def for_head(self, head):
        if isinstance(head, PreconditionedHead):
            raise Unsupported(f"the network of {type(head).__name__} reads noisy actions divided by their scale, so "
                              "that no entry can be fixed there", where="Clamp",
                              hint="use a policy with Flow or Diffusion, or the guide Inpaint")
        return self if self.clean_times is not None else replace(self, clean_times=head.times != "shared")

    def guided_net(self, net, without, encode):
        coded, clean = self._coded(encode), self.is_given.all(-1, keepdim=True)

        def clamped(x, t, context):
            time = torch.where(clean, 1.0, t) if self.clean_times else t
            return net(torch.where(self.is_given, coded, x), time, context)
        return clamped

    def fixed(self, coded_action, encode):
        return torch.where(self.is_given, self._coded(encode), coded_action)

    def _coded(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        coded = encode(self.action)
        if self.is_given.shape[-1] not in (1, coded.shape[-1]):
            raise Unsupported(f"some of {self.is_given.shape[-1]} components are given, but the codec turns them into "
                              f"{coded.shape[-1]} others", where="Clamp.is_given",
                              hint="give whole steps, (B, H, 1), or use a codec that keeps the components apart")
        return coded


@dataclass(frozen=True)
class Inpaint(CostGuidance):
    """Guidance of a chunk towards known actions, as in real-time chunking.

    Args:
        action: Actions in world units, (B, H, A).
        weight: Weight of each step, (B, H).

    References:
        Black et al. (2025), Real-Time Execution of Action Chunking Flow Policies, arXiv:2506.07339.
    """

    action: Tensor
    weight: Tensor

    def select_rows(self, rows):
        return Inpaint(self.action[rows], self.weight[rows])

    def select_components(self, components):
        return Inpaint(self.action[..., components], self.weight)

    def cost(self, coded_action, encode, decode):
        error = (coded_action - encode(self.action)).square().mean(-1)
        return 0.5 * (self.weight * error).sum(-1) * coded_action.shape[-1]


class Planner(ABC):
    """Base class of planners, which plan chunks for an executor: policies, and combinations of policies.

    Attributes:
        features: Features of these columns, and possibly of others.
        action_dim: Width of one planned step, A.
        is_discrete: Whether actions are numbers of classes, which have no order and cannot be averaged.
        is_deterministic: Whether plans do not depend on noise, so that all samples of a plan are equal.
    """

    inputs: tuple[str, ...]
    features: Schema
    window: Window
    action_dim: int
    device: torch.device
    is_discrete: bool = False
    is_deterministic: bool = False

    @abstractmethod
    def plan(self, obs: Mapping[str, Tensor], noise: Tensor | State, guides: tuple[Guide, ...] = ()) -> Tensor:
        """Plans a chunk. The result depends on the arguments only.

        Args:
            obs: Observation windows by name, (B, To, ...).
            noise: The result of `noise`.

        Returns:
            Chunks in world units, (B, H, A).
        """

    @abstractmethod
    def noise(self, key: Tensor, count: Tensor) -> Tensor | State:
        """Returns all the randomness of one plan.

        Args:
            key: The key of each row, (B,) int64.
            count: The number of the plan within its episode, (B,).

        Returns:
            A tensor with rows first or, if several planners draw noise, nested dicts of such tensors.
        """

    def context(self, obs: Mapping[str, Tensor]) -> Context:
        """Encodes observation windows, (B, To, ...). Raises Unsupported if the planner has no encoder."""
        raise Unsupported(f"{type(self).__name__} does not encode observations apart from planning", hint=_NO_CONTEXT)

    @property
    def action_scale(self) -> Tensor:
        """Scale of each action component in world units, (A,), for comparing actions: see `encode`."""
        raise self._has_no_codec()

    def encode(self, action: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Converts actions in world units, (B, H, A), to coded actions, (B, H, width).

        Args:
            obs: Observation windows by name, (B, To, ...).

        Raises:
            Unsupported: The planner has no codec.
        """
        raise self._has_no_codec()

    def decode(self, coded: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        """Converts coded actions, (B, H, width), to actions in world units, (B, H, A): see `encode`."""
        raise self._has_no_codec()

    def _has_no_codec(self) -> Unsupported:
        return Unsupported(f"{type(self).__name__} has no codec apart from planning", hint=_NO_CONTEXT)


_NO_CONTEXT = "use an executor that only asks for plans, such as RecedingHorizon"


class StepwisePlanner(Planner):
    """Base class of planners whose chunks can be sampled step by step."""

    @property
    @abstractmethod
    def head(self) -> StepwiseHead:
        """The head that makes the steps. Raises Unsupported if it answers in one step."""

    @abstractmethod
    def denoise_step(self, context: Context, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        """Makes one step of the sampler.

        Args:
            context: What `context` returned for the observation. One context serves all steps of a plan.
            x: Coded actions at times t, (B, H, A).
            t: Time of each step of the chunk, (B, H).
            t_next: Times after the step, (B, H).

        Returns:
            Coded actions at times t_next, (B, H, A).
        """


class Policy(CheckpointModule, StepwisePlanner):
    """A policy: a network with its codec, which plans chunks of the target column."""

    def __init__(self, config: PolicyConfig, features: Schema):
        super().__init__()
        features = _add_goal_features(config, features) | ({} if config.target else {"": NO_TARGET})
        inputs = policy_inputs(config, features)
        _check_columns((*inputs, config.target), features)
        check_image_layout(features, inputs)
        self.config, self.window, self.inputs = config, config.window, inputs
        self.features = {k: features[k] for k in (*inputs, config.target)}
        self.target = features[config.target]
        self.action_dim = self.target.size
        self.codec = config.codec.build(self.features, inputs, config.target)
        for change in config.augmentations:
            change.check_features({k: features[k] for k in inputs})
        config.encoder.check_policy(config.codec, config.augmentations)
        self.encoder = config.encoder.build({k: features[k] for k in inputs}, config.window.n_obs_steps)
        shape = HeadSpec(config.window.horizon, self.encoder.tokens, self.encoder.width, self.codec.num_classes,
                         self.codec.bound, self.encoder.token_obs_steps, config.window.action_start)
        self.net = config.head.build(config.trunk, self.codec.width, shape) if config.target else nn.Identity()
        self.noise_shape = config.head.noise(shape.horizon, self.codec.width)

    @property
    def is_discrete(self) -> bool:
        """Whether the target consists of classes."""
        return bool(self.codec.num_classes)

    @property
    def is_deterministic(self) -> bool:
        """Whether plans do not depend on noise: the head reads none, or ignores it with its settings."""
        return 0 in self.noise_shape or self.config.head.ignores_noise

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next((t.device for t in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    def with_head(self, head: Head) -> Policy:
        """Returns a policy that acts with another head, in evaluation mode, with a copy of these weights.

        Args:
            head: A head whose network has the same shapes, such as this policy's with another number of sampling steps.
        """
        with without_downloads():
            policy = Policy(replace(self.config, head=head), self.features)
        load_tensors(policy, self.state_dict())
        return policy.eval().to(self.device)

    # -- data -----------------------------------------------------------------------------------------------------

    def windows(self, data: Dataset, **options) -> Windows:
        """Returns the windows of a dataset. It takes the options of `Window.windows`, such as `extra`."""
        self._check_data(data)
        return self.config.window.windows(data, self.inputs, self.config.target or None, **options)

    def training_windows(self, data: Dataset, **options) -> Windows:
        """Returns the windows of a dataset, as `windows`, with features in place of the images that the encoder caches.

        Only `loss` and `context` can read these windows. For anything that reads the images, use `windows`.
        """
        if not (networks := self.encoder.cached_features):
            return self.windows(data, **options)
        self._check_data(data)
        stored = {goal.into: goal.column for goal in self.window.goals}
        columns = {stored.get(name, name): network for name, network in networks.items()}
        if clash := [name for name, network in networks.items()
                     if network is not (other := columns[stored.get(name, name)])
                     and network.digest() != other.digest()]:
            raise Unsupported(f"The column {clash[0]!r} is read by two networks, and only the features of one can be "
                              "cached.", where="TokenEncoder.cache_features", hint="Use cache_features=False.")
        return self.config.window.windows(with_cached_features(data, columns), self.inputs,
                                          self.config.target or None, **options)

    def _check_data(self, data: Dataset) -> None:
        features, path = data.features(), str(data.metadata.get("path", "data set"))
        check_features(self, features, path)
        if not self.config.target:
            return
        trained_classes, data_classes = self.target.num_classes or (), features[self.config.target].num_classes or ()
        if any(b > a for a, b in zip(trained_classes, data_classes, strict=False)):
            raise UserError(f"the policy knows {trained_classes} classes, but the data have {data_classes}",
                            where=f"{path}, column {self.config.target!r}",
                            hint="train a new policy on data that contain all classes")

    def scan_for_statistics(self, data: Dataset) -> Callable[[], Iterator[Batch]]:
        """Returns what `CodecModule.fit_statistics` and `CodecModule.extend_statistics` read."""
        light = tuple(k for k in self.inputs if self.features[k].kind != "image")  # images need no statistics
        window = self.config.window
        if window.obs_pad_mask and window.obs_offset > 0:  # the newest row, which is counted, may not exist
            window = replace(window, n_obs_steps=1, obs_offset=0)
        return lambda: (b.to(self.device) for b in window.windows(data, light, self.config.target or None).scan())

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width in pixels of each camera that the policy reads."""
        return camera_sizes(self.features)

    @torch.no_grad()
    def fit_statistics(self, data: Dataset, *, refit_codec: bool = True, refit_head: bool = True) -> Policy:
        """Computes what gradient descent does not train: statistics, then cluster centers or memories. Returns itself.

        Args:
            refit_codec: Compute the statistics of the codec. False to repeat the rest after training, for heads whose
                memory consists of learned features.
        """
        if refit_codec:
            scan = self.scan_for_statistics(data)
            self.codec.fit_statistics(scan)
            self._warn_of_clipped_plans(scan)
        if refit_head and type(self.config.head).fit is not Head.fit:
            training = self.training
            self.eval()
            windows = self.training_windows(data)

            def pairs() -> Iterator[tuple[Context, Tensor, Tensor]]:
                for b in windows.scan(256):
                    b = b.to(self.device)
                    yield self.context(b.obs), self.encode_batch(b), b.mask
            self.config.head.fit(self.net, pairs)
            self.train(training)
        return self

    def _warn_of_clipped_plans(self, scan: Callable[[], Iterator[Batch]]) -> None:
        clip = self.config.head.max_coded_action
        if clip is None or not self.action_dim or self.codec.bound is not None:  # else data alone know the range
            return
        largest = max(self.encode_batch(b).abs().amax().item() for b in scan())
        if largest > clip * (1 + 1e-6):
            warnings.warn(f"clip_sample={clip:g} cuts off plans, and coded actions are up to {largest:.4g}. "
                          'Use clip_sample=0, or a codec with a bound, target="minmax".', DataWarning, stacklevel=4)

    # -- the two functions ----------------------------------------------------------------------------------------

    def context(self, obs: Mapping[str, Tensor], rng: Generator | None = None) -> Context:
        """Encodes observation windows.

        Args:
            obs: Observation windows by name, (B, To, ...), in the units of the data.
            rng: Source of randomness in training, for example for random crops. None otherwise: see `nets.base`.
        """
        return self.encoder(self.codec.encode_obs(obs), rng)

    def encode_batch(self, batch: Batch) -> Tensor:
        """Returns the coded actions of a batch, (B, H, width), with zeros where they are padded.

        Values after the end of an episode must not reach any network.
        """
        return self.codec.encode(batch.action, batch.obs) * batch.mask.unsqueeze(-1)

    def clip(self, coded: Tensor) -> Tensor:
        """Returns coded actions, (..., width), within the range of the data if the codec knows this range."""
        bound = self.codec.bound
        return coded if bound is None else coded.clamp(-bound, bound)

    def loss(self, batch: Batch, rng: Generator, target_policy: Policy | None = None,
             n_noise_samples: int = 1) -> Tensor:
        """Returns the loss of each step, (B, H), not reduced. It is zero where padded.

        Args:
            rng: Source of all randomness but dropout.
            target_policy: A slowly updated copy of this policy, for a `TargetNetworkHead`.
            n_noise_samples: Number of noise draws per encoded observation. The loss is their mean.
        """
        context = self.training_context(batch.obs, rng)
        record_intermediate("context", context.tokens)
        record_intermediate("context_mask", context.mask)
        return self.loss_given_context(context, batch, rng, target_policy, n_noise_samples)

    def augment(self, obs: Mapping[str, Tensor], rng: Generator) -> Mapping[str, Tensor]:
        """Returns observation windows (B, To, ...), in the units of the data, with the augmentations of training.

        In evaluation mode they stay as they are.
        """
        for change in self.config.augmentations if self.training else ():
            obs = change(obs, rng)
        return obs

    def training_context(self, obs: Mapping[str, Tensor], rng: Generator) -> Context:
        """Encodes observation windows (B, To, ...), in the units of the data, as in training.

        They are augmented, and have random crops. In evaluation mode neither.
        """
        return self.context(self.augment(obs, rng), rng if self.training else None)

    def loss_given_context(self, context: Context, batch: Batch, rng: Generator, target_policy: Policy | None = None,
                           n_noise_samples: int = 1) -> Tensor:
        """Returns the loss of each step, (B, H), for observations that are already encoded. See `loss`."""
        target, mask, head = self.encode_batch(batch), batch.mask, self.config.head
        if n_noise_samples > 1:
            context = context.repeat(n_noise_samples)
            target, mask = (x.repeat_interleave(n_noise_samples, 0) for x in (target, mask))
        if isinstance(head, TargetNetworkHead):
            target_net = None if target_policy is None else target_policy.net
            loss = head.loss(self.net, context, target, mask, rng, target_net)
        else:
            loss = head.loss(self.net, context, target, mask, rng)
        if n_noise_samples > 1:
            loss = loss.unflatten(0, (-1, n_noise_samples)).mean(1)
        return loss * batch.mask

    def sample(self, context: Context, rng: Generator, temperature: float | None = None) -> Tensor:
        """Samples coded actions, (B, H, width), with gradients.

        Args:
            temperature: None for the temperature of the head. Another temperature needs a `TemperatureHead`.
        """
        head = self.config.head
        if temperature is not None:
            if not isinstance(head, TemperatureHead):
                raise Unsupported(f"{type(head).__name__} has no temperature", where="Policy.sample",
                                  hint="use a head that has one, such as SquashedGaussian, Gaussian or Categorical")
            head = replace(head, temperature=temperature)
        return head.sample(self.net, context, self._draw_noise(context, rng))

    def sample_and_loss(self, batch: Batch, rng: Generator) -> tuple[Tensor, Tensor]:
        """Samples coded actions, (B, H, width), with gradients, and returns the `loss` of the stored ones, (B, H).

        Observations are encoded once for both, as in training.
        """
        context, head = self.training_context(batch.obs, rng), self.config.head
        noise = self._draw_noise(context, rng)
        coded, loss = head.sample_and_loss(self.net, context, noise, self.encode_batch(batch), batch.mask, rng)
        return coded, loss * batch.mask

    def sample_log_prob(self, context: Context, rng: Generator) -> tuple[Tensor, Tensor]:
        """Samples coded actions from the density, (B, H, width), and returns their log-density, (B, H), with gradients.

        The temperature of the head does not matter. A `LikelihoodHead` is needed.
        """
        return self.likelihood_head.sample_log_prob(self.net, context, self._draw_noise(context, rng))

    def log_prob(self, context: Context, coded: Tensor, mask: Tensor) -> Tensor:
        """Returns the log-density of each step, (B, H), 0 at padding. It needs a `LikelihoodHead`.

        Args:
            coded: Coded actions, (B, H, width), as of `encode_batch`.
            mask: True where a step is not padding, (B, H).
        """
        coded = coded * mask.unsqueeze(-1)
        none = cast(Generator, None)  # likelihoods are not random
        return -self.likelihood_head.loss(self.net, context, coded, mask, none) * mask

    def entropy(self, context: Context, rng: Generator) -> Tensor:
        """Returns the entropy of each step, (B, H), or an estimate of it. It needs a `LikelihoodHead`."""
        return self.likelihood_head.entropy(self.net, context, self._draw_noise(context, rng))

    def _draw_noise(self, context: Context, rng: Generator) -> Tensor:
        return torch.randn(len(context.tokens), *self.noise_shape, generator=rng, device=context.tokens.device)

    def plan(self, obs, noise, guides=()):
        """Plans a chunk: see `Planner.plan`."""
        if not torch.compiler.is_compiling():  # sizes are symbols while a program is exported
            self._check_plan_arguments(obs, noise)
        context, net = self.context(obs), self.net
        if not (guides := sampling_guides(guides)):
            return self.codec.decode(self.config.head.sample(net, context, noise), obs)
        head = self.guided_head
        bound = _BoundGuides(guides, head, partial(self.encode, obs=obs), partial(self.decode, obs=obs))
        net = bound.guided_net(net, partial(self._context_without, obs))
        return bound.decode(bound.fixed(head.sample(net, context, noise, bound.cost())))

    def _context_without(self, obs: Mapping[str, Tensor], *names: str) -> Context:
        """Encodes observation windows without some columns."""
        self._check_hidden(names)
        absent = {n + "?": torch.zeros(obs[n].shape[:2], dtype=torch.bool, device=obs[n].device) for n in names}
        return self.context({**obs, **absent})

    def _check_hidden(self, keys: tuple[str, ...]) -> None:
        """Checks the columns that a guide hides, and warns of columns that training never hides."""
        for key in keys:
            if key not in self.inputs:
                raise UserError(f"the policy does not read the column {key!r} that guidance hides", where="guidance",
                                hint=f"it reads {', '.join(self.inputs)}")
        hidden = {k for change in self.config.augmentations for k in change.hides}
        hidden |= {k for k in self.inputs if k + "?" in self.features}  # the data say where a value is missing
        if never := [k for k in keys if k not in hidden]:
            warnings.warn(f"the policy was not trained without {', '.join(never)}, so that guidance may lead anywhere: "
                          f"train it with augmentations=(ConditionDropout({never[0]!r}),)", UserWarning, stacklevel=3)

    def _check_plan_arguments(self, obs, noise) -> None:
        caller, window = "Policy.plan", self.window
        if not self.config.target:
            raise Unsupported("the policy predicts nothing: only its encoder was trained", where=caller,
                              hint='take its encoder over: InitializeFrom(FromStage(NAME), load=("encoder",))')
        if not isinstance(obs, Mapping):
            raise UserError(f"obs is {_describe(obs)}, and not a dict of columns", where=caller,
                            hint=f"give {{{', '.join(f'{k!r}: ...' for k in self.inputs)}}}")
        rows = None
        for name in self.inputs:
            if name not in obs:
                raise UserError(f"there is no column {name!r}; there are {', '.join(sorted(obs)) or 'no columns'}",
                                where=f"{caller}, obs", hint=f"the policy reads {', '.join(self.inputs)}")
            x, shape = obs[name], self.features[name].shape
            if self.features[name].kind == "text":  # any amount of padding
                shape = tuple(x.shape[2:]) if isinstance(x, Tensor) and x.ndim == 3 else shape
            expected_shape = (window.n_obs_steps, *shape)
            if not isinstance(x, Tensor) or tuple(x.shape[1:]) != expected_shape or rows not in (None, len(x)):
                raise UserError(f"{name!r} must be a tensor of shape {_shape_text(rows, expected_shape)}, but is "
                                f"{_describe(x)}", where=f"{caller}, obs",
                                hint="a window has rows first, then the observed steps, oldest first. PolicyActor.act "
                                "takes single observations and keeps the windows")
            rows = len(x)
        if not isinstance(noise, Tensor) or tuple(noise.shape) != (rows, *self.noise_shape):
            raise UserError(f"noise must be a tensor of shape {_shape_text(rows, self.noise_shape)}, but is "
                            f"{_describe(noise)}", where=caller,
                            hint="policy.noise(keys(seed, episodes), count) draws it, a row for each key")

    @property
    def head(self) -> StepwiseHead:
        """The head of a policy that samples step by step. `config.head` is the head of any policy."""
        if not isinstance(self.config.head, StepwiseHead):
            raise Unsupported(f"{type(self.config.head).__name__} answers in one step", hint="use a head that samples "
                              "step by step, such as Flow or Diffusion, or another executor, such as RecedingHorizon")
        return self.config.head

    @property
    def guided_head(self) -> DenoisingHead:
        """The head of a policy whose plans can be guided. Raises Unsupported if it answers in one step."""
        if not isinstance(self.config.head, DenoisingHead):
            raise Unsupported(f"{type(self.config.head).__name__} answers at once; only heads that move noise to "
                              "action step by step can be guided",
                              hint="BestOfN, which takes the best of several plans, works for all heads")
        return self.config.head

    @property
    def likelihood_head(self) -> LikelihoodHead:
        """The head of a policy that has a density. Raises Unsupported if it has none."""
        if not isinstance(self.config.head, LikelihoodHead):
            raise Unsupported(f"{type(self.config.head).__name__} has no density", hint="use a head that has one, such "
                              "as SquashedGaussian or Gaussian for numbers, or Categorical for classes")
        return self.config.head

    def denoise_step(self, context, x, t, t_next):
        return self.head.denoise_step(self.net, context, x, t, t_next)

    @property
    def action_scale(self) -> Tensor:
        """Scale of each component of the target in world units, (A,)."""
        return self.codec.action_scale

    def encode(self, action, obs):
        return self.codec.encode(action, obs)

    def decode(self, coded, obs):
        return self.codec.decode(coded, obs)

    def noise(self, key, count):
        return normal(key, count, self.noise_shape, stream=4)

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """Writes policy.json, features.json, weights.safetensors and its checksum into a folder.

        The configuration and tokenizer of pretrained networks go into the folder `pretrained` in it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "policy.json", config.dump(self.config))
        save_features(self.features, folder)
        save_pretrained_files(self, folder)
        save_weights(self, folder)

    @staticmethod
    def load(folder: Path | str, trust: tuple[str, ...] = (), device: str | torch.device = "cpu") -> Policy:
        """Loads a policy from the folder of a checkpoint, or of a run (its last checkpoint).

        Returns:
            The policy, in evaluation mode.

        Raises:
            UserError: A file is missing or damaged, or the files do not belong together.
            UntrustedCode: A file names code of another package.
        """
        folder = find_checkpoint(folder)
        if is_lerobot_checkpoint(folder):
            raise UserError("this is a policy of LeRobot", where=folder, hint="understudy.load_policy reads it")
        policy_config = config.load(
            read_checkpoint_json(folder, "policy.json"), ("understudy", *trust), str(folder / "policy.json")
        )
        if not isinstance(policy_config, PolicyConfig):
            raise UserError(f"the file holds a {type(policy_config).__name__} instead of a PolicyConfig",
                            where=folder / "policy.json",
                            hint=replacement_hint(folder))
        features = load_features(folder, replacement_hint(folder))
        _check_columns((*policy_config.inputs, policy_config.target), features, str(folder / "features.json"))
        with without_downloads(folder):
            policy = Policy(policy_config, features)
        load_weights(policy, folder, replacement_hint(folder), "policy")
        return policy.eval().to(device)


def check_features(planner: Planner, features: Schema, where: str, *, resized: bool = False,
                   columns: Iterable[str] | None = None, hint: str = "") -> None:
    """Checks that columns fit a planner: every column that it reads or predicts exists and has the same shape and kind.

    Args:
        resized: Whether these are the columns of an environment, in which the planner will act. Units that are known
            must be the same, and camera frames will be resized to the size that the planner reads (see `PolicyActor`).
        columns: Names of the columns that are checked. By default all in `planner.features`.
        hint: What error messages advise. By default another environment, or other data.
    """
    sources = {g.into: g.column for g in planner.window.goals}
    act_hint = "use the environment it was trained for, or train a policy for this one"
    checked = list(filter(None, planner.features if columns is None else columns))
    for name in checked:
        own_feature, name = planner.features[name], sources.get(name, name)
        if resized and name not in features:  # nobody chooses the columns of an environment, so none is suggested
            column_names = ", ".join(sorted(features)) or "nothing"
            raise UserError(f"this does not show {name!r}, which the policy was trained with; it shows {column_names}, "
                            f"and the policy has {', '.join(sorted(sources.get(n, n) for n in checked))}",
                            where=where, hint=hint or act_hint)
        _check_columns((name,), features, where)
        feature = features[name]
        if resized and feature.kind == own_feature.kind == "image":
            feature = replace(feature, shape=(*own_feature.shape[:2], *feature.shape[2:]))
        if resized and {feature.shape, own_feature.shape} == {(), (1,)}:  # one number, stored without an axis
            feature = replace(feature, shape=own_feature.shape)
        if (feature.shape, feature.kind) != (own_feature.shape, own_feature.kind):
            if feature.shape == own_feature.shape and {feature.kind, own_feature.kind} == {"vector", "discrete"}:
                raise _reading_error(name, own_feature, where, is_environment=resized)
            raise UserError(f"the policy was built for {own_feature.kind} of shape {own_feature.shape}, but this is "
                            f"{feature.kind} of shape {feature.shape}", where=f"{where}, column {name!r}",
                            hint=hint or (act_hint if resized else
                                          "use data with the same columns, or train a new policy on these"))
        if resized and own_feature.has_other_unit(feature):
            raise UserError(f"the policy was trained with the unit {own_feature.unit}, but this has {feature.unit}",
                            where=f"{where}, column {name!r}",
                            hint=unit_hint(own_feature.unit, feature.unit, hint or act_hint))
        if (problem := own_feature.disagreement(feature)) is not None:
            raise UserError(f"the policy was trained with {problem}", where=f"{where}, column {name!r}",
                            hint="bring the components into one order and unit, or train a new policy on these")


def _reading_error(name: str, trained: Feature, where: str, is_environment: bool) -> UserError:
    """Builds the error for numbers that are classes to the policy and quantities here, or the other way round."""
    readings = ["classes", "quantities"] if trained.kind == "discrete" else ["quantities", "classes"]
    here, there = (f"--columns {short_name(name)}=COLUMN:{reading}" for reading in readings)
    return UserError(f"the policy was trained on {readings[0]}, and here are {readings[1]}",
                     where=f"{where}, column {name!r}",
                     hint=("" if is_environment else f"if these are {readings[0]} too, add {here}; ")
                     + f"if the training data have {readings[1]}, train on them as such, with {there}")


def camera_sizes(features: Schema) -> dict[str, tuple[int, int]]:
    """Returns the height and width in pixels of the frames of each camera."""
    return {k: (f.shape[0], f.shape[1]) for k, f in features.items() if f.kind == "image"}


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _shape_text(rows: int | None, shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, ('rows' if rows is None else rows, *shape)))})"


def policy_inputs(policy_config: PolicyConfig, features: Schema, where: str | Path = "data set",
                  data: str | Path = "DATA") -> tuple[str, ...]:
    """Returns the columns that a policy reads: the inputs in its config, or all observations but text and depth.

    Args:
        where: What error messages call the data.
        data: Name of the data in the command that the hint suggests.

    Raises:
        UserError: No column is an observation that consists of numbers. The hint suggests names for columns that look
            like one.
    """
    if inputs := policy_config.inputs or tuple(sorted(
            k for k, f in _add_goal_features(policy_config, features).items() if is_read_by_default(k, f))):
        return inputs
    if texts := sorted(k for k in features if role(k) == "observation"):  # all of them: numbers would be inputs
        what = "depth, which no network of understudy reads," if features[texts[0]].kind == "depth" \
            else "text or objects, not numbers,"
        raise UserError(f"no policy can read these data: column {texts[0]!r} contains {what} and there is no other "
                        "observation", where=where,
                        hint="store numbers there, such as float32; instructions belong in the column 'task'")
    raise UserError("no policy can read these data: no column is an observation (the columns are "
                    f"{', '.join(sorted(features)) or 'none'})", where=where, hint=column_naming_hint(features, data))


def _add_goal_features(policy_config: PolicyConfig, features: Schema) -> dict[str, Feature]:
    all_features = dict(features)
    for g in policy_config.window.goals:
        if g.into not in all_features:
            _check_columns((g.column,), features)
            all_features[g.into] = features[g.column]
        check_observed(g.column, features, "Goal.column")
    return all_features


def _check_columns(names, features: Schema, where: str = "data set") -> None:
    for name in names:
        if name not in features:
            columns = sorted(filter(None, features))
            raise missing_action(features, where) if name == "action" else unknown_name("column", name, columns, where)
