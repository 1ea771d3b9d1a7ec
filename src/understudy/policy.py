"""A policy is a conditional generative model of a window of one column given windows of others.

Nothing in it knows that the column is an action: with another target the same class is a world model, an inverse
dynamics model, a subgoal planner or a reward model.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from . import config
from .core import (
    Batch,
    Context,
    Feature,
    Schema,
    Shape,
    State,
    Unsupported,
    UserError,
    normal,
    role,
    suggested_names,
)
from .data.augment import Augment
from .data.codec import Codec, Scaled
from .data.episode import Dataset
from .data.window import Window, Windows
from .files import check_checksum, read_json, write_checksums, write_json
from .heads.base import Head, Noising
from .nets.base import Encoder, Trunk
from .nets.encoders import Tokens
from .nets.mlp import MLP
from .nets.vision import weights_given


@dataclass(frozen=True)
class Recipe:
    """All that determines a policy's function besides its weights. Plain data."""

    head: Head
    trunk: Trunk = field(default_factory=MLP)
    encoder: Encoder = field(default_factory=Tokens)
    codec: Codec = field(default_factory=Scaled)
    window: Window = field(default_factory=Window)
    inputs: tuple[str, ...] = ()  # empty: every "observation." column
    target: str = "action"
    augment: tuple[Augment, ...] = ()


class Rewiring(ABC):
    """A guide that wraps the network."""

    def take(self, rows: Tensor) -> Rewiring:
        """This guide for some of the rows: what holds something of each row takes its part."""
        return self

    @abstractmethod
    def net(self, net: Callable, without: Callable[..., Context]) -> Callable:
        """`without(*keys)` is the context of the same observation minus keys."""


class Pulling(ABC):
    """A guide that lowers a cost while the plan forms."""

    def take(self, rows: Tensor) -> Pulling:
        """As of Rewiring."""
        return self

    @abstractmethod
    def cost(self, coded: Tensor, encode: Callable, decode: Callable) -> Tensor:
        """(B,), of the estimate of the clean chunk; the two functions know the observation."""


Guide = Rewiring | Pulling


@dataclass(frozen=True)
class Contrast(Rewiring):
    """Classifier-free guidance (Ho and Salimans 2022): away from what the policy would do without these keys.

    scale 1 is the plain policy, 0 the one without the keys.
    """

    keys: tuple[str, ...]
    scale: float = 2.0

    def net(self, net, without):
        bare = without(*self.keys)

        def wrapped(x, t, context):
            plain = net(x, t, bare)
            return plain + self.scale * (net(x, t, context) - plain)
        return wrapped


@dataclass(frozen=True)
class Inpaint(Pulling):
    """Keep to `action` (B, H, A) in world units with `weight` (B, H): real-time chunking (Black et al. 2025)."""

    action: Tensor
    weight: Tensor

    def take(self, rows):
        return Inpaint(self.action[rows], self.weight[rows])

    def cost(self, coded, encode, decode):
        error = (coded - encode(self.action)).square().mean(-1)
        return 0.5 * (self.weight * error).sum(-1) * coded.shape[-1]


class Planner(ABC):
    """What an executor needs: a policy, or something made of policies."""

    inputs: tuple[str, ...]  # the columns it reads
    features: Schema  # of these columns, among others
    window: Window
    dim: int  # width of one planned step
    device: torch.device

    @abstractmethod
    def plan(self, obs: Mapping[str, Tensor], noise: Tensor | State, guides: tuple[Guide, ...] = ()) -> Tensor:
        """obs (B, To, ...) -> (B, H, A) in world units: a function of its arguments alone."""

    @abstractmethod
    def noise(self, key: Tensor, count: Tensor) -> Tensor | State:
        """All the randomness of one plan, for rows with these keys at their count-th plan: rows first, in a tensor or,
        where several planners draw, in nested dicts of them."""


