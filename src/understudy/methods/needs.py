"""Requirements of methods on the data, named in their decorators. They are read without importing PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import DataError, Schema, Unsupported, check_observed, role

if TYPE_CHECKING:
    from ..data.episode import Dataset

Others = Callable[[], list[str]]  # names of the bundled methods that do not have the need
Example = Mapping[str, Mapping[str, Any]]  # columns, as the JSON of a `Feature` each


@dataclass(frozen=True)
class Need:
    """A requirement of a method on the columns of the data.

    Args:
        text: What the data must have, as `understudy methods` shows it.
        example: Columns that satisfy it, on which `testing.check_method` trains.
        check: Called with the name of the method, the columns of the data, the arguments of the method's function and
            `Others`, before anything is trained. Raises UserError if the columns do not have it. None: the parts of
            the method that read the columns check them when the training starts.
    """

    text: str
    example: Example
    check: Callable[[str, Schema, Mapping[str, Any], Others], None] | None = None


LEAST_SPREAD = 0.1  # difference of the 10th and 90th percentile of returns, as a fraction of the larger


def suggest_learners(features: Schema, metadata: Sequence[Mapping[str, Any]],
                     returns: tuple[float, float] | None = None, env_features: Schema | None = None) -> dict[str, str]:
    """Returns which learners suit data with more, or less, than observations and actions.

    Args:
        features: The columns of the data.
        metadata: The metadata of the episodes, of which "success" and "expert" count.
        returns: The 10th and the 90th percentile of the episodes' returns. None without rewards.
        env_features: Columns that the environment in which policies act also has.

    Returns:
        A sentence by the name of each learner, in the order in which to try them. Empty if cloning is the plainest.
    """
    suggested = {}
    success, expert = ([bool(m[key]) for m in metadata if key in m] for key in ("success", "expert"))
    if {"segment", "preference"} <= features.keys():
        return {"preference-reward": "The episodes are comparisons of two segments. preference-reward learns a reward "
                                     "from them, and other methods then learn with --reward."}
    if not any(role(name) == "action" for name in features):
        return {"bco": "There are no actions. bco clones what they must have been, and practices for that in an "
                       "environment."}
    ends = "" if "next.terminated" in features else (
        ", but it needs the column next.terminated, which is True where the environment ended the episode, and "
        "False at a time limit")
    if returns is not None and returns[1] - returns[0] > LEAST_SPREAD * max(map(abs, returns)):
        suggested["iql"] = (f"Returns differ: {returns[0]:.3g} to {returns[1]:.3g} in the middle 80 % of the episodes. "
                            f"A learner of values, such as iql, tells the better steps from the others{ends}.")
    if 0 < sum(success) < len(success):
        suggested["bc"] = (f"{len(success) - sum(success)} of {len(success)} episodes did not succeed. bc imitates "
                           "them too, unless it is given those that did (understudy view make --filter success=true)")
    if 0 < sum(expert) < len(expert):
        suggested["recoil"] = (f"{sum(expert)} of {len(expert)} episodes are of an expert. recoil learns from all "
                               f"without rewards{ends}. dac practices in an environment with a reward that tells them "
                               "apart.")
    if goals := [name for name in {**features, **(env_features or {})} if is_goal(name)]:
        what = "looks like a goal" if goals[0] in features else "is shown by the environment, and not in the episodes"
        suggested["gcivl"] = (f"{goals[0]} {what}. gcivl learns to reach whatever the episodes reach, from the poor "
                              "ones too.")
    return suggested


def learners_for(data: Dataset, env_features: Schema | None = None) -> dict[str, str]:
    """Describes the learners of `suggest_learners` for a data set."""
    return suggest_learners(data.features(), [e.metadata for e in data], middle_returns(data), env_features)


def middle_returns(data: Dataset) -> tuple[float, float] | None:
    """Returns the 10th and the 90th percentile of the episodes' returns. None without rewards."""
    import numpy as np

    if "next.reward" not in data.features() or not len(data):
        return None
    low, high = np.quantile([float(np.sum(e.steps["next.reward"])) for e in data.iterate_once()], [0.1, 0.9])
    return float(low), float(high)


def is_goal(name: str) -> bool:
    """Returns whether a column looks like a goal."""
    return name.startswith("observation.") and name.endswith("goal")


