"""Execution schemes: their contract, their names, and self-guidance."""

import json
from dataclasses import replace

import pytest
import torch
from fixtures.schemes import KEY, SMALL, flow

from understudy import config
from understudy.checkpoint import FromStage
from understudy.core import Feature, Unsupported, UserError
from understudy.data.window import Window
from understudy.execute.adaptive import (
    AdaptiveChunking,
    AdaptiveHorizon,
    ChunkBlending,
    DistanceAgreement,
)
from understudy.execute.bidirectional import BidirectionalDecoding
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.filters import FilteredExecutor, JerkLimit, LowPassFilter
from understudy.execute.latency import DelayedPlan, MeasuredDelay
from understudy.execute.past_verification import PastVerification
from understudy.execute.planners import FixedBatch
from understudy.execute.schemes import EXECUTION_SCHEMES
from understudy.execute.self_guidance import SelfGuided
from understudy.execute.temporal_ensemble import AdaptiveEnsemble, TemporalEnsemble
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.cvae import CVAE
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.regression import Regression
from understudy.heads.one_step.mip import MIP
from understudy.learn.execution import BUILDERS, with_execution_scheme
from understudy.learn.method import Method, build_planner, resolve_references
from understudy.methods import find_method
from understudy.policy import PolicyConfig
from understudy.testing import check_executor, random_batch

# -- contracts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor, config, inference", [
    (RecedingHorizon(2), flow(), (BidirectionalDecoding(n=4, n_kept=2),)),
    (RecedingHorizon(2, skip=1), flow(offset=-1), (BidirectionalDecoding(weak="policy", n=4, n_kept=2),)),
    (RealTimeChunking(3, 2), flow(), (BidirectionalDecoding(n=4, n_kept=3),)),
    (DelayedPlan(RecedingHorizon(2), 2), flow(), (BidirectionalDecoding(n=4, n_kept=2),)),
    (AdaptiveHorizon(6, n_samples=3, threshold=1.0), flow(), ()),
    (DelayedPlan(AdaptiveHorizon(5, 1, n_samples=3, threshold=1.0), 2), flow(offset=-1), ()),
    (AdaptiveChunking(1), flow(), ()),
    (AdaptiveChunking(2, 1, DistanceAgreement(1.0)), flow(offset=-1), ()),
    (DelayedPlan(AdaptiveChunking(1), 3), flow(), ()),
    (AdaptiveChunking(1), flow(), (SelfGuided(scale=0.5),)),
    (RecedingHorizon(2), flow(), (SelfGuided(scale=0.5, lag=2),)),
    (ChunkBlending(2, weight=0.3), flow(), ()),
    (FilteredExecutor(RecedingHorizon(3)), flow(), ()),
    (FilteredExecutor(TemporalEnsemble(), JerkLimit(0.5, 3)), flow(), ()),
    (FilteredExecutor(DelayedPlan(ChunkBlending(1), 2), LowPassFilter(0.8)), flow(), ()),
    (RealTimeChunking(3, 2, schedule="linear"), flow(), ()),
    (TemporalEnsemble(0.1, skip=1, delay=2), flow(horizon=6, offset=-1), ()),
    (AdaptiveEnsemble(skip=1, delay=1), flow(horizon=6, offset=-1), ()),
    (MeasuredDelay(RecedingHorizon(2), period=1e9), flow(), ()),  # all plans are in time
    (PastVerification(2, 3, n_samples=3), flow(offset=-3), ()),
    (DelayedPlan(PastVerification(2, 3, n_samples=3), 2), flow(offset=-3), ()),
], ids=lambda value: "" if isinstance(value, PolicyConfig) else str(value))
def test_executors_keep_their_contract(executor, config, inference):
    check_executor(executor, config, inference=inference)


# -- self-guidance ----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("lag", [1, 2])
def test_self_guidance_extrapolates_from_an_earlier_observation(lag):
    """One Euler step from the same noise: the guided chunk is linear in the two plain ones."""
    policy, _ = random_batch(flow(n_steps=1))
    guided, obs = SelfGuided(policy, 0.7, lag), {k: torch.randn(3, 2 + lag, 3) for k in policy.inputs}
    assert guided.window == Window(2 + lag, 8)
    noise = guided.noise(KEY, torch.zeros_like(KEY))
    now, past = (policy.plan({k: v[:, part] for k, v in obs.items()}, noise)
                 for part in (slice(lag, None), slice(0, 2)))
    plan = guided.plan(obs, noise)
    assert torch.allclose(plan, now + 0.7 * (now - past), atol=1e-4) and not torch.allclose(plan, now, atol=1e-3)
    assert torch.allclose(FixedBatch(guided, 2).plan(obs, noise), plan, atol=1e-4)
    still = {k: v[:, -1:].expand(-1, 2 + lag, -1) for k, v in obs.items()}  # as at the start of an episode
    assert torch.allclose(guided.plan(still, noise), policy.plan({k: v[:, :2] for k, v in still.items()}, noise),
                          atol=1e-5)
    with pytest.raises(UserError, match="at least 1"):
        SelfGuided(policy, lag=0)


