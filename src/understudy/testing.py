"""What every part promises. Shipped, so that someone else's head, codec or trunk can be held to it as well.

Each function raises AssertionError saying which promise was broken. None of them needs data.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import config
from .checkpoint import Scorer, load_module, save_module
from .config import UntrustedCode
from .core import (
    Batch,
    Context,
    Feature,
    HeadSpec,
    Schema,
    Unsupported,
    UserError,
    keys,
    put,
    role,
    take,
    tree_map,
)
from .data.augment import GaussianNoise
from .data.codec import Codec
from .data.episode import Dataset, Episode
from .data.formats import open_dataset
from .data.relabel import Relabel, RuntimeRelabel, relabeled_features
from .data.runtime import LastStep
from .data.window import Window
from .envs.base import Env, HasExpert, PlanarMap, Renderable, Restorable
from .envs.shifts import Shift
from .envs.wrappers import WrappedEnv
from .evaluate.recording import UniformRandomActor
from .evaluate.rollout import rollout
from .execute.actor import Actor, NoisyActor
from .execute.base import ActionConditionedExecutor, Executor
from .execute.instruction import Speaker
from .execute.planner_config import PlannerConfig
from .execute.wrappers import ActionWrapper, WrappedActor
from .heads.base import DenoisingHead, LikelihoodHead, TargetNetworkHead, TemperatureHead
from .heads.flow import Flow
from .heads.neighbors import Neighbors
from .heads.regression import Regression
from .learn.fit import LearnerConfig
from .learn.latent_labels import LatentEncoder
from .learn.method import Method
from .learn.run import Run
from .learn.stages import packages_of
from .learn.train import train
from .nets.base import CachesContext, Encoder, FusesTimes, SharedTimeTrunk, Trunk, precomputed
from .nets.mlp import MLP
from .policy import CostGuidance, NetworkGuidance, Planner, Policy, PolicyConfig
from .robots.base import Robot, RobotError

STATE = "observation.state"
Guidance = NetworkGuidance | CostGuidance


class ContractViolation(AssertionError):
    """A part does not keep its contract."""


def require(promise: bool, what: str) -> None:
    """Raises ContractViolation if a condition is False, also if Python runs with -O, unlike `assert`.

    Args:
        promise: The condition.
        what: The message.
    """
    if not promise:
        raise ContractViolation(what)


def require_equal(one: Tensor, other: Tensor, what: str, near: float = 0.0) -> None:
    """Raises ContractViolation if two tensors differ.

    Args:
        one: A tensor.
        other: The tensor that should be equal.
        what: The message.
        near: Relative tolerance. The absolute tolerance is a tenth of it.
    """
    try:
        torch.testing.assert_close(one, other, rtol=near, atol=near / 10, msg=lambda m: f"{what}\n{m}")
    except AssertionError as error:
        raise ContractViolation(str(error)) from None


def require_finite(x: Tensor, shape: tuple[int, ...], what: str, axes: str) -> None:
    """Raises ContractViolation if a tensor has another shape, or a number that is NaN or infinite.

    Args:
        x: The tensor.
        shape: The shape that it should have.
        what: What it is, for the message.
        axes: The names of its axes, such as "(B, H, A)".
    """
    require(tuple(x.shape) == shape, f"{what} must have shape {axes} = {shape}, but has {tuple(x.shape)}")
    wrong = int((~x.isfinite()).sum())
    require(not wrong, f"{what} must be finite, but {wrong} of {x.numel()} numbers are NaN or infinite")


# -- made-up data ---------------------------------------------------------------------------------------------------


def random_dataset(features: Schema, episodes: int = 6, steps: int = 24, seed: int = 0) -> Dataset:
    """Episodes with random values: numbers, images, bytes and classes, as the features require.

    Args:
        features: The columns.
        episodes: Number of episodes.
        steps: Number of steps of the first episode. Each further episode is one step longer.
        seed: Seed of the values.
    """
    rng = np.random.default_rng(seed)

    def column(name, f, rows):
        if f.kind == "discrete":
            return rng.integers(0, np.array(f.num_classes).reshape(f.shape), (rows, *f.shape)).astype(f.dtype)
        if f.kind in ("image", "text"):
            return rng.integers(0, 256, (rows, *f.shape)).astype(np.uint8)
        if f.kind == "string":
            return np.array(["left", "right", "up"])[rng.integers(0, 3, (rows, *f.shape))]
        walk = rng.normal(size=(rows, *f.shape)).cumsum(0) if name.startswith("observation") else rng.normal(
            size=(rows, *f.shape))
        return (walk * 3 + 1).astype(f.dtype)
    return Dataset([Episode({k: column(k, f, steps + i) for k, f in features.items()}, {"number": i},
                            schema=dict(features)) for i in range(episodes)])


def random_batch(policy_config: PolicyConfig, size: int = 5, seed: int = 0, target: Feature | None = None,
                 inputs: Schema | None = None) -> tuple[Policy, Batch]:
    """A policy whose statistics are those of random data, and a batch of the data whose last windows extend past the
    end of an episode.

    Args:
        policy_config: The configuration of the policy.
        size: Number of windows.
        seed: Seed of the data and the weights.
        target: Feature of the target. By default two numbers.
        inputs: Features of the inputs. By default three numbers in each column that the configuration names.
    """
    named = (*policy_config.inputs, *(g.column for g in policy_config.window.goals))
    if inputs is None:
        inputs = {k: Feature("float32", (3,)) for k in named or (STATE, "observation.environment_state")}
    features = {**inputs, policy_config.target: target or Feature("float32", (2,))}
    window = policy_config.window
    data = random_dataset(features, steps=3 * (window.horizon + window.n_obs_steps), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy(policy_config, data.features()).fit_statistics(data)
    windows = policy.windows(data)
    end = int(windows.episode_ends[0])
    late = [end - 1 - i for i in range(size // 2)]
    return policy.eval(), windows.gather(np.array([*range(size - len(late)), *late]), np.random.default_rng(seed))


# -- heads ----------------------------------------------------------------------------------------------------------


def check_head(policy_config: PolicyConfig, target: Feature | None = None, inputs: Schema | None = None) -> None:
    """Checks the contract of a head with the given trunk.

    Shapes; all randomness is in the arguments; the declared noise changes plans, but not if `ignores_noise`; plans and
    losses of a row do not depend on other rows; padding does not matter; gradients reach all weights; files contain
    everything and run no untrusted code. For sub-interfaces: a `DenoisingHead` ends at the action and a step of length
    0 changes nothing; ``-loss`` of a `LikelihoodHead` sums to `log_prob`; the temperature of a `TemperatureHead`
    changes plans; a `TargetNetworkHead` uses its own network by default.

    Args:
        policy_config: Configuration of a policy with the head and a trunk.
        target: Feature of the target. By default two numbers.
        inputs: Features of the inputs. By default numbers.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    policy, batch = random_batch(policy_config, target=target, inputs=inputs)
    B, H, A = len(batch), policy_config.window.horizon, policy.action_dim
    noise = torch.randn(B, *policy.noise_shape, generator=_rng(0))
    context, coded = policy.context(batch.obs), policy.encode_batch(batch)
    loss = policy_config.head.loss(policy.net, context, coded, batch.mask, _rng(1))
    require(loss.shape == (B, H), f"loss must be (B, H), not reduced, and is {tuple(loss.shape)}")
    require(bool(_batch_loss(policy, batch).isfinite().all()), "loss must be finite")
    with torch.no_grad():
        plan = policy.plan(batch.obs, noise)
    require_finite(plan, (B, H, A), "a plan", "(B, H, A)")
    _head_draws_nothing(policy, batch, noise, plan)
    _head_loss_of_each_row(policy, context, coded, batch.mask)
    _head_ignores_padding(policy, batch)
    _head_reads_noise(_head_learns(policy, batch), batch, noise)
    _head_saves(policy, batch, noise, plan)
    _head_in_other_numbers(policy, batch, noise)
    if isinstance(policy_config.head, DenoisingHead):
        _head_times(policy, context, coded)
    if isinstance(policy_config.head, LikelihoodHead):
        _head_likelihood(policy, batch, context, coded)
    if isinstance(policy_config.head, TemperatureHead):
        cold, hot = (replace(policy_config.head, temperature=t).sample(policy.net, context, noise) for t in (0.0, 10.0))
        require(not torch.allclose(cold, hot), "plans must depend on the temperature")
    if isinstance(policy_config.head, TargetNetworkHead):
        own, given = (policy_config.head.loss(policy.net, context, coded, batch.mask, _rng(1), net) for net in (
            None, policy.net))
        require_equal(own, given, "without a target network, the head must use its own network")
    twin = copy.deepcopy(policy)  # averages and targets need it
    require_equal(twin.plan(batch.obs, noise), plan, "a deep copy must act alike")


