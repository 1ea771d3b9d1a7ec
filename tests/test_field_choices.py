"""Words that choose something are checked where they are written: `core.part`."""

import dataclasses
import importlib
import inspect
import pkgutil
from dataclasses import replace
from typing import Literal

import pytest
from fixtures.parts import EXAMPLES

from understudy import config
from understudy.core import ConfigError, Feature, _checked_fields, part
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset
from understudy.data.operations import Resample
from understudy.data.retargeting import MotionRetargeting
from understudy.execute.chunking import RealTimeChunking
from understudy.execute.replay_actor import ReplayActor
from understudy.heads.base import RampTimes
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.methods import find_method

PACKAGES = ("core", "policy", "heads", "nets", "execute", "learn", "data", "improve", "methods")
NO_CONFIGS = {"_Preprocessing", "TfdsFeature", "Improvement", "Step"}  # values that others make, not options of a user
MORE = {"Feature": Feature("float32", (2,)), "Resample": Resample(5.0),
        "MotionRetargeting": MotionRetargeting((0.5, 0.5)), "ReplayActor": ReplayActor(Dataset([])),
        "CollectionRounds": CollectionRounds(1, RolloutCollector(1))}


def choice_fields(part):
    """Names of the fields whose values are choices, and not numbers."""
    return [f.name for f in _checked_fields(part) if f.limits is None]


def parts():
    """All frozen dataclasses of the packages."""
    for package in PACKAGES:
        root = importlib.import_module(f"understudy.{package}")
        names = [name for _, name, _ in pkgutil.walk_packages(getattr(root, "__path__", ()), f"{root.__name__}.")]
        for name in (root.__name__, *names):
            for cls in vars(importlib.import_module(name)).values():
                if (inspect.isclass(cls) and cls.__module__ == name and dataclasses.is_dataclass(cls)
                        and cls.__dataclass_params__.frozen):
                    yield cls


CASES = [(part, name) for part in parts() if part.__name__ not in NO_CONFIGS for name in choice_fields(part)]


@pytest.mark.parametrize("part, name", CASES, ids=lambda x: getattr(x, "__name__", x))
def test_choices_are_checked(part, name):
    example = {**EXAMPLES, **MORE}.get(part.__name__) or part()
    for bad in ("no such choice", None, 0):
        with pytest.raises(ValueError, match="no such choice|None|0") as refusal:
            replace(example, **{name: bad})
        assert name in refusal.value.where and refusal.value.hint


def test_the_discovery_finds_the_parts():
    cases = {(part.__name__, name) for part, name in CASES}
    assert len(CASES) > 35
    assert {("Flow", "prediction"), ("Flow", "times"), ("Diffusion", "schedule"), ("Normalizer", "obs"),
            ("UNet", "layout"), ("OptimizerConfig", "precision"), ("Feature", "kind")} <= cases
    for cls in parts():  # a type that cannot be read would not be checked
        for f in dataclasses.fields(cls):
            assert "Literal" not in str(f.type) or f.name in choice_fields(cls), (cls, f.name)


@part
class Part:
    one: Literal["up", "down"] = "up"
    optional: Literal["left", "right"] | None = None
    several: tuple[Literal["a", "b"], ...] = ()
    mixed: Literal["shared"] | RampTimes = "shared"
    number: int = 3


def test_the_message_names_field_choices_and_the_nearest():
    Part("down", "left", ("b", "a", "b"), RampTimes(2))
    for changes, text in (
            ({"one": "Down"}, "Part.one: one is 'Down', but must be 'up' or 'down'\n  -> did you mean 'down'?"),
            ({"one": "xyz"}, "Part.one: one is 'xyz', but must be 'up' or 'down'\n  -> the default is 'up'"),
            ({"optional": "rigth"}, "Part.optional: optional is 'rigth', but must be 'left', 'right' or None\n"
             "  -> did you mean 'right'?"),
            ({"several": ("a", "c")}, "Part.several: several is ('a', 'c'), but must be 'a' or 'b'\n"
             "  -> the default is ()"),
            ({"mixed": 3}, "Part.mixed: mixed is 3, but must be 'shared' or a RampTimes\n"
             "  -> the default is 'shared'")):
        with pytest.raises(ConfigError) as refusal:
            Part(**changes)
        assert str(refusal.value) == text
    with pytest.raises(ConfigError, match="several is 'a'"):
        Part(several="a")


def test_files_and_methods_are_checked_too():
    stored = config.dump(Flow())
    stored["prediction"] = "velocities"
    with pytest.raises(ConfigError, match="did you mean 'velocity'"):
        config.load(stored)
    with pytest.raises(ConfigError, match="RealTimeChunking.schedule"):
        RealTimeChunking(schedule="exp")
    with pytest.raises(ConfigError, match="did you mean 'minmax'"):
        Normalizer(target="min-max")
    with pytest.raises(ConfigError, match="must be 'epsilon', 'sample' or 'v'"):
        Diffusion(prediction="noise")
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        replace(find_method("knn").policy.head, local_model="Linear")