def _refuse_classes(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    if (action := features.get("action")) is not None and action.kind == "discrete":
        raise Unsupported("the actions are classes, but this method learns numbers", where=f"{name}, column 'action'",
                          hint=f"{', '.join(others())} learn classes")


def _refuse_uncompared(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    if not {"segment", "preference"} <= features.keys():
        raise DataError("the episodes are no comparisons: there are no columns 'segment' and 'preference'", where=name,
                        hint="understudy judge DATA --out COMPARISONS asks which of two segments is better")


def _refuse_numbers(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    if (action := features.get("action")) is None or action.kind == "discrete" and action.size == 1:
        return
    problem = ("the actions are numbers" if action.kind != "discrete" else
               f"each action has {action.size} components of classes")
    raise Unsupported(f"{problem}, but this method scores each class of one component",
                      where=f"{name}, column 'action'",
                      hint="sac, td3 and cql learn numbers; iql and ppo learn numbers, and several components of "
                           "classes. Classes that are stored as numbers are read as classes with --columns "
                           "action=NAME:classes")


def _require_point_clouds(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    from ..nets.point_cloud import check_point_cloud, point_cloud_columns

    possible = [n for n, f in features.items() if role(n) == "observation" and f.kind == "vector" and len(f.shape) == 2]
    for column in options["point_clouds"]:
        if column not in features:
            raise DataError(f"the data have no column {column!r}; observations that can be point clouds: "
                            f"{', '.join(possible) or 'none'}", where=f"{name}, point_clouds",
                            hint="name one of them: --point-clouds COLUMN")
        check_point_cloud(features[column].shape, column)
    if options["point_clouds"] or point_cloud_columns(features):
        return
    shapes = ", ".join(f"{column} {features[column].shape}" for column in possible)
    raise DataError(
        f"the data have no point cloud; the columns are {', '.join(features)}", where=name,
        hint=(f"if one of these is a point cloud, name it with --point-clouds COLUMN: {shapes}" if possible else
              "store the clouds as observations of shape (points, 3), or (points, channels) with colors or intensities")
             + ". Or choose a method that reads other observations, such as diffusion-policy")


def _require_cameras(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    if not any(f.kind == "image" and role(column) == "observation" for column, f in features.items()):
        raise DataError(f"the data have no camera; the columns are {', '.join(features)}", where=name,
                        hint="record with a camera, or choose a method that reads other observations, such as knn")


def _require_one_motion(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    images = [f for f in features.values() if f.kind == "image" and f.shape[0] == f.shape[1]]
    if len(images) != 1 or features["action"].size != 5:
        raise DataError(f"the data have {len(images)} square images and actions of {features['action'].size} numbers",
                        where=name, hint="record one square image of the table, and actions pick.x, pick.y, place.x, "
                                         "place.y and turn, from -1 to 1")


def _require_numeric_states(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    if (column := options["column"]) not in features:  # the transforms refuse it
        return
    check_observed(column, features, f"{name}, column")
    if features[column].kind != "vector":
        raise DataError(f"the states are of kind {features[column].kind!r}, but this method plans numbers",
                        where=f"{name}, column {column!r}", hint="name a column of numbers: --column COLUMN")


def _require_columns(*names: str) -> Callable[[str, Schema, Mapping[str, Any], Others], None]:
    """Raises an error if the data lack the columns that these options name."""
    def check(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
        for option in names:
            if options[option] not in features:
                raise DataError(f"the data have no column {options[option]!r}; the columns are {', '.join(features)}",
                                where=f"{name}, {option}",
                                hint=f"name one of them: --{option.replace('_', '-')} COLUMN")
    return check


def _require_paths(name: str, features: Schema, options: Mapping[str, Any], others: Others) -> None:
    size, n_points = features["action"].size, len(options["point_steps"])
    if size != 2 * n_points:
        raise DataError(f"the actions have {size} numbers, but {n_points} points have {2 * n_points}", where=name,
                        hint="actions are points (distance ahead, offset); --point-steps has the step of each")


def _vector(*shape: int) -> dict[str, Any]:
    return {"dtype": "float32", "shape": shape}


def _classes(*shape: int, n: int) -> dict[str, Any]:
    return {"dtype": "int64", "shape": shape, "kind": "discrete", "num_classes": (n,) * math.prod(shape)}


def _image(size: int) -> dict[str, Any]:
    return {"dtype": "uint8", "shape": (size, size, 3), "kind": "image"}


TEXT = {"dtype": "string", "shape": (), "kind": "string"}

NUMBERS = Need("actions that are numbers", {"action": _vector(2)}, _refuse_classes)
CLASSES = Need("actions that are one of several classes", {"action": _classes(1, n=3)}, _refuse_numbers)
NUMBERS_OR_CLASSES = "actions that are numbers or classes"
AN_ENVIRONMENT_FOR_ROUNDS = "an environment, unless --n-rounds is 0"
SOME_ACTIONS = "actions that are numbers or classes in some episodes; the others may lack them, or hold NaN"
SOME_NUMBERS = Need("actions that are numbers in some episodes; the others may lack them, or hold NaN", NUMBERS.example,
                    _refuse_classes)
OTHER_EPISODES = "other episodes, of any quality (--prior)"
PRACTICE = "practice with actions, of any quality, besides the demonstrations (--prior)"
OBSERVED_NUMBERS = Need("observations that are numbers", {"observation.state": _vector(2)})
NUMERIC_STATES = Need("states that are numbers", {"observation.state": _vector(2)}, _require_numeric_states)
POINT_CLOUDS = Need("point clouds: observations of shape (points, 3), or more channels with colors or intensities",
                    {"observation.points": _vector(16, 3)}, _require_point_clouds)
CAMERAS = Need("cameras: without them the encoder has nothing to learn from", {"observation.images.top": _image(16)},
               _require_cameras)
ONE_MOTION = Need("one square camera image, and actions that are one motion: where to pick, where to place, and "
                  "the turn", {"observation.images.top": _image(24), "action": _vector(5)}, _require_one_motion)
OBJECTS = Need("objects: observations of shape (objects, features)", {"observation.objects": _vector(3, 4)},
               _require_columns("objects"))
PROMPTS = Need("objects of shape (objects, features), and prompts: a class of words and an object at each position",
               {"observation.objects": _vector(2, 3), "observation.prompt.objects": _vector(7, 3),
                "observation.prompt.words": _classes(7, n=4)},
               _require_columns("objects", "words", "prompt_objects"))
PATHS = Need("actions that are paths: points (distance ahead, offset from the center of a lane). The state begins with "
             "the offset and the heading", {"action": _vector(8), "observation.state": _vector(4)}, _require_paths)
CELLS = Need("a map of cells (observation.grid) and the cell of the agent (observation.cell)",
             {"observation.grid": _classes(3, 3, n=3), "observation.cell": _classes(2, n=3)},
             _require_columns("grid", "cell"))
REWARDS = Need("rewards", {"next.reward": _vector()})
STEP_REWARDS = Need("rewards, and which steps ended an episode (next.terminated)",
                    {"next.reward": _vector(), "next.terminated": {"dtype": "bool", "shape": ()}})
ENDS = Need("which steps ended an episode (next.terminated)", {"next.terminated": {"dtype": "bool", "shape": ()}})
THOUGHTS = Need("the thought of the expert at each step, as text (thought)", {"thought": TEXT})
SUBTASKS = Need("a column of text that says what is done at each step, or segments in the metadata of the episodes",
                {"subtask": TEXT})
SKILLS = Need("a column with the number of the skill that is due at each step (skill)", {
    "skill": {"dtype": "int64", "shape": (1,), "kind": "discrete", "num_classes": (8,)}})
RECALLED_STEPS = Need("a column with the distances to the recalled steps",
                      {"recalled": {"dtype": "int64", "shape": (1,)}})
PLACES = Need("a column with the number of the place, or of another condition, of each step",
              {"place": {"dtype": "int64", "shape": (1,)}})
COMPARISONS = Need("comparisons of two segments, which `understudy judge` asks for", {
    name: {"dtype": "int64", "shape": (1,), "kind": "discrete", "num_classes": (n,)}
    for name, n in (("segment", 2), ("preference", 3))}, _refuse_uncompared)
TRACES = "motions along which a feature rises or falls all the way (metadata `trace`: \"up\" or \"down\")"
GIVEN_GOAL = "while acting: a goal"