def _rng(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def _batch_loss(policy, batch, seed=1):
    return policy.loss(batch, _rng(seed))


@torch.no_grad()
def _head_draws_nothing(policy, batch, noise, plan):
    state = torch.random.get_rng_state()
    require_equal(policy.plan(batch.obs, noise), plan, "the same arguments must give the same plan")
    require_equal(_batch_loss(policy, batch), _batch_loss(policy, batch), "the same rng must give the same loss")
    require(
        torch.equal(torch.random.get_rng_state(), state), "every draw is from `rng` or `noise`, none from torch's own"
    )
    one = policy.plan({k: v[2:3] for k, v in batch.obs.items()}, noise[2:3])
    require_equal(one[0], plan[2], "a row's plan must not depend on the other rows", 1e-4)


@torch.no_grad()
def _head_loss_of_each_row(policy, context, coded, mask):
    head = policy.config.head
    if isinstance(head, Flow) and head.coupling != "independent":  # it assigns noises to the rows of a batch
        return
    others = [0, 0, 2, *[0] * (len(mask) - 3)]  # other rows, but the same draws for row 2
    loss, alone = (head.loss(policy.net, take(context, rows), coded[rows], mask[rows], _rng(1))
                   for rows in (list(range(len(mask))), others))
    require_equal(alone[2], loss[2], "a row's loss must not depend on the other rows", 1e-4)


def _head_ignores_padding(policy, batch):
    if policy.window.horizon == 1:
        return
    require(not bool(batch.mask.all()), "the example has padding")
    beyond = 1 - batch.action if policy.target.kind == "discrete" else torch.tensor(9e3)
    spoiled = batch.replace(action=torch.where(batch.mask.unsqueeze(-1), batch.action, beyond.to(batch.action.dtype)))
    if policy.target.kind == "discrete":
        spoiled = spoiled.replace(action=spoiled.action.clamp(min=0))
    require_equal(
        _batch_loss(policy, spoiled), _batch_loss(policy, batch), "what stands at padded steps must not matter"
    )
    require(not bool(_batch_loss(policy, batch)[~batch.mask].any()), "padded steps have no loss")


def _head_learns(policy, batch) -> Policy:
    """Returns a copy of the policy after a few updates."""
    if not _batch_loss(policy, batch).requires_grad:
        weights = [n for n, p in policy.net.named_parameters() if p.requires_grad and p.numel()]
        require(not weights, f"the loss has no gradient, but the head has weights to train: {weights}")
        return policy  # a head that only fits its data, such as nearest neighbors
    trained = copy.deepcopy(policy)
    weights = [p for p in trained.parameters() if p.requires_grad and p.numel()]
    optimizer = torch.optim.Adam(weights, 1e-3)
    for seed in range(4):  # layers that begin at zero stop all gradients until they have moved
        optimizer.zero_grad()
        sum(_batch_loss(trained, batch, 6 * seed + s).sum() for s in range(6)).backward()
        optimizer.step()
    dead = [n for n, p in trained.named_parameters() if p.requires_grad and p.numel() and (
        p.grad is None or not p.grad.any())]
    require(not dead, f"no gradient reaches {dead}")
    settled = [n for n, p in trained.named_parameters() if not p.requires_grad and p.grad is not None]
    require(not settled, f"settled weights must not train: {settled}")
    return trained


@torch.no_grad()
def _head_reads_noise(policy, batch, noise):
    """Checks that noise changes the plans of a policy after a few updates. Before them, layers that are initialized to
    zero ignore it.
    """
    if not noise.numel():
        return
    head = policy.config.head
    if isinstance(head, TemperatureHead):  # at temperature 0 many read no noise
        head = replace(head, temperature=10.0)
    context = policy.context(batch.obs)
    one, other = (head.sample(policy.net, context, x) for x in (noise, noise.flip(0) + 1))
    cold = (replace(head, temperature=0.0),) if isinstance(head, TemperatureHead) else ()
    for setting in (head, policy.config.head, *cold):
        plans = [setting.sample(policy.net, context, x) for x in (noise, noise.flip(0) + 1)]
        require(not setting.ignores_noise or torch.allclose(*plans),
                f"ignores_noise of {setting} is True, but other noise gives other plans: override it")
    require(not torch.allclose(one, other), f"the noise of {type(head).__name__} has shape "
            f"{tuple(policy.noise_shape)} per plan, but other noise gives the same plans: use it in `sample`, or "
            "return (horizon, 0) from `noise`")


@torch.no_grad()
def _head_saves(policy, batch, noise, plan):
    packages = packages_of(policy.config)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        again = Policy.load(folder, trust=packages)
        require(again.config == policy.config, "the config must survive its file")
        require_equal(again.plan(batch.obs, noise), plan, "what was loaded must act alike")
        path = Path(folder) / "policy.json"
        text = json.loads(path.read_text())
        text["head"]["$"] = "nobody_trusts_this:Head"
        path.write_text(json.dumps(text))
        try:
            Policy.load(folder, trust=packages)
        except UntrustedCode:
            return
        raise ContractViolation("a file that names untrusted code must be refused before that code is imported")


@torch.no_grad()
def _head_in_other_numbers(policy, batch, noise):
    head = policy.config.head
    context = policy.context(batch.obs)
    exact = replace(context, tokens=context.tokens.double())
    net = copy.deepcopy(policy.net).double()
    said = head.sample(net, exact, noise.double())
    require(said.dtype == torch.float64, f"float64 in must give float64 out, and gives {said.dtype}")
    require_equal(said.float(), head.sample(policy.net, context, noise), "float64 must agree with float32", 1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        require(bool(_batch_loss(policy, batch).isfinite().all()), "loss must be finite in bfloat16")
    if torch.cuda.is_available():
        there = copy.deepcopy(policy).to("cuda")
        plan = there.plan(batch.to("cuda").obs, noise.cuda())
        require_equal(plan.cpu(), policy.plan(batch.obs, noise), "a GPU must agree with the CPU", 1e-2)
        require(there.loss(batch.to("cuda"), _rng(1, "cuda")).device.type == "cuda", "losses stay on the GPU")


@torch.no_grad()
def _head_likelihood(policy, batch, context, coded):
    head, complete = policy.config.head, batch.mask.all(1)
    log_prob = head.log_prob(policy.net, context, coded)
    require_finite(log_prob, (len(batch),), "log_prob", "(B,)")
    require(bool(complete.any()), "the example has chunks without padding")
    loss = head.loss(policy.net, context, coded, batch.mask, _rng(1))
    require_equal(-loss[complete].sum(1), log_prob[complete], "-loss of a chunk without padding must sum to log_prob",
                  1e-4)


@torch.no_grad()
def _head_times(policy, context, coded):
    head, noise = policy.config.head, torch.randn(coded.shape, generator=_rng(3))
    require(
        torch.equal(head.interpolate(coded, noise, torch.ones_like(coded[..., :1])), coded), "at t=1 there is no noise"
    )
    t = torch.full(coded.shape[:2], 0.5)
    clean = head.predict_clean(policy.net, context, noise, t)
    require_finite(clean, tuple(coded.shape), "predict_clean", "(B, H, A)")
    try:
        same = head.denoise_step(policy.net, precomputed(policy.net, context), noise, t, t)
    except Unsupported:  # a sampler that draws in every step
        return
    require_equal(same, noise, "a step from t to t must change nothing", 1e-4)


# -- codecs ---------------------------------------------------------------------------------------------------------


def check_codec(codec: Codec, target: Feature | None = None) -> None:
    """Checks the contract of a codec.

    `decode` undoes `encode`. Columns without numeric values are left alone. The codec cannot be used before it is
    fitted.

    Args:
        codec: The codec.
        target: Feature of the target. By default two numbers.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    features = {STATE: Feature("float32", (2,)), "observation.images.front": Feature("uint8", (4, 4, 3), "image"),
                "observation.words": Feature("uint8", (9,), "text"),
                "observation.mode": Feature("int64", (1,), "discrete", num_classes=(3,)),
                "action": target or Feature("float32", (2,))}
    inputs = tuple(k for k in features if k != "action")
    data = random_dataset(features)
    windows = Window(2, 4).windows(data, inputs, "action")
    batch = windows.gather(np.arange(0, len(windows), 5))
    coder = codec.build(features, inputs, "action")
    if coder.state_dict() and not getattr(coder, "fitted", True):
        for use in (lambda: coder.encode(batch.action, batch.obs), lambda: coder.encode_obs(batch.obs)):
            try:
                use()
            except UserError:
                continue
            raise ContractViolation("statistics that were never taken must not be used")
    coder.fit_statistics(windows.scan)
    coded = coder.encode(batch.action, batch.obs)
    require(coded.shape == (*batch.action.shape[:2], coder.width), "coded actions must be (B, H, width)")
    back = coder.decode(coded, batch.obs)
    here = batch.mask.unsqueeze(-1)
    require_equal(back * here, batch.action.to(back.dtype) * here, "decode must undo encode", 1e-4)
    seen = coder.encode_obs(batch.obs)
    require(set(seen) == set(batch.obs), "a codec must keep every observation")
    for name in inputs:
        require(seen[name].shape == batch.obs[name].shape, f"{name} must keep its shape")
        if features[name].kind != "vector":
            require_equal(seen[name], batch.obs[name], f"{name} is not numeric and must be left alone")
    twin = codec.build(features, inputs, "action")
    twin.load_state_dict(coder.state_dict())
    require_equal(twin.encode(batch.action, batch.obs), coded, "statistics must be saved with the weights")


# -- guides ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_guide(guide: Guidance | Callable[[Policy, Batch], Guidance], policy_config: PolicyConfig,
                inputs: Schema | None = None) -> None:
    """Checks the contract of a guide.

    It changes plans, and nothing else does: nothing is random, and rows do not depend on each other, also where
    `select_rows` repeats them. Costs are one finite number for each row.

    Args:
        guide: The guide. If it contains tensors with rows, a function that makes it for the rows of a batch.
        policy_config: Configuration of a policy whose head samples step by step.
        inputs: Features of the inputs. By default numbers.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    policy, batch = random_batch(policy_config, inputs=inputs)
    with torch.enable_grad():
        policy = _head_learns(policy, batch).eval()  # layers that are initialized to zero cannot be guided
    if not isinstance(guide, (NetworkGuidance, CostGuidance)):
        guide = guide(policy, batch)
    obs, noise = batch.obs, torch.randn(len(batch), *policy.noise_shape, generator=_rng(0))
    state = torch.random.get_rng_state()
    plain, guided = policy.plan(obs, noise), policy.plan(obs, noise, (guide,))
    require_finite(guided, tuple(plain.shape), "a guided plan", "(B, H, A)")
    require(not torch.allclose(guided, plain), f"{type(guide).__name__} changes no plan")
    require_equal(policy.plan(obs, noise, (guide,)), guided, "the same arguments must give the same guided plan")
    require(torch.equal(torch.random.get_rng_state(), state), "a guide must not draw from torch's generator")
    rows = torch.tensor([2, 0, 2])
    some = policy.plan(take(obs, rows), noise[rows], (guide.select_rows(rows),))
    require_equal(some, guided[rows], "a row's guided plan must not depend on the other rows; if the guide contains "
                  "tensors with rows, select_rows must select from each", 1e-3)
    if isinstance(guide, CostGuidance):
        cost = guide.cost(policy.encode(plain, obs), lambda x: policy.encode(x, obs), lambda x: policy.decode(x, obs))
        require_finite(cost, (len(batch),), "a cost", "(B,)")


# -- networks -------------------------------------------------------------------------------------------------------


def _part_saves(part: Trunk | Encoder) -> None:
    try:
        again = config.load(json.loads(json.dumps(config.dump(part))), ("understudy", *packages_of(part)))
    except (TypeError, UserError) as error:
        raise ContractViolation(str(error)) from None
    require(again == part, f"{type(part).__name__} must survive its file")


def check_trunk(trunk: Trunk, horizon: int = 8, multiple: int = 1) -> None:
    """Checks a trunk.

    Outputs have the right shape for any number of inputs and times. Batch rows do not influence each other. Masked
    tokens change nothing. Context, inputs and times matter. Gradients reach all weights. For a causal head, output
    step i depends on input steps 0 to i only, or `build` raises `Unsupported`. A trunk may refuse heads without times
    in the same way. A network that `FusesTimes` gives the same when it is fused for a time, and refuses other times.

    Args:
        trunk: The trunk.
        horizon: Number of action steps, at least 2.
        multiple: The widths of inputs and outputs are multiples of this number. 4 for a trunk that divides them among
            the 4 tokens.
    """
    _part_saves(trunk)
    B, N, D = 3, 4, 5
    for inputs, outputs, times in ((0, 3, 0), (2, 3, 0), (2, 3, 1), (2, 1, 2)):
        inputs, outputs = inputs * multiple, outputs * multiple
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                net = trunk.build(inputs, outputs, times, HeadSpec(horizon, N, D, token_obs_steps=(0, 0, 1, 1)))
            except Unsupported:
                if times:
                    raise
                continue  # the trunk needs times
        rng = _rng(1)
        x, t = torch.randn(B, horizon, inputs, generator=rng), torch.rand(B, 1, times, generator=rng)
        t = t.expand(-1, horizon, -1)
        tokens, mask = torch.randn(B, N, D, generator=rng), torch.ones(B, N, dtype=torch.bool)
        mask[:, -1] = False
        context, wanted = Context(tokens, mask), torch.randn(B, horizon, outputs, generator=rng)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(4):  # past layers that begin at zero
            optimizer.zero_grad()
            (net(x, t, context) - wanted).square().mean().backward()
            optimizer.step()
        dead = [n for n, p in net.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())]
        require(not dead, f"no gradient reaches {dead}")
        net.eval()
        with torch.no_grad():
            _trunk_reads(trunk, net, x, t, context, outputs)
    _trunk_is_causal(trunk, horizon, multiple)


def _trunk_is_causal(trunk, horizon, multiple):
    try:
        net = trunk.build(2 * multiple, 3 * multiple, 0,
                          HeadSpec(horizon, 4, 5, token_obs_steps=(0, 0, 1, 1), causal=True))
    except Unsupported:
        return
    x = torch.randn(2, horizon, 2 * multiple, generator=_rng(4), requires_grad=True)
    context = Context(torch.randn(2, 4, 5, generator=_rng(5)), torch.ones(2, 4, dtype=torch.bool))
    early = torch.autograd.grad(net.eval()(x, x[..., :0], context)[:, :-1].square().sum(), x)[0]
    require(not bool(early[:, -1].any()), "a step of a causal trunk must not depend on later input steps")


def _trunk_reads(trunk, net, x, t, context, outputs):
    out = net(x, t, context)
    require(out.shape == (*x.shape[:2], outputs), "a trunk gives (B, H, outputs)")
    one = net(x[1:2], t[1:2], Context(context.tokens[1:2], context.mask[1:2]))
    require_equal(one[0], out[1], "a row must not depend on the other rows", 1e-4)
    hidden = context.tokens.clone()
    hidden[:, -1] += 100.0
    require_equal(net(x, t, Context(hidden, context.mask)), out, "a token with mask False must be as if absent", 1e-5)
    shown = context.tokens.clone()
    shown[:, 0] += 1.0
    require(not torch.allclose(net(x, t, Context(shown, context.mask)), out, atol=1e-6), "the context must matter")
    require_equal(net(x, t, precomputed(net, context)), out, "a primed context must give the same", 1e-4)
    if isinstance(net, CachesContext) and t.shape[-1]:
        once = net.with_time_embedding(net.precompute(context), net.embed_time(t[0, :1])[0])
        plain = net(x, t[:1, :1].expand_as(t), context)
        require_equal(net(x, t, once), plain, "a context at one time must give the same", 1e-4)
        if isinstance(net, FusesTimes):
            _trunk_fuses(net, x, t[0, :1], context, plain)
    if x.shape[-1]:
        require(not torch.allclose(net(x + 1, t, context), out, atol=1e-6), "the inputs must matter")
    if t.shape[-1]:
        require(not torch.allclose(net(x, 1 - t, context), out, atol=1e-6), "the times must matter")
        later = t.clone()
        later[:, -1] = 1 - later[:, -1]
        if not isinstance(trunk, SharedTimeTrunk):
            require(not torch.allclose(net(x, later, context), out, atol=1e-6), "each step's own time must matter")


def _trunk_fuses(net, x, time, context, wanted):
    """`wanted`: outputs at one time for all rows and steps, (1, K)."""
    fused = net.fuse(time)
    once = fused.with_time_embedding(fused.precompute(context), fused.embed_time(time)[0])
    require_equal(fused(x, x[..., :0], once), wanted, "a network that is fused for a time must give the same", 1e-4)
    try:
        fused.embed_time(1 - time)
    except Unsupported:
        return
    require(False, "a network that is fused for some times must refuse others")


def check_encoder(encoder: Encoder, features: Schema, rows: int = 2) -> None:
    """Checks an encoder.

    The number of tokens and their observation steps are what the module says. Batch rows do not influence each other.
    Values that were not observed (``"name?"`` is False) change nothing, in single rows of the window as well. Nothing
    is random without `rng`. Gradients reach all weights.

    Args:
        encoder: The encoder.
        features: Features of the inputs.
        rows: Number of observation rows (To), at least 2.
    """
    _part_saves(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = encoder.build(features, rows).eval()
    data = random_dataset({**features, "action": Feature("float32", (1,))})
    obs = dict(Window(rows, 1).windows(data, tuple(features), "action").batch(5, 0).obs)
    with torch.no_grad():
        context = net(obs)
        require(context.tokens.shape == (5, net.tokens, net.width) and context.mask.shape == (5, net.tokens),
                f"tokens must be (B, {net.tokens}, {net.width}) with a mask (B, {net.tokens}), and are "
                f"{tuple(context.tokens.shape)} with a mask {tuple(context.mask.shape)}")
        require(bool(context.tokens.isfinite().all()), "tokens must be finite")
        require_equal(net(obs).tokens, context.tokens, "without rng nothing is random")
        one = net({k: v[1:2] for k, v in obs.items()})
        require_equal(one.tokens[0], context.tokens[1], "a row must not depend on the other rows", 1e-4)
        for name, f in features.items():
            absent = {name + "?": torch.zeros(5, rows, dtype=torch.bool)}
            other = obs[name].flip(0) if f.kind != "vector" else torch.full_like(obs[name], float("nan"))
            gone, also = net({**obs, **absent}), net({**obs, **absent, name: other})
            require_equal(gone.flat(), also.flat(), f"what {name} holds where it was not sensed must not matter")
            require(not torch.equal(gone.flat(), context.flat()), f"it must matter that {name} was not sensed")
        _encoder_ignores_masked_rows(net, features, obs, rows)
        _encoder_tokens_are_of_their_steps(net, obs, rows, context)
    weights = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    if weights:
        (net(obs, _rng(1)).flat() * torch.randn(context.flat().shape, generator=_rng(2))).sum().backward()
        dead = [n for n, p in weights if p.grad is None or not p.grad.any()]
        require(not dead, f"no gradient reaches {dead}")


@torch.no_grad()
def _encoder_ignores_masked_rows(net, features, obs, rows):
    present = torch.arange(rows).expand(5, -1) > 0  # the first row is before the start of the episode
    other = {name: x.clone() for name, x in obs.items()}
    for x in other.values():
        x[:, 0] = float("nan") if x.is_floating_point() else x[:, 0].flip(0)
    masks = {name + "?": present for name in features}
    one, two = net({**obs, **masks}), net({**other, **masks})
    require_equal(one.flat(), two.flat(), "what masked rows hold must not matter")
    require_equal(one.mask, two.mask, "what masked rows hold must not matter")


@torch.no_grad()
def _encoder_tokens_are_of_their_steps(net, obs, rows, context):
    steps = torch.tensor(net.token_obs_steps)
    require(steps.shape == (net.tokens,) and bool(((steps >= 0) & (steps < rows)).all()),
            f"token_obs_steps must give each of {net.tokens} tokens a step from 0 to {rows - 1}, and is "
            f"{net.token_obs_steps}")
    for row in range(rows):
        changed = {name: x.clone() for name, x in obs.items()}
        for x in changed.values():
            x[:, row] = x[:, row].flip(0)
        before = steps < row
        require_equal(net(changed).tokens[:, before], context.tokens[:, before],
                      "a token must not depend on observation steps after token_obs_steps")


# -- executors ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_executor(executor: Executor, config: PolicyConfig, steps: int = 12,
                   inference: tuple[PlannerConfig, ...] = ()) -> None:
    """Checks the contract of an executor.

    Its actions depend on the planner, its state keeps its structure, rows do not influence each other, one row can be
    restarted alone, and the same keys give the same actions. If it is an `ActionConditionedExecutor`, its plans also
    continue the executed actions.

    Args:
        executor: The executor to check.
        config: A policy that it can run. Its inputs are columns of three numbers.
        steps: Number of steps of each run.
        inference: How the policy plans, as in `Method.inference`. The only module that they can name is "policy".

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    def built(policy: Policy) -> Planner:
        planner: Planner = policy
        for part in inference:
            planner = part.build(planner, {"policy": policy})
        return planner

    plain, other = (random_batch(config, seed=seed)[0] for seed in range(2))
    rng = _rng(0)
    for weight in other.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=rng)
    policy, another = built(plain), built(other)
    executor.check_planner(policy)
    obs = [{k: torch.randn(3, policy.window.n_obs_steps, *policy.features[k].shape, generator=rng)
            for k in policy.inputs} for _ in range(steps)]
    key, new = torch.tensor([11, 22, 33]), torch.tensor([44])
    everyone, alone, middle = torch.arange(3), torch.tensor([1]), steps // 2 - 1

    def run(rows, key, restart=None, since=0, policy=policy):
        state, out = executor.start(policy, take(obs[since], rows), key), []
        structure = _structure(state)
        for n, seen in enumerate(obs[since:]):
            if restart == n:
                state = put(state, alone, executor.start(policy, take(seen, alone), new))
            before, copied = state, tree_map(torch.clone, state)
            action, state = executor.act(policy, take(seen, rows), before)
            # NaN is not equal to itself, so that a state with NaN would seem to have changed
            require_finite(action, (len(key), policy.action_dim), f"the actions of step {since + n}", "(B, A)")
            tree_map(_require_unchanged, before, copied)
            require(_structure(state) == structure, "a state's structure must never change")
            out.append(action)
        return torch.stack(out)
    whole = run(everyone, key)
    require_equal(run(everyone, key), whole, "the same keys must give the same actions")
    require(not torch.allclose(run(everyone, key, policy=another), whole),
            f"two policies with different plans give the same actions: `act` of {type(executor).__name__} must execute "
            "what its planner plans")
    require_equal(run(alone, key[1:2])[:, 0], whole[:, 1], "a row must not depend on the other rows", 1e-3)
    reset = run(everyone, key, middle)
    require_equal(reset[:, [0, 2]], whole[:, [0, 2]], "other rows must not notice that one is restarted", 1e-3)
    require_equal(reset[middle:, 1], run(alone, new, since=middle)[:, 0], "a restarted row must be as new", 1e-3)
    if isinstance(executor, ActionConditionedExecutor):
        _check_plan_after_actions(executor, plain, obs[0], key)


def _check_plan_after_actions(executor: ActionConditionedExecutor, policy: Policy, obs, key: Tensor) -> None:
    n_past = -policy.window.action_offset
    require(n_past > 0, "the window must reach back to the executed actions: action_offset < 0")
    executed = torch.randn(len(key), n_past, policy.action_dim, generator=_rng(1))
    mask, noise = torch.ones(executed.shape[:2], dtype=torch.bool), policy.noise(key, torch.zeros_like(key))
    plan = executor.plan(policy, obs, executed, mask, noise)
    require(plan.shape == (len(key), policy.window.horizon, policy.action_dim), "a plan must be (B, H, A)")
    require_equal(plan[:, :n_past], executed, "the first steps of a plan are the executed actions", 1e-4)
    other = executor.plan(policy, obs, executed + 1, mask, noise)
    require(not torch.allclose(other[:, n_past:], plan[:, n_past:]), "a plan must depend on the executed actions")
    first = executor.plan(policy, obs, executed, ~mask, noise)
    require_equal(executor.plan(policy, obs, executed + 1, ~mask, noise)[:, n_past:], first[:, n_past:],
                  "actions before the start of an episode must not matter")
    action, _ = executor.act(policy, obs, executor.start(policy, obs, key))
    require_equal(action, first[:, n_past], "the first action of an episode must be the first planned one", 1e-4)


def _require_unchanged(now: Tensor, before: Tensor) -> Tensor:
    require_equal(now, before, "act must not change a state in place")
    return now


def _structure(tree) -> object:
    if isinstance(tree, Mapping):
        return {k: _structure(v) for k, v in tree.items()}
    return tuple(tree.shape), tree.dtype


def check_speaker(speaker: Speaker, observations: Sequence[Mapping[str, Tensor]]) -> None:
    """Checks the contract of a speaker whose words depend on what it sees alone.

    It says one text to each row, rows do not depend on each other, no state is changed in place, and a restarted row
    continues as a new one.

    Args:
        speaker: The speaker.
        observations: What an environment shows at two or more steps, by column, (B, ...) each with B of 2 or more.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    rows = len(next(iter(observations[0].values())))
    key = keys(0, range(rows))

    def speak(which: Sequence[int], state) -> list[tuple[str, ...]]:
        said = []
        for obs in observations:
            before = tree_map(Tensor.clone, state)
            seen = take(obs, list(which))
            words, upcoming = speaker.speak(seen, state)
            require(not isinstance(words, str) and len(words) == len(which) and all(isinstance(w, str) for w in words),
                    f"it must say one text to each of {len(which)} rows, and said {words!r}")
            tree_map(lambda now, was: require_equal(now, was, "no state may be changed in place"), state, before)
            require(_structure(upcoming) == _structure(state), "the state must keep its structure")
            said.append(tuple(words))
            state = upcoming
        return said

    together = speak(range(rows), speaker.start(observations[0], key))
    for row in range(rows):
        alone = speak([row], speaker.start(take(observations[0], [row]), key[[row]]))
        require(alone == [(words[row],) for words in together], "what it says to a row must not depend on other rows")
    _, state = speaker.speak(observations[0], speaker.start(observations[-1], key))
    again = put(state, [1], speaker.start(take(observations[0], [1]), key[[1]]))
    require([words[1] for words in speak(range(rows), again)] == [words[1] for words in together],
            "a restarted row must continue as a new one")


# -- environments ---------------------------------------------------------------------------------------------------


def check_format(to: str, data: Dataset, folder: Path, **options) -> None:
    """Checks the contract of a format that is written.

    Everything is read again with the side file, except for what the format declares as lost. Without the side file,
    columns are read again as the format's capability declares. Writing does not change the data.

    Args:
        to: Name of the format.
        data: The episodes to write.
        folder: An existing folder for the files.
        options: Options of the writer.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    from .data.formats import _format_module as module
    from .data.formats import conversion_losses, sidecar, write_dataset

    said, before = conversion_losses(data, to, **options), data.fingerprint()
    places = module(to).capability(data, **options).columns
    path = folder / f"written-{to}"
    write_dataset(data, path, to, **options)
    require(data.fingerprint() == before, f"{to}: the data that were written are as they were")
    lost = {loss.subject for loss in said if not loss.in_sidecar}
    again = open_dataset(path)
    features = again.features()
    require(len(again) == len(data) and list(features) == list(data.features()),
            f"{to}: has {list(features)}, {len(again)} episodes")
    for e, (one, other) in enumerate(zip(data, again, strict=True)):
        for name, f in data.features().items():
            if name not in lost:
                require(features[name] == f, f"{to}: {name} must be {f}, and is {features[name]}")
                _same_column(one.steps[name], other.steps[name], f"{to}: {name} of episode {e}")
        require(_metadata_as_json(one.metadata) == _metadata_as_json(other.metadata),
                f"{to}: the metadata of episode {e}")
    require(again.fps == data.fps, f"{to}: fps must be {data.fps}, and is {again.fps}")
    beside = sidecar.sidecar_path(path)
    if not beside.exists():
        return
    beside.unlink()
    alone = open_dataset(path)
    for name, place in places.items():
        for e, (one, other) in enumerate(zip(data, alone, strict=True)):
            found, f = np.asarray(other.steps[place.name]), data.features()[name]
            rows = len(one) + 1 if place.repeats_last_row else len(one.steps[name]) if place.has_last_row else len(one)
            require((found.dtype.kind in "UO" if f.kind == "string" else found.dtype.name == place.dtype)
                    and found.shape == (rows, *place.shape),
                    f"{to}: {name} of episode {e} must be {place} without the side file, and is {found.dtype} "
                    f"{found.shape}")
            if place.is_exact:
                wanted = np.asarray(one.steps[name])
                wanted = np.concatenate([wanted, wanted[-1:]])[:rows].reshape(found.shape)
                _same_column(wanted if f.kind == "string" else wanted.astype(place.dtype), found,
                             f"{to}: {name} of episode {e}, without the side file")


def _same_column(one, other, what):
    one, other = np.asarray(one), np.asarray(other)
    same = one.shape == other.shape and (one.tolist() == other.tolist() if one.dtype.kind in "UO" else
                                         one.dtype == other.dtype and one.tobytes() == other.tobytes())
    require(same, f"{what} is the same, bit by bit")


def _metadata_as_json(meta):
    return json.dumps(dict(meta), sort_keys=True, default=lambda v: v.tolist())


def check_env(build: Callable[[int], Env], episodes: int = 4, seed: int = 0) -> None:
    """Checks the contract of an environment.

    Columns must be as `features` declares. An episode must depend on its key alone, and not on the number of other
    rows. One row must be able to restart alone. Episodes must end. Values that were returned must never change
    afterwards. Further interfaces (expert, restore, frame, map) must keep their contracts.

    Args:
        build: `build(rows)` makes that many copies of the environment.
        episodes: Number of episodes.
        seed: Seed of the episodes.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    env = build(3)
    try:
        obs = _env_shows(env)
        _env_starts_rows_alone(env, obs)
        _env_has_its_capabilities(env)
    finally:
        env.close()
    runs = []
    for rows in (1, 3, 2 * episodes):
        env = build(rows)
        try:
            runs.append(rollout(_random_actor(env), env, episodes, seed))
            if rows == 3 and isinstance(env, Restorable):
                _env_restores(env, runs[-1])
        finally:
            env.close()
    for n, run in enumerate(runs[1:]):
        for one, other in zip(runs[0], run, strict=True):
            for k in one.steps:
                require(
                    np.array_equal(one.steps[k], other.steps[k]),
                    f"episode {one.metadata['number']} differs in {k!r} "
                    f"with {(3, 2 * episodes)[n]} rows: an episode must depend on its key alone",
                )
            require(one.metadata == other.metadata, "metadata of an episode must depend on its key alone")
    require(
        len({episode.fingerprint() for episode in map(_without_metadata, runs[0])}) > 1,
        "other keys must give other episodes",
    )


def check_robot(build: Callable[[], Robot], tolerance: float = 1.0) -> None:
    """Checks what a robot promises. It is moved by no more than `tolerance`.

    Args:
        build: Makes the robot, not connected. It is called once.
        tolerance: Largest distance between two measurements of a robot that holds, in units of its action.
    """
    robot = build()
    action, shown = robot.schema["action"], {n: f for n, f in robot.schema.items() if n != "action"}
    assert action.kind == "vector" and len(action.shape) == 1, "the action is not a vector"
    assert all(role(name) == "observation" for name in shown), f"not all columns are observations: {list(shown)}"
    for connection in range(2):  # it can be connected again
        robot.connect()
        obs = robot.observe()
        found = {n: (v.dtype.name, v.shape) for n, v in obs.items()}
        declared = {n: (f.dtype, f.shape) for n, f in shown.items()}
        assert found == declared, f"it shows {found}, but its schema says {declared}"
        at = robot.position(obs)
        assert at.shape == action.shape and np.isfinite(at).all(), f"its position is {at}"
        sent = robot.send(at)
        assert sent.shape == action.shape and sent.dtype == np.float32, f"send returned {sent.dtype} {sent.shape}"
        held = robot.stop()
        assert np.abs(held - at).max() <= tolerance, f"it holds {held}, but it was at {at}"
        still = robot.position(robot.observe())
        assert np.abs(still - held).max() <= tolerance, f"it moved from {held} to {still} after a stop"
        robot.disconnect()
        robot.disconnect()  # nothing to do
        for name, call in (("observe", robot.observe), ("send", lambda at=at: robot.send(at)), ("stop", robot.stop)):
            try:
                call()
            except RobotError:
                continue
            raise AssertionError(f"{name} raises no RobotError after disconnect (connection {connection})")


def check_shift(build: Callable[[int], Env], shift: Shift, episodes: int = 3, seed: int = 0) -> None:
    """Checks the contract of a shift.

    At severity 0, environment and actor give the same episodes as without the shift, bit for bit. At its first and last
    level, the environment keeps the contract of environments, and an episode depends on its key alone.

    Args:
        build: `build(rows)` makes that many copies of the environment without the shift.
        shift: The shift.
        episodes: Number of episodes.
        seed: Seed of the episodes.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    def run(rows, severity):
        env = build(rows)
        try:
            actor = _random_actor(env) if not isinstance(env, HasExpert) else env.expert()
            if severity is None:
                return rollout(actor, env, episodes, seed)
            return rollout(shift.actor(actor, severity), shift.world(env, severity), episodes, seed)
        finally:
            env.close()
    require(min(shift.levels) > 0 and list(shift.levels) == sorted(set(shift.levels)), "levels rise from above 0")
    _same_runs(run(2, None), run(2, 0), "severity 0 must be the environment itself")
    for level in (shift.levels[0], shift.levels[-1]):
        check_env(lambda rows, level=level: shift.world(build(rows), level), episodes, seed)
        _same_runs(run(1, level), run(episodes + 1, level),
                   f"severity {level} must not depend on the number of other rows")


def _same_runs(one, other, what):
    for a, b in zip(one, other, strict=True):
        require(a.metadata == b.metadata, f"{what}: its metadata are {dict(a.metadata)} and {dict(b.metadata)}")
        require(set(a.steps) == set(b.steps), f"{what}: its columns are {sorted(a.steps)} and {sorted(b.steps)}")
        for k in a.steps:
            require(a.steps[k].dtype == b.steps[k].dtype and a.steps[k].tobytes() == b.steps[k].tobytes(),
                    f"{what}, but {k!r} of episode {a.metadata['number']} differs")


def _random_actor(env) -> Actor:
    action = env.features["action"]
    return UniformRandomActor(env) if action.num_classes or "low" in env.metadata else NoisyActor(None, action.size)


def _without_metadata(episode):
    return Dataset([replace(episode, metadata={})])


def _env_shows(env):
    for fact in ("env", "version", "fps", "limit", "success"):
        require(fact in env.metadata, f"metadata must have {fact!r}, if only None")
    obs = env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
    require(set(obs) == set(env.features) - {"action"}, f"observations are {sorted(obs)}, features say otherwise")
    actor = _random_actor(env)
    action, _ = actor.act(obs, actor.start(obs, keys(0, range(env.rows))))
    before = {k: v.clone() for k, v in obs.items()}
    out = env.step(action)
    for name, seen in (*obs.items(), *out.obs.items()):
        f = env.features[name]
        require(
            seen.shape == (env.rows, *f.shape) and str(seen.dtype) == f"torch.{f.dtype}" and seen.device.type == "cpu",
            f"{name} is {tuple(seen.shape)} {seen.dtype}, its feature says {(env.rows, *f.shape)} {f.dtype}",
        )
    require(all(torch.equal(obs[k], before[k]) for k in obs), "a step must not change observations already given")
    for name, dtype in (("reward", torch.float32), ("terminated", torch.bool), ("truncated", torch.bool)):
        value = getattr(out, name)
        require(value.shape == (env.rows,) and value.dtype == dtype, f"{name} must be (rows,) {dtype}")
    require(
        ("success" in out.info) == (env.metadata["success"] is not None), "metadata['success'] says whether info has it"
    )
    require(all(v.shape[:1] == (env.rows,) for v in out.info.values()), "infos have rows first")
    return obs


def _env_starts_rows_alone(env, obs):
    again = env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
    require(all(torch.equal(obs[k], again[k]) for k in obs), "the same keys must start the same")
    other = env.reset(torch.tensor([1]), keys(1, [99]))
    require(all(torch.equal(other[k][[0, 2]], obs[k][[0, 2]]) for k in obs), "other rows must not notice a reset")
    back = env.reset(torch.tensor([1]), keys(0, [1]))
    require(all(torch.equal(back[k], obs[k]) for k in obs), "a row's start must depend on its key alone")


def _env_has_its_capabilities(env):
    obs = env.reset(torch.arange(env.rows), keys(0, range(env.rows)))
    if isinstance(env, HasExpert):
        expert = env.expert()
        action, _ = expert.act(obs, expert.start(obs, keys(0, range(env.rows))))
        require(action.shape == (env.rows, *env.features["action"].shape) and bool(action.isfinite().all()),
                "an expert gives (rows, A) finite actions")
    if isinstance(env, Renderable):
        try:
            frame = env.frame(1)
        except UserError:  # this machine cannot draw, and the message says so
            frame = np.zeros((1, 1, 3), np.uint8)
        require(frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3, "a frame is (H, W, 3) uint8")
    if isinstance(env, PlanarMap):
        plane = env.map()
        column, i, j = plane["path"]
        at = obs[column][:, [i, j]]
        low, high = zip(plane["x"], plane["y"], strict=True)
        require(bool(((at >= torch.tensor(low)) & (at <= torch.tensor(high))).all()), "starts must lie on the map")


def _env_restores(env, run):
    """Checks that restoring a recorded step and repeating its action leads to the next recorded step.

    Randomness afterwards must depend on the key of the row alone.
    """
    first = {k: torch.from_numpy(np.repeat(v[:1], 2, 0)) for k, v in run[0].steps.items()}
    action = torch.from_numpy(np.repeat(run[0].steps["action"][:1], env.rows, 0))
    for rows in ([0, 2], [1, 2]):
        env.restore(torch.tensor(rows), first, torch.tensor([7, 7]))
        for _ in range(2):
            out = env.step(action)
            require(all(np.array_equal(v[rows[0]].numpy(), v[rows[1]].numpy()) for v in out.obs.values()),
                    "what follows a restored state must depend on its key alone")
    for episode in run[:2]:
        steps = episode.steps
        at = sorted({0, len(episode) // 2, len(episode) - 1})
        for t in at:
            row = torch.tensor([1])
            seen = env.restore(row, {k: torch.from_numpy(steps[k][t:t + 1]) for k in steps})
            out = env.step(torch.from_numpy(np.repeat(steps["action"][t:t + 1], env.rows, 0)))
            for k in seen:
                require(np.array_equal(seen[k][1].numpy(), steps[k][t]), f"{k!r} restored is not as recorded")
                require(
                    np.array_equal(out.obs[k][1].numpy(), steps[k][t + 1]), f"{k!r} of the next step is not as recorded"
                )
            for k, value in (("next.reward", out.reward), ("next.terminated", out.terminated)):
                require(value[1].item() == steps[k][t], f"{k!r} after restoring is not as recorded")


# -- relabelings ------------------------------------------------------------------------------------------------------


def check_relabel(relabel: Relabel, features: Schema, provided: Sequence[str] = ()) -> None:
    """Checks that every observation that a relabeling adds is known while acting.

    Args:
        relabel: The relabeling.
        features: The columns of episodes that it fits.
        provided: Columns that environments show themselves, such as "observation.goal".

    Raises:
        ContractViolation: If it adds an `observation.*` column that is not in `provided`, and it is no
            `RuntimeRelabel`.
    """
    added = [k for k in relabeled_features(features, [relabel]) if k.startswith("observation.") and k not in features]
    unknown = [] if isinstance(relabel, RuntimeRelabel) else [k for k in added if k not in provided]
    require(not unknown, f"{type(relabel).__name__} adds {', '.join(unknown)}, which no environment shows: make it a "
            "RuntimeRelabel, so that a policy that reads it can act")


def check_runtime_transform(relabel: RuntimeRelabel, data: Dataset) -> None:
    """Checks that a relabeling and its runtime transform give the same columns.

    The transform sees the recorded observations, actions and rewards one by one. In the first observation it also finds
    the first value of the column, as an `ObservationWrapper` would give it. Its state must keep its structure, and rows
    must not depend on each other.

    Args:
        relabel: The relabeling.
        data: Two or more episodes of different columns, without the added ones. Lengths may differ.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    together = _runtime_columns(relabel, list(data))
    for episode, columns in zip(data, together, strict=True):
        relabeled = relabel(episode)
        added = [k for k, v in relabeled.steps.items() if role(k) == "observation"
                 and (k not in episode.steps or v is not episode.steps[k])]
        for name in added:
            require(name in columns, f"the runtime transform does not give {name!r}")
            want = np.asarray(relabeled.steps[name])
            have = columns[name][: len(want)]
            require(have.shape == want.shape and have.dtype.kind == want.dtype.kind,
                    f"{name!r} is {have.dtype} {have.shape[1:]} while acting, but {want.dtype} {want.shape[1:]} in "
                    "training")
            near = np.allclose(have, want, rtol=1e-4, atol=1e-4) if want.dtype.kind == "f" else np.array_equal(
                have, want)
            require(near, f"{name!r} must have the same values while acting as in training")
    for episode, columns in zip(data, together, strict=True):
        alone = _runtime_columns(relabel, [episode])[0]
        for name, column in columns.items():
            require(np.array_equal(column[: len(alone[name])], alone[name]),
                    f"{name!r} must not depend on the other rows")


def _runtime_columns(relabel, episodes) -> list[dict[str, np.ndarray]]:
    """What the runtime transform adds along episodes that run side by side, (T + 1 rows each)."""
    transform, rows = relabel.runtime_transform(), torch.arange(len(episodes))
    actions = [np.asarray(e.steps["action"]).reshape(len(e.steps["action"]), -1) for e in episodes]
    rewards = [np.asarray(e.steps["next.reward"], np.float32).reshape(-1) for e in episodes]

    def at(columns, t):
        return torch.from_numpy(np.stack([c[min(t, len(c) - 1)] for c in columns]))
    observed = [k for k in episodes[0].steps if role(k) == "observation"]
    seen = {k: [np.asarray(e.steps[k]) for e in episodes] for k in observed}
    firsts = [{k: np.asarray(v[0]) for k, v in relabel(e).steps.items()
               if role(k) == "observation" and k not in observed} for e in episodes]
    given = {k: torch.from_numpy(np.stack([first[k] for first in firsts])) for k in firsts[0]}
    lengths = [len(e) for e in episodes]
    state, found = None, []
    for t in range(max(lengths) + 1):
        obs = {**{k: at(v, t) for k, v in seen.items()}, **given}
        last = LastStep(torch.full((len(rows),), t > 0), at(actions, max(t - 1, 0)) * (t > 0),
                        at(rewards, max(t - 1, 0)) * (t > 0))
        if t == 0:
            state = transform.start(obs, keys(0, range(len(rows))))
        added, after = transform.step(obs, last, state)
        require(_structure(after) == _structure(state), "the state must keep its names, shapes and dtypes")
        state = after
        found.append({**given, **added})
    return [{k: np.stack([step[k][row].numpy() for step in found])[: lengths[row] + 1] for k in found[0]}
            for row in rows.tolist()]


# -- action wrappers --------------------------------------------------------------------------------------------------


def check_wrapper(build: Callable[[int], Env], wrapper: ActionWrapper, episodes: int = 4, seed: int = 0) -> None:
    """Checks the contract of an action wrapper in an environment.

    - `WrappedEnv` keeps the contract of environments.
    - With a period of 1, `WrappedEnv` and `WrappedActor` give the same episodes, bit for bit.
    - With a longer period, they give the same outcomes: success, returns and lengths. The reward of an action is the
      discounted sum of its steps, which ends with the episode. Time limits are divided by the period.
    - `transform_episode` converts the episodes of `WrappedActor` into those of `WrappedEnv`, or raises `Unsupported`.
    - The state of the wrapper keeps its structure.

    A wrapper that ends actions early (`is_terminated`) is checked in one row.

    Args:
        build: `build(rows)` makes that many copies of the environment.
        wrapper: The wrapper. Policies in it should be `FixedBatch`, so that plans do not depend on the other rows.
        episodes: Number of episodes.
        seed: Seed of the episodes.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    env = build(2)
    try:
        above = WrappedEnv(env, wrapper)
        shown = above.reset(torch.arange(2), keys(seed, range(2)))
        _wrapper_state_keeps_its_structure(env, wrapper, shown, _random_actor(above))
    finally:
        env.close()
    rows = 1 if _wrapper_ends_actions(build, wrapper, seed) else 3
    if rows > 1:
        check_env(lambda n: WrappedEnv(build(n), wrapper), episodes, seed)
    env = build(rows)
    above = WrappedEnv(env, wrapper)
    try:
        if env.metadata.get("limit"):
            require(above.metadata["limit"] == -(-env.metadata["limit"] // wrapper.period),
                    "time limits must be divided by the period")
        actor = _ShownRecorder(_random_actor(above))
        learning = rollout(actor, above, episodes, seed)
        acting = rollout(WrappedActor(actor, wrapper), env, episodes, seed)
        discounted = rollout(actor, WrappedEnv(env, wrapper, 0.5), episodes, seed)
    finally:
        env.close()
    for one, other, low in zip(learning, acting, discounted, strict=True):
        _same_outcome(one, other, low, 0.5)
        _converts(wrapper, one, other)


class _ShownRecorder(Actor):
    """Records what an actor observes and does, and the number of its action."""

    def __init__(self, actor):
        self.actor = actor

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "count": torch.zeros_like(key)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        shown = {k: v.clone() for k, v in (*obs.items(), ("action", action), ("count", state["count"]))}
        return action, {"inner": inner, "count": state["count"] + 1,
                        "record": {f"shown.{k}": v for k, v in shown.items()}}


def _wrapper_ends_actions(build, wrapper, seed) -> bool:
    env = WrappedEnv(build(2), wrapper)
    try:
        rollout(_random_actor(env), env, 2, seed)
    except Unsupported:
        return True
    finally:
        env.close()
    return False


def _wrapper_state_keeps_its_structure(env, wrapper, shown, actor):
    rows, key = torch.arange(env.rows), keys(0, range(env.rows))
    obs = env.reset(rows, key)
    state = wrapper.start(obs, key)
    _, seen = wrapper.transform_obs(obs, state)
    action, _ = actor.act(shown, actor.start(shown, key))
    _, after = wrapper.transform_action(obs, action, seen)
    for new in (seen, after):
        require(_structure(new) == _structure(state), "the state of a wrapper must keep its names, shapes and dtypes")
    over = wrapper.is_terminated(after)
    require(over.shape == (env.rows,) and over.dtype == torch.bool, "is_terminated must be (B,) bool")


def _same_outcome(one: Episode, other: Episode, discounted: Episode, discount: float) -> None:
    """Checks that two episodes have the same outcome.

    Args:
        one: Episode of the wrapped environment.
        other: Episode of the wrapped actor.
        discounted: Episode of the wrapped environment, with this discount.
        discount: The discount per step.
    """
    count = other.steps["shown.count"]
    begins = np.flatnonzero(np.append(True, count[1:] != count[:-1]))  # the steps at which the actor was asked
    require(len(one) == len(begins), f"the actor acts {len(begins)} times in {len(other)} steps, but {len(one)} times "
                                     "in the wrapped environment")
    for name in (k for k in other.steps if k.startswith("shown.")):
        require(np.array_equal(other.steps[name][begins], one.steps[name]),
                f"{name.removeprefix('shown.')!r} of the wrapped actor must be that of the wrapped environment")
    reward, ends = other.steps["next.reward"], np.append(begins[1:], len(other))
    for episode, factor in ((one, 1.0), (discounted, discount)):
        total = [sum(factor**i * r for i, r in enumerate(reward[a:b])) for a, b in zip(begins, ends, strict=True)]
        require(np.allclose(episode.steps["next.reward"], total, rtol=1e-5, atol=1e-6),
                "the reward of an action must be the discounted sum over its steps, which ends with the episode")
    for name in ("next.terminated", "next.truncated", "next.success"):
        if name in other.steps:
            joined = np.logical_or.reduceat(other.steps[name], begins)
            require(np.array_equal(one.steps[name], joined), f"{name!r} must be true if it is at any step of an action")


def _converts(wrapper, one: Episode, other: Episode) -> None:
    recorded = other.replace({k: None for k in other.steps if k.startswith("shown.")})
    try:
        converted = wrapper.transform_episode(recorded)
    except Unsupported:
        return
    require(len(converted) == len(one), "a converted episode must have one step per action")
    for name in set(converted.steps) - {"next.reward"}:
        require(name in one.steps, f"a converted episode has the column {name!r}, and the wrapped environment has not")
        mine, theirs = (np.asarray(e.steps[name]) for e in (one, converted))
        require(mine.shape == theirs.shape, f"{name!r} has shape {theirs.shape} in a converted episode, not "
                                            f"{mine.shape}")
        near = np.allclose(mine, theirs, rtol=1e-3, atol=1e-4) if mine.dtype.kind == "f" else np.array_equal(
            mine, theirs)
        require(near, f"{name!r} of a converted episode must be that of the wrapped environment")


def _packages_in_files(folder: Path | str) -> tuple[str, ...]:
    return config.packages_in([json.loads(file.read_text()) for file in Path(folder).rglob("*.json")])


# -- scorers --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_scorer(scorer: Scorer, obs: Mapping[str, Tensor], plan: Tensor) -> None:
    """Checks the contract of a scorer.

    It gives one score for each plan, rows do not influence each other, nothing is random, and it is loaded again from
    its files.

    Args:
        scorer: The scorer, in evaluation mode.
        obs: Observation windows by column, (B, To, ...) with B of 2 or more.
        plan: Plans in world units, (B, H, A).

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    B = len(plan)
    require(set(scorer.inputs) <= set(obs), f"a scorer must read columns that are there; it reads {scorer.inputs}")
    read = {name: obs[name] for name in scorer.inputs}
    state = torch.random.get_rng_state()
    score = scorer(read, plan)
    require(score.shape == (B,), f"a score must be one number for each plan, (B,), and is {tuple(score.shape)}")
    require(bool(score.isfinite().all()), "scores must be finite")
    require_equal(scorer(read, plan), score, "the same plan must have the same score")
    require(torch.equal(torch.random.get_rng_state(), state), "a score must not be random")
    one = scorer({k: v[1:2] for k, v in read.items()}, plan[1:2])
    require_equal(one[0], score[1], "a row's score must not depend on the other rows", 1e-4)
    with tempfile.TemporaryDirectory() as folder:
        save_module(scorer, folder)
        again = load_module(folder, _packages_in_files(folder))
        require(type(again) is type(scorer), "what was saved must be loaded as the same class")
        require_equal(again(read, plan), score, "what was loaded must score alike")


def check_latent_encoder(encoder: LatentEncoder, data: Dataset) -> None:
    """Checks the contract of a latent encoder.

    It gives one latent for each step of the data, which has the shape and type of its feature. Nothing is random,
    windows do not influence each other, and it is loaded again from its files.

    Args:
        encoder: The encoder, in evaluation mode.
        data: Two or more episodes that it can read.

    Raises:
        ContractViolation: With the part of the contract that does not hold.
    """
    windows = encoder.windows(data)
    require(len(windows) == data.steps, f"there must be one window for each of the {data.steps} steps, and there are "
            f"{len(windows)}")
    batch, state = windows.gather(np.arange(data.steps)), torch.random.get_rng_state()
    with torch.no_grad():
        latents = encoder(batch)
        feature = encoder.latent
        require(latents.shape == (data.steps, *feature.shape) and str(latents.dtype) == f"torch.{feature.dtype}",
                f"latents must be {feature.dtype} {feature.shape}, and are {latents.dtype} {tuple(latents.shape[1:])}")
        require_equal(encoder(batch), latents, "the same window must have the same latent")
        require(torch.equal(torch.random.get_rng_state(), state), "a latent must not be random")
        require_equal(encoder(batch.select_rows(slice(1, 2)))[0], latents[1],
                      "a window's latent must not depend on the other windows", 1e-4)
        with tempfile.TemporaryDirectory() as folder:
            save_module(encoder, folder)
            again = load_module(folder, _packages_in_files(folder))
            if not isinstance(again, LatentEncoder) or type(again) is not type(encoder):
                raise ContractViolation("what was saved must be loaded as the same class")
            require_equal(again(again.windows(data).gather(np.arange(data.steps))), latents,
                          "what was loaded must give the same latents")


# -- learners ---------------------------------------------------------------------------------------------------------


def check_learner(config: LearnerConfig, policies: Sequence[PolicyConfig] = ()) -> None:
    """Checks the contract of a learner on several policies.

    - An update depends on the learner's state and the batch alone, and leaves the global random generators as they
      were.
    - The state is tensors and JSON. It is complete: a learner that is restored from it, into a policy that never saw
      the data, continues bit for bit.
    - The policy that acts is in evaluation mode or a copy: acting does not change the training.
    - Batches are functions of (seed, step), and the parts of several processes add up to the batch.

    That losses are not reduced is checked by `GradientLearner.minimize` in every update.

    Args:
        config: The learner's config, with a small `batch_size`. Columns that it names in `extra` get random numbers.
        policies: The policies to train. By default a regression with dropout, a flow with an augmentation, and nearest
            neighbors, which have no weights.

    Raises:
        ContractViolation: The message says which part of the contract does not hold.
    """
    window = Window(2, 3)
    for policy in policies or (
            PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=window, inputs=(STATE,)),
            PolicyConfig(Flow(n_steps=2), MLP(16, 1), window=window, inputs=(STATE,),
                         augmentations=(GaussianNoise(STATE, 0.1),)),
            PolicyConfig(Neighbors(), MLP(16, 1), window=window, inputs=(STATE,))):
        _check_learner(config, policy)