# -- schemes by name --------------------------------------------------------------------------------------------------


def test_every_scheme_has_a_builder():
    assert list(BUILDERS) == list(EXECUTION_SCHEMES)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("name", EXECUTION_SCHEMES)
def test_schemes_execute_the_policy_of_any_method(name, skip):
    method = Method(flow(horizon=6, offset=-skip), RecedingHorizon(3, skip))
    if name == "past-verification" and not skip:
        with pytest.raises(UserError, match="there must be a past action"):
            with_execution_scheme(method, name)
        return
    changed_method = with_execution_scheme(method, name)
    assert config.load(json.loads(json.dumps(config.dump(changed_method)))) == changed_method  # method.json
    assert changed_method.policy == method.policy and getattr(changed_method.executor, "n_action_steps", 3) in (1, 3)
    check_executor(changed_method.executor, changed_method.policy, steps=8, inference=changed_method.inference)


def planner_of(name, policy, skip=1):
    """The executor and the planner of a scheme for a policy."""
    method = with_execution_scheme(Method(policy.config, RecedingHorizon(3, skip)), name)
    return method.executor, build_planner(method, {"policy": policy})


@pytest.mark.parametrize("head", [MIP(), Regression(), Gaussian(), CVAE(4)], ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("name", ["adaptive-horizon", "bidirectional-decoding", "past-verification"])
def test_schemes_that_compare_samples_refuse_deterministic_policies(name, head):
    config = PolicyConfig(head, trunk=SMALL, window=Window(2, 8, action_offset=-1))
    with pytest.raises(Unsupported, match="plans without randomness") as refusal:
        executor, planner = planner_of(name, random_batch(config)[0])
        executor.check_planner(planner)
    assert "RecedingHorizon" in refusal.value.hint
    if hasattr(head, "temperature"):
        executor, planner = planner_of(name, random_batch(replace(config, head=replace(head, temperature=1.0)))[0])
        executor.check_planner(planner)


CLASSES = Feature("int64", (2,), "discrete", num_classes=(3, 4))
REFUSES_CLASSES = {name for name, scheme in EXECUTION_SCHEMES.items() if "continuous actions" in scheme.needs}


@pytest.mark.parametrize("name", [n for n, s in EXECUTION_SCHEMES.items() if "step by step" not in s.needs])
def test_schemes_that_compute_with_actions_refuse_classes(name):
    """The others execute classes that the policy planned."""
    policy, batch = random_batch(PolicyConfig(Categorical(1.0), trunk=SMALL, window=Window(2, 8, action_offset=-1)),
                                 target=CLASSES)
    key = torch.arange(len(batch))
    if name in REFUSES_CLASSES:
        with pytest.raises(Unsupported, match="numbers of classes") as refusal:
            executor, planner = planner_of(name, policy)
            executor.start(planner, batch.obs, key)
        assert "receding-horizon" in refusal.value.hint
        return
    executor, planner = planner_of(name, policy)
    state = executor.start(planner, batch.obs, key)
    for _ in range(6):
        action, state = executor.act(planner, batch.obs, state)
        assert torch.equal(action, action.round()) and (action < torch.tensor([3, 4])).all()


def test_which_schemes_refuse_classes():
    assert {
        "temporal-ensemble", "adaptive-ensemble", "chunk-blending", "low-pass", "jerk-limit", "adaptive-horizon",
        "bidirectional-decoding", "past-verification"} == REFUSES_CLASSES


def test_schemes_that_do_not_exist_or_do_not_fit_are_refused():
    method = Method(flow())
    with pytest.raises(UserError, match="did you mean 'real-time-chunking'"):
        with_execution_scheme(method, "realtime-chunking")
    with pytest.raises(Unsupported, match="trained for StreamingFlowExecutor"):
        with_execution_scheme(find_method("streaming-flow-policy"), "low-pass")
    filtered = with_execution_scheme(replace(method, executor=RecedingHorizon(5)), "low-pass")
    assert with_execution_scheme(filtered, "chunk_blending").executor == ChunkBlending(5)
    assert with_execution_scheme(replace(method, executor=TemporalEnsemble()), "receding-horizon").executor == (
        RecedingHorizon(4))  # half a chunk


def test_the_weak_policy_is_a_stage_or_a_module():
    weak = random_batch(flow(), seed=3)[0]
    policy = random_batch(flow())[0]
    modules = {"policy": policy, "early": weak}
    assert BidirectionalDecoding(weak="early").over(policy, modules).weak is weak
    method = find_method("bid-flow-policy")
    assert method.stages[0].method.learner.steps == method.learner.steps // 3
    resolved = resolve_references(method, {FromStage("weak"): weak})
    built = build_planner(resolved, {"policy": policy})
    assert isinstance(built, BidirectionalDecoding) and built.weak is weak and (built.n, built.n_kept) == (15, 5)
    with pytest.raises(UserError, match="no module 'late'"):
        BidirectionalDecoding(weak="late").over(policy, modules)