class Streams(Planner):
    """A planner whose chunks can be seen half made."""

    @abstractmethod
    def advance(self, obs: Mapping[str, Tensor], x: Tensor, t: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
        """One step, from times t (B, H) to `to`, of a chunk x in the making, coded; and how it would decode now."""


class Policy(nn.Module, Streams):
    """`features` are those of the data: of the inputs and the target. Raises UserError for a column that is not
    there."""

    def __init__(self, recipe: Recipe, features: Schema):
        super().__init__()
        features = _with_goals(recipe, features)
        inputs = inputs_of(recipe, features)
        _known((*inputs, recipe.target), features)
        self.recipe, self.window, self.inputs = recipe, recipe.window, inputs
        self.features = {k: features[k] for k in (*inputs, recipe.target)}
        self.target = features[recipe.target]
        self.dim = self.target.size
        self.coder = recipe.codec.build(self.features, inputs, recipe.target)
        self.encoder = recipe.encoder.build({k: features[k] for k in inputs}, recipe.window.obs)
        shape = Shape(recipe.window.horizon, self.encoder.tokens, self.encoder.width, self.coder.choices,
                      self.coder.bound)
        self.net = recipe.head.build(recipe.trunk, self.coder.width, shape)
        self.noise_shape = recipe.head.noise(shape.horizon, self.coder.width)

    @property
    def device(self) -> torch.device:
        return next((t.device for t in chain(self.parameters(), self.buffers())), torch.device("cpu"))

    # -- data -----------------------------------------------------------------------------------------------------

    def windows(self, data: Dataset, **options) -> Windows:
        """Checked against the features that the policy was built for; of a target of choices, none may be new."""
        features, where = data.features(), str(data.facts.get("path", "data set"))
        self.check(features, where)
        mine, theirs = self.target.choices or (), features[self.recipe.target].choices or ()
        if any(b > a for a, b in zip(mine, theirs, strict=False)):
            raise UserError(f"expected choices below {mine}, as the policy was built for, found {theirs} of them",
                            where=f"{where}, column {self.recipe.target!r}",
                            do="train a new policy on data that hold all choices")
        return self.recipe.window.over(data, self.inputs, self.recipe.target, **options)

    @property
    def frames(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each camera that it reads."""
        return {k: f.shape[:2] for k, f in self.features.items() if f.kind == "image"}

    def check(self, features: Schema, where: str, *, resized: bool = False) -> None:
        """Raises UserError unless `features` has every column that this policy reads, of the same shape and kind.
        resized: frames are yet to be brought to its size (see Plays)."""
        drawn = {g.into: g.of for g in self.window.goals}
        for name, mine in self.features.items():
            name = drawn.get(name, name)
            _known((name,), features, where)
            theirs = features[name]
            if resized and theirs.kind == mine.kind == "image":
                theirs = replace(theirs, shape=(*mine.shape[:2], *theirs.shape[2:]))
            if (theirs.shape, theirs.kind) != (mine.shape, mine.kind):
                raise UserError(f"expected {mine.kind} of shape {mine.shape}, as the policy was built for, found "
                                f"{theirs.kind} of shape {theirs.shape}", where=f"{where}, column {name!r}",
                                do="take the environment it was trained for, or train a policy for this one" if resized
                                else "use data with the same columns, or train a new policy on these")

    @torch.no_grad()
    def fit(self, data: Dataset, *, codec: bool = True) -> Policy:
        """Everything that is not gradient descent: statistics, then centres or memories.

        Again after training (codec=False) for heads whose memory is made of learned features.
        """
        if codec:
            light = tuple(k for k in self.inputs if self.features[k].kind != "image")  # no statistics of pixels
            statistics = self.recipe.window.over(data, light, self.recipe.target)
            self.coder.fit(lambda: (b.to(self.device) for b in statistics.scan()))
        if type(self.recipe.head).fit is not Head.fit:
            training = self.training
            self.eval()
            windows = self.windows(data)

            def pairs() -> Iterator[tuple[Context, Tensor, Tensor]]:
                for b in windows.scan(256):
                    b = b.to(self.device)
                    yield self.context(b.obs), self.encode(b), b.mask
            self.recipe.head.fit(self.net, pairs)
            self.train(training)
        return self

    # -- the two functions ----------------------------------------------------------------------------------------

    def context(self, obs: Mapping[str, Tensor], rng: Generator | None = None) -> Context:
        """`rng` in training only: see nets.base."""
        return self.encoder(self.coder.obs(obs), rng)

    def encode(self, batch: Batch) -> Tensor:
        """(B, H, width), zero where padded: what stands beyond the end of an episode must not reach any network,
        not even as input."""
        return self.coder.encode(batch.action, batch.obs) * batch.mask.unsqueeze(-1)

    def loss(self, batch: Batch, rng: Generator) -> Tensor:
        """(B, H), zero where padded, not reduced. All randomness is from `rng`, but for dropout."""
        obs = batch.obs
        for change in self.recipe.augment if self.training else ():
            obs = change(obs, rng)
        context = self.context(obs, rng if self.training else None)
        loss = self.recipe.head.loss(self.net, context, self.encode(batch), batch.mask, rng)
        return loss * batch.mask

    def plan(self, obs, noise, guides=()):
        context, head, net = self.context(obs), self.recipe.head, self.net
        if not guides:
            return self.coder.decode(head.sample(net, context, noise), obs)
        if not isinstance(head, Noising):
            raise Unsupported(f"{type(head).__name__} answers at once; only heads that move noise to action step by "
                              "step can be guided", do="Best, which takes the best of several plans, works for all")

        def without(*keys):
            absent = {k + "?": torch.zeros(obs[k].shape[:2], dtype=torch.bool, device=obs[k].device) for k in keys}
            return self.context({**obs, **absent})

        def encode(action):
            return self.coder.encode(action, obs)

        def decode(coded):
            return self.coder.decode(coded, obs)

        for guide in guides:
            net = guide.net(net, without) if isinstance(guide, Rewiring) else net
        pulls = [g for g in guides if isinstance(g, Pulling)]
        cost = (lambda x: sum(g.cost(x, encode, decode) for g in pulls)) if pulls else None
        return decode(head.sample(net, context, noise, cost))

    def advance(self, obs, x, t, to):
        if not isinstance(self.recipe.head, Noising):
            raise Unsupported(f"{type(self.recipe.head).__name__} has no half-made chunks",
                              do="take a head that moves noise to action step by step, or another executor")
        x = self.recipe.head.step(self.net, self.context(obs), x, t, to)
        return x, self.coder.decode(x, obs)

    def noise(self, key, count):
        return normal(key, count, self.noise_shape, stream=4)

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> None:
        """recipe.json, features.json, weights.safetensors and its checksum into an existing or new folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "recipe.json", config.dump(self.recipe))
        write_json(folder / "features.json", {k: asdict(f) for k, f in self.features.items()})
        save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()},
                  folder / "weights.safetensors")
        write_checksums(folder, "weights.safetensors")

    @staticmethod
    def load(folder: Path | str, trust: tuple[str, ...] = (), device: str | torch.device = "cpu") -> Policy:
        """From a checkpoint's folder or a run's (then its last). Runs no code outside understudy and `trust`.

        Raises UserError for what is missing, damaged or not of one policy, and Untrusted for code from elsewhere.
        """
        folder = checkpoint(folder)
        recipe = config.load(document(folder, "recipe.json"), ("understudy", *trust), str(folder / "recipe.json"))
        if not isinstance(recipe, Recipe):
            raise UserError(f"expected a Recipe, found {type(recipe).__name__}", where=folder / "recipe.json",
                            do=_instead(folder))
        features = _features(document(folder, "features.json"), folder)
        _known((*recipe.inputs, recipe.target), features, str(folder / "features.json"))
        with weights_given():
            policy = Policy(recipe, features)
        try:
            check_checksum(folder / "weights.safetensors", _instead(folder))
            weights = load_file(folder / "weights.safetensors")
        except FileNotFoundError:
            raise UserError("expected a file, found none", where=folder / "weights.safetensors",
                            do=_instead(folder)) from None
        except (SafetensorError, OSError) as error:
            raise UserError(f"expected a whole safetensors file, found {error}", where=folder / "weights.safetensors",
                            do=_instead(folder)) from None
        try:
            fill(policy, weights)
        except RuntimeError as error:
            raise UserError(f"expected the weights of this recipe, found {error}", where=folder,
                            do="recipe.json and weights.safetensors must come from the same run; "
                            + _instead(folder)) from None
        return policy.eval().to(device)