def _check_learner(config, policy_config):
    features = {**{k: Feature("float32", (3,)) for k in policy_config.inputs},
                **{k: Feature("float32", ()) for k in config.extra}, policy_config.target: Feature("float32", (2,))}
    data, name = random_dataset(features), f"with {type(policy_config.head).__name__}"

    def build(seed, statistics=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = Policy(policy_config, data.features())
            return config.build(policy.fit_statistics(data) if statistics else policy, 0, 10, data)

    straight, stopped = build(0), build(0)
    sampler, size = straight.batch_sampler(data), config.batch_size
    _check_batch_sampler(sampler, size)
    batches = [sampler.batch(size, step) for step in range(6)]
    require(len(straight.annotate(data)) == len(data), "annotate must return all episodes")

    before = torch.get_rng_state()
    metrics = [straight.update(batch) for batch in batches]
    require(torch.equal(torch.get_rng_state(), before), f"{name}, an update must leave the global generator as it was")
    require(all(np.isfinite(list(m.values())).all() for m in metrics), f"{name}, metrics must be finite")

    with torch.random.fork_rng(devices=[]):
        for batch in batches[:3]:
            torch.manual_seed(1)  # where the global generator stands must not matter
            stopped.update(batch)
    noise = torch.randn(size, *stopped.trained_policy.noise_shape, generator=_rng(0))
    acting = copy.deepcopy(stopped.trained_policy).eval()
    tensors, metadata = stopped.state()
    with tempfile.TemporaryDirectory() as folder:
        save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, Path(folder) / "state")
        tensors, metadata = load_file(Path(folder) / "state"), json.loads(json.dumps(metadata))
    restored = build(1, statistics=False)
    restored.restore(tensors, metadata)
    again = restored.state()[0]
    require(again.keys() == tensors.keys() and all(torch.equal(v.detach(), tensors[k]) for k, v in again.items()),
            f"{name}, restore must take over every tensor of the state")
    obs = stopped.policy.windows(data).batch(size, 0).obs  # a learner may sample other windows than those of its policy
    plans = [copy.deepcopy(p).eval().plan(obs, noise) for p in (acting, restored.trained_policy)]
    require_equal(plans[1], plans[0], f"{name}, a restored learner must act like the saved one")
    for learner in (stopped, restored):
        found = [learner.update(batch) for batch in batches[3:]]
        require(found == metrics[3:], f"{name}, a learner must continue bit for bit: its metrics differ after a "
                "restore, after acting or with the state of the global generator")
        for key, value in straight.state()[0].items():
            require(torch.equal(value, learner.state()[0][key]), f"{name}, {key} must be bit-equal after resuming")


