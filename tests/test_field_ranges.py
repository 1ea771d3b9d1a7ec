"""Counts and rates of parts are checked where they are written: `core.part`."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
from dataclasses import replace
from typing import Annotated

import numpy as np
import pytest
from fixtures.parts import EXAMPLES

from understudy import config
from understudy.core import Above, AtLeast, Below, ConfigError, UserError, part
from understudy.data.augment import ConditionDropout
from understudy.data.column_changes import Progress, ReturnToGo
from understudy.data.text_columns import TaskText, ThoughtText
from understudy.data.window import Goal, Window
from understudy.execute.adaptive import ChunkBlending, CosineAgreement
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.latency import DelayedAction, DelayedPlan
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.bins import Bins
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.one_step.mean_flow import MeanFlow
from understudy.heads.one_step.mip import MIP
from understudy.learn.critic import CriticConfig
from understudy.learn.objectives.class_prediction import ClassPrediction
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.iw_sft import ReturnStrata
from understudy.nets.ema import ConstantDecay
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.policy import ClassifierFreeGuidance

PACKAGES = ("heads", "nets", "execute", "learn", "methods")
COUNTS = ("int", "int | None", "tuple[int, ...]", "tuple[int, int] | None")
NO_CONFIGS = {  # values that others make, not options of a user
    "PlanRequest", "PathCost", "Processes", "SkillPosteriorSpec", "StateActionEmbeddingSpec", "TaskSimilaritySpec",
    "Curve", "TrainingCurves", "TransformedActor", "RandomClassActor", "RepresentationSpec", "Bend",
    "ConstantComponent", "EpisodeSplit",
    # checked in what is derived from them
    "SuccessWeights", "GoalConditioned", "GoalValues", "ImplicitValues", "ScoreMaximizing", "CriticLearningConfig",
    "ActorCritic",
}
BUILT = {  # need a planner or an actor: the configs that build them are checked here
    "FixedBatch", "ScorerGuidance", "NoisyActor", "ClassPrediction", "DelayedPlan", "DelayedAction",
    "RetryActor",
}
OTHERS = {  # need other parts, or are written by code only
    "PastObservationGuidance", "ComposedConditions", "ComposedPolicies", "MeasuredDelay", "DroppedObservation",
    "Retrieve",
}
MAY_BE_ZERO = {  # no steps, no layers, no change: something that a user may want
    "skip", "delay", "max_delay", "state_size", "encoder_depth", "n_frequencies", "steps", "warmup_steps",
    "n_extra_steps", "fit_steps", "start", "layer", "head", "critic_warmup_updates",
}
ALSO_ZERO = {("MLP", "depth"), ("Transformer", "depth"), ("PastTargetWeights", "n_steps"), ("TokenEncoder", "crop"),
             ("ConcatEncoder", "crop"), ("AlignedReplay", "max_steps"), ("RepresentationLearning", "lookahead"),
             ("OneDP", "n_score_updates"), ("PooledHistoryEncoder", "depth"),
             ("PooledHistoryEncoder", "pool_after"), ("ComponentTokenEncoder", "depth"),
             ("TransformerEncoder", "depth"), ("TracePairs", "n_ends"), ("VAE", "latent"), ("RIG", "n_step"),
             ("Transport", "max_frequency"), ("MultimodalPromptEncoder", "depth"), ("TrajectoryPerturbation", "offset"),
             *((learner, "n_step") for learner in ("TD3", "SAC", "NoiseAliasing", "ROT", "ADS", "VIRL", "BCQ", "BEAR",
                                                   "CQL", "CalQL", "EDAC", "PLAS", "PRDC", "SPOT", "TACR")),
             ("TrajectoryPerturbation", "heading"), ("TrajectoryPerturbation", "past"),
             ("ClassBalancedWeights", "remainder"), ("SARM", "max_rewind")}
NEVER_ZERO = {("PastVerification", "skip"), ("TrajectoryPerturbation", "steps")}


def parts(kinds=COUNTS):
    """All frozen dataclasses of the packages that have counts, or fields of other types, and these fields."""
    for package in PACKAGES:
        root = importlib.import_module(f"understudy.{package}")
        for _, name, _ in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            for cls in vars(importlib.import_module(name)).values():
                if not (inspect.isclass(cls) and cls.__module__ == name and dataclasses.is_dataclass(cls)
                        and cls.__dataclass_params__.frozen) or cls.__name__.startswith("_"):
                    continue
                for f in dataclasses.fields(cls):
                    if written_type(f) in kinds and f.name not in ("seed", "components"):
                        yield cls, f


def written_type(field):
    """The type without its limits."""
    return re.sub(r"^Annotated\[(.*?)(, \w+\([^()]*\))+\]$", r"\1", field.type)


NO_COUNTS = {("GridSearch", "wall"), ("GridSearch", "goal"), ("PseudoLabel", "offset")}  # classes of cells, and a shift
CASES = [(part, f) for part, f in parts()
         if part.__name__ not in NO_CONFIGS | BUILT and (part.__name__, f.name) not in NO_COUNTS]
FLOATS = [(part, f) for part, f in parts(("float", "float | None", "tuple[float, ...]", "tuple[float, float]"))
          if part.__name__ not in NO_CONFIGS | BUILT | OTHERS]


@pytest.mark.parametrize("part, field", CASES, ids=lambda x: getattr(x, "__name__", None) or x.name)
def test_counts_are_checked(part, field):
    example = EXAMPLES.get(part.__name__) or part()
    name, several = field.name, written_type(field).startswith("tuple")
    field_place = part.__name__, name
    zero = (name in MAY_BE_ZERO or field_place in ALSO_ZERO) and field_place not in NEVER_ZERO
    for bad in (-3,) if zero else (-3, 0):
        with pytest.raises(UserError) as refusal:
            replace(example, **{name: (bad, 1) if several else bad})
        assert refusal.value.where.startswith(tuple(c.__name__ for c in part.__mro__)) and refusal.value.hint
    if zero:
        replace(example, **{name: (0,) if several else 0})


def test_the_discovery_finds_the_parts():
    part_names = {part.__name__ for part, _ in CASES}
    assert len(CASES) > 120
    assert {"Flow", "MeanFlow", "Neighbors", "RecedingHorizon", "TemporalEnsemble", "Transformer", "BehaviorCloning",
            "StateActionVAE", "GridEncoder", "CriticConfig"} <= part_names
    assert not (BUILT | NO_CONFIGS) & part_names


@pytest.mark.parametrize("part, field", CASES, ids=lambda x: getattr(x, "__name__", None) or x.name)
def test_counts_are_whole_numbers(part, field):
    example = EXAMPLES.get(part.__name__) or part()
    for bad in (2.5, 3.0, True, math.nan):
        with pytest.raises(UserError, match=f"{field.name} is .*, but must be a whole number|is not an integer"):
            replace(example, **{field.name: (bad, 1) if written_type(field).startswith("tuple") else bad})


@pytest.mark.parametrize("part, field", FLOATS, ids=lambda x: getattr(x, "__name__", None) or x.name)
def test_nan_is_refused(part, field):
    example = EXAMPLES.get(part.__name__) or part()
    replace(example, **{field.name: getattr(example, field.name)})
    with pytest.raises(UserError, match="nan"):
        replace(example, **{field.name: (math.nan, 1.0) if written_type(field).startswith("tuple") else math.nan})


@pytest.mark.parametrize("example, name, bad", [
    (Flow(), "max_guidance_weight", -1.0), (Gaussian(), "temperature", -0.1), (Gaussian(), "std", 0.0),
    (Gaussian(), "temperature", math.nan), (MIP(), "second_time", 1.0), (MeanFlow(), "velocity_fraction", 1.5),
    (MLP(), "dropout", 1.0), (Transformer(), "feed_forward_ratio", 0.0), (ConstantDecay(), "decay", 1.1),
    (ChunkBlending(), "weight", 2.0), (ConditionDropout(("a",)), "p", -0.1), (Window(), "horizon", 0),
    (Window(), "n_obs_steps", -1), (Bins(), "n_bins", 0), (TaskText(), "max_bytes", 0),
    (ReturnToGo(), "discount", -1.0),
    (ThoughtText(), "max_bytes", -1), (Progress(), "length", 0), (ReturnStrata(), "fractions", (-1.0,)),
])
def test_rates_are_checked(example, name, bad):
    with pytest.raises(ConfigError) as refusal:
        replace(example, **{name: bad})
    assert refusal.value.where == f"{type(example).__name__}.{name}"


@part
class Part:
    several: Annotated[tuple[int, ...], AtLeast(1)] = (1, 2)
    one: Annotated[float | None, Above(0), Below(1)] = None
    required: Annotated[int, AtLeast(1)] = 3


def test_parts_without_limits_refuse_nan_and_words():
    for example, name, bad in ((TemporalEnsemble(), "decay", math.nan), (CosineAgreement(), "threshold", math.nan),
                               (ClassifierFreeGuidance(("a",)), "scale", math.nan), (Window(), "n_obs_steps", "2")):
        with pytest.raises(ConfigError, match=f"{name} is {bad!r}, but must be a .*number"):
            replace(example, **{name: bad})
    with pytest.raises(ConfigError, match=r"RecedingHorizon.n_action_steps: .* is 1.5, but must be a whole number at "):
        RecedingHorizon(1.5)


def test_the_message_names_field_range_and_default():
    Part(one=0.5)
    for changes, text in (({"several": (1, 0)}, "Part.several: several is (1, 0), but must be at least 1\n"
                           "  -> give a number in this range; the default of Part is (1, 2)"),
                          ({"one": 1.0}, "Part.one: one is 1.0, but must be above 0 and below 1\n"
                           "  -> give a number in this range; the default of Part is None")):
        with pytest.raises(ConfigError) as refusal:
            Part(**changes)
        assert str(refusal.value) == text

    @part
    class Narrow(Part):
        required: Annotated[int, AtLeast(1)] = 5

    with pytest.raises(ConfigError, match="must be at least 1\n.*the default of Narrow is 5$"):  # each limit once
        Narrow(required=0)


def test_files_and_methods_are_checked_too():
    stored = config.dump(RealTimeChunking())
    stored["n_action_steps"] = 0
    with pytest.raises(UserError, match="n_action_steps is 0, but must be at least 1"):
        config.load(stored)
    with pytest.raises(UserError, match="n_action_steps is 0"):
        find_method("streaming-diffusion-policy", n_action_steps=0)
    with pytest.raises(UserError, match="n_neighbors is 0"):
        head = find_method("knn").policy.head
        replace(head, n_neighbors=0)
    with pytest.raises(UserError):
        ClassPrediction("label", (0,))
    with pytest.raises(UserError):
        DelayedAction(None, -1)
    with pytest.raises(UserError, match="delay is -1"):
        DelayedPlan(RecedingHorizon(), -1)
    with pytest.raises(UserError, match="skip is -1"):
        TemporalEnsemble(skip=-1)
    with pytest.raises(UserError, match="discount is 1.0, but must be at least 0 and below 1"):
        Goal("observation.state", discount=1.0)


@pytest.mark.parametrize("make, text", [
    (lambda: MLP(width=(64, 64)), r"MLP.width: width is \(64, 64\), but must be of the type int"),
    (lambda: CriticConfig(hidden=256), r"hidden is 256, but must be of the type tuple\[int, ...\]\n  -> such as"),
    (lambda: OptimizerConfig(betas=(0.9,)), r"betas is \(0.9,\), but must be of the type tuple\[float, float\]"),
    (lambda: OptimizerConfig(betas=(0.9, 1.0)), r"betas is \(0.9, 1.0\), but must be at least 0 and below 1")])
def test_one_number_is_no_tuple_and_a_tuple_has_its_length(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_numbers_of_numpy_are_numbers():
    assert MLP(width=np.int64(8)).width == 8 and CriticConfig(hidden=[np.int32(8), 8]).hidden == [8, 8]