def inputs_of(recipe: Recipe, features: Schema, where: str | Path = "data set", data: str | Path = "DATA",
              ) -> tuple[str, ...]:
    """The columns that a policy of `recipe` reads: those that it names, else every observation that is not text.

    Args:
        recipe: Of the policy.
        features: Of the data.
        where: What the error calls the data.
        data: What the command in the error's advice calls them.

    Raises:
        UserError: No column is an observation. The advice maps the columns that look like one.
    """
    if inputs := recipe.inputs or tuple(sorted(k for k, f in _with_goals(recipe, features).items()
                                               if role(k) == "observation" and f.kind != "string")):
        return inputs
    raise UserError("no policy can read these data: no column is an observation (the columns are "
                    f"{', '.join(sorted(features)) or 'none'})", where=where, do=naming(features, data))


def naming(features: Schema, data: str | Path = "DATA") -> str:
    """How to give columns the names that policies read, as advice to the user."""
    names = {k: v for k, v in suggested_names(features).items() if role(v) == "observation"}
    told = ", ".join(f"{old} -> {new}" for old, new in names.items())
    options = " ".join(f"--rename {shlex.quote(f'{old}={new}')}" for old, new in (
        names or {"OLD": "observation.state"}).items())
    return (f"policies read columns called observation.* (observation.state, observation.images.NAME)"
            f"{': ' + told if told else ''}; a view renames them: understudy view make {shlex.quote(str(data))} --out "
            f"VIEW {options}")


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives `module` these weights and buffers. Raises RuntimeError, in one line, if they are not its own; then
    nothing has changed."""
    own, buffers = module.state_dict(), dict(module.named_buffers())
    odd = {"missing": [f"{k} {tuple(v.shape)}" for k, v in own.items() if k not in tensors],
           "unexpected": [f"{k} {tuple(v.shape)}" for k, v in tensors.items() if k not in own],
           # A memory has as many rows as there was data: buffers take the shape that was saved.
           "of another shape": [f"{k} {tuple(tensors[k].shape)} in the place of {tuple(v.shape)}"
                                for k, v in own.items() if k in tensors and k not in buffers
                                and tensors[k].shape != v.shape]}
    if any(odd.values()):
        raise RuntimeError("; ".join(f"{len(names)} {kind} (the first: {names[0]})"
                                     for kind, names in odd.items() if names) + f"; of {len(own)} tensors")
    for name, buffer in buffers.items():
        # Clones, since safetensors gives odd addresses, from which sums differ in their last bits.
        owner, _, leaf = name.rpartition(".")
        if name in tensors:
            setattr(module.get_submodule(owner), leaf, tensors[name].to(buffer.device, copy=True))
    module.load_state_dict(tensors)


def checkpoint(folder: Path | str) -> Path:
    """The folder that holds weights: of a run its last ("RUN/best" and "RUN/last" choose), or the folder itself."""
    folder = Path(folder)
    if (folder / "weights.safetensors").exists() or (folder / "recipe.json").exists():
        return folder
    run, which = (folder.parent, folder.name) if folder.name in ("best", "last") else (folder, "last")
    begun = (run / "checkpoints").is_dir() or (run / ".lock").exists()
    if (run / "run.json").exists():
        places = read_json(run / "run.json")
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise UserError("expected the names of checkpoints, found something else", where=run / "run.json",
                            do=_onward(run))
        if places and which not in places:
            raise UserError(f"this run has no {which!r} checkpoint; it has {', '.join(places)}", where=run,
                            do="train with --eval ENV --every N to keep the best")
        if places and (run / places[which]).is_dir():
            return run / places[which]
        begun = True
    if begun:
        saved = f"; it has {', '.join(f.name for f in found)}" if (found := _saved(run / "checkpoints")) else ""
        raise UserError(f"expected a checkpoint called {which!r}, found a run that was stopped before it named one"
                        f"{saved}", where=run, do=_onward(run))
    raise UserError(f"expected a trained run or a checkpoint, found {_else(folder)}", where=folder, do=(
        f"name one of these: {', '.join(map(str, found))}" if (found := _saved(folder)) else
        f"name the folder: {folder.parent}" if (folder.parent / "recipe.json").exists() else
        f"train on them: understudy train RECIPE {folder} --out RUN" if (folder / "meta" / "info.json").exists() else
        "check the path, or train one: understudy train RECIPE DATA --out RUN"))


def document(folder: Path, name: str):
    """The JSON of that name in a checkpoint. Raises UserError that says what to take instead."""
    try:
        return read_json(folder / name)
    except UserError as error:
        raise UserError(error.what, where=error.where, do=_instead(folder)) from None


def _else(folder: Path) -> str:
    if not folder.exists():
        return "nothing"
    return "a file" if folder.is_file() else "demonstrations" if (folder / "meta" / "info.json").exists() else "neither"


def _saved(folder: Path) -> list[Path]:
    """The checkpoints in it that have their weights, in order."""
    return sorted((f.parent for f in folder.glob("[0-9]*/weights.safetensors")), key=lambda f: (len(f.name), f.name))


def _onward(run: Path) -> str:
    """The way out for a run whose names do not lead to a checkpoint."""
    found = _saved(run / "checkpoints")
    named = f"name one of its checkpoints, {found[-1]}; or " if found else ""
    return f"{named}the command it was begun with goes on: {_again(found[-1] if found else None, run)}"


def _instead(folder: Path) -> str:
    """The way out for a checkpoint that is not whole."""
    if others := [f for f in _saved(folder.parent) if f != folder]:
        return f"take another checkpoint of the run: {others[-1]}"
    return f"remove {folder} and train again: {_again(folder, folder.parent.parent)}"


def _again(folder: Path | None, run: Path) -> str:
    """The command that trains it, as far as it is known."""
    with suppress(UserError, AttributeError):
        if folder is not None and (said := read_json(folder / "provenance.json").get("command")):
            return str(said)
    return f"understudy train RECIPE DATA --out {run if (run / 'checkpoints').exists() else 'RUN'}"


def _feature(data: dict) -> Feature:
    return Feature(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _features(data, folder: Path) -> dict[str, Feature]:
    try:
        return {k: _feature(f) for k, f in data.items()}
    except (TypeError, AttributeError) as error:
        raise UserError(f"expected columns with dtype, shape and kind, found something else ({error})",
                        where=folder / "features.json", do=_instead(folder)) from None


def _with_goals(recipe: Recipe, features: Schema) -> dict[str, Feature]:
    features = dict(features)
    for g in recipe.window.goals:
        if g.into not in features:
            _known((g.of,), features)
            features[g.into] = features[g.of]
    return features


def _known(names, features: Schema, where: str = "data set") -> None:
    import difflib

    for name in names:
        if name not in features:
            near = difflib.get_close_matches(name, features, 1)
            raise UserError(f"expected a column {name!r}, found {', '.join(sorted(features)) or 'none'}", where=where,
                            do=f"did you mean {near[0]!r}?" if near else "name one that is there")