def _check_batch_sampler(sampler, size):
    whole, same, other = (sampler.batch(size, step) for step in (3, 3, 4))
    require(torch.equal(whole.action, same.action), "a batch must be a function of seed and step")
    require(not torch.equal(whole.action, other.action), "batches of two steps must differ")
    parts = [sampler.batch(size, 3, rows=rows) for rows in (slice(0, size // 3), slice(size // 3, size))]
    require(torch.equal(torch.cat([p.action for p in parts]), whole.action),
            "the shares of several processes must make up the batch")
    for key, value in whole.extra.items():
        require(torch.equal(torch.cat([p.extra[key] for p in parts]), value),
                f"the shares of several processes must make up the batch, in column {key!r}")


# -- data collection --------------------------------------------------------------------------------------------------


def check_collection(method: Method, data: Dataset, build_env: Callable[[int], Env] | None = None,
                     person: Actor | None = None) -> None:
    """Checks the contract of data collection.

    - The method survives its file.
    - Every round is stored, with the columns that training reads. A run does not depend on how many environments run
      side by side.
    - A run that breaks off before or within the updates of any round resumes bit for bit: checkpoints, stored episodes
      and metrics.
    - Rounds that are later than the checkpoint are dropped and collected again. Those with a person are kept, and the
      run is refused.

    Args:
        method: A method with a `collection` of two or more rounds. It is trained several times, so it should be small.
        data: Its demonstrations.
        build_env: `build_env(rows)` makes that many copies of the environment to collect in. None for none.
        person: The actor through which a person takes part. It must act the same each time.

    Raises:
        ContractViolation: The message says which part of the contract does not hold.
    """
    require(method.collection is not None, "the method has no collection")
    text = json.dumps(config.dump(method))
    require(config.load(json.loads(text), ("understudy", *packages_of(method))) == method,
            "a collection must survive its file")
    with tempfile.TemporaryDirectory() as folder:
        def run(name: str, rows: int, crash: _Crash | None = None) -> Path:
            env = None if build_env is None else build_env(rows)
            try:
                train(method, data, Path(folder) / name, device="cpu", val_fraction=0.0, progress=False, env=env,
                      person=person, callbacks=() if crash is None else (crash,))
                require(crash is None, "the summary of each round must be logged, and updates must follow")
            except _Crashed:
                pass
            finally:
                if env is not None:
                    env.close()
            return Path(folder) / name

        whole = run("whole", 2)
        wanted, rounds = _run_contents(whole), sorted((whole / "collection").glob("[0-9]*"))
        require(len(rounds) >= 2, f"the collection must have two rounds or more, and has {len(rounds)}")
        policy = Policy.load(whole, packages_of(method))
        for path in rounds:
            policy.windows(open_dataset(path / "episodes.npz"), extra=method.learner.extra)
        require(_run_contents(run("rows", 3)) == wanted,
                "a run must not depend on how many environments run side by side")
        for number in range(len(rounds)):
            for in_update in (False, True):
                run("stopped", 2, _Crash(number, in_update))
        require(_run_contents(run("stopped", 2)) == wanted, "a run that broke off must resume bit for bit")
        early = run("early", 2, _Crash(0, False))
        for path in rounds[1:]:  # as if later checkpoints had been lost; what these rounds hold is wrong
            shutil.copytree(rounds[0], early / "collection" / path.name)
        try:
            require(_run_contents(run("early", 2)) == wanted,
                    "rounds later than the checkpoint must be collected again")
        except UserError:
            kept = sorted(p.name for p in (early / "collection").glob("[0-9]*"))
            require(person is not None and kept == [p.name for p in rounds],
                    "only rounds with a person may be kept when they are later than the checkpoint")


class _Crashed(Exception):
    pass


class _Crash:
    """Interrupts a training at the summary of a round, or at the first update after it."""

    def __init__(self, number: int, in_update: bool):
        self.number, self.in_update, self.is_due = number, in_update, False

    def __call__(self, step, learner, seen):
        if self.is_due or seen.get("round") == self.number and not self.in_update:
            raise _Crashed
        self.is_due = seen.get("round") == self.number


def _run_contents(run: Path) -> dict[str, object]:
    """The contents of a run, except for times."""
    def without_times(document):
        return {k: v for k, v in document.items() if k != "seconds"}

    found: dict[str, object] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            found[name] = {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        elif path.name == "episodes.npz":
            found[name] = open_dataset(path).fingerprint()
        elif path.name == "metrics.jsonl":
            found[name] = list(map(without_times, Run(path.parent).read_metrics()))
        elif path.suffix in (".json", ".md"):
            document = json.loads(path.read_text()) if path.suffix == ".json" else path.read_text()
            found[name] = without_times(document) if path.name == "state.json" else document
    return found
