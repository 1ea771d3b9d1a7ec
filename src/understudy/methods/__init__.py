"""Named methods: functions of at most twenty lines that return a `Method`, one file for each family.

A method is found by its name, and its module is imported only then. A function may take `features`, the columns of the
data, where the choice of parts depends on them (`bc` takes a categorical head for discrete actions). Everything else
has a default.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plugins import find_plugins, load_plugin, package_of

if TYPE_CHECKING:
    from ..core import Schema
    from ..learn.method import Method

COSTS = Path(__file__).with_name("costs.json")  # written by benchmarks/method_cost.py
MAX_MENTIONS = 20  # a word that more methods mention, such as "arXiv", tells nothing


@dataclass(frozen=True)
class Need:
    """A requirement on the columns of the data. `find_method` checks it before anything is trained.

    Args:
        text: What the data must have, as `understudy methods` shows it.
        check: Called with the name of the method, the columns of the data and the arguments of the method's function.
            Raises UserError if the columns do not have it.
    """

    text: str
    check: Callable[[str, Schema, Mapping[str, Any]], None]


def _refuse_classes(name: str, features: Schema, options: Mapping[str, Any]) -> None:
    from ..core import Unsupported

    if (action := features.get("action")) is not None and action.kind == "discrete":
        able = [n for n, m in METHODS.items() if NUMBERS not in m.reference.needs]
        raise Unsupported("the actions are classes, but this method learns numbers", where=f"{name}, column 'action'",
                          hint=f"{', '.join(able)} learn classes")


def _require_point_clouds(name: str, features: Schema, options: Mapping[str, Any]) -> None:
    from ..core import DataError, role
    from ..nets.point_cloud import check_point_cloud, point_cloud_columns

    possible = [n for n, f in features.items() if role(n) == "observation" and f.kind == "vector" and len(f.shape) == 2]
    for column in options["point_clouds"]:
        if column not in features:
            raise DataError(f"the data have no column {column!r}; observations that can be point clouds: "
                            f"{', '.join(possible) or 'none'}", where=f"{name}, point_clouds",
                            hint="name one of them: --method.point-clouds COLUMN")
        check_point_cloud(features[column].shape, column)
    if options["point_clouds"] or point_cloud_columns(features):
        return
    shapes = ", ".join(f"{column} {features[column].shape}" for column in possible)
    raise DataError(
        f"the data have no point cloud; the columns are {', '.join(features)}", where=name,
        hint=(f"if one of these is a point cloud, name it with --method.point-clouds COLUMN: {shapes}" if possible else
              "store the clouds as observations of shape (points, 3), or (points, channels) with colors or intensities")
             + ". Or choose a method that reads other observations, such as diffusion-policy")


def _require_cameras(name: str, features: Schema, options: Mapping[str, Any]) -> None:
    from ..core import DataError, role

    if not any(f.kind == "image" and role(column) == "observation" for column, f in features.items()):
        raise DataError(f"the data have no camera; the columns are {', '.join(features)}", where=name,
                        hint="record with a camera, or choose a method that reads other observations, such as knn")


def _require_one_motion(name: str, features: Schema, options: Mapping[str, Any]) -> None:
    from ..core import DataError

    images = [f for f in features.values() if f.kind == "image" and f.shape[0] == f.shape[1]]
    if len(images) != 1 or features["action"].size != 5:
        raise DataError(f"the data have {len(images)} square images and actions of {features['action'].size} numbers",
                        where=name, hint="record one square image of the table, and actions pick.x, pick.y, place.x, "
                                         "place.y and turn, from -1 to 1")


def _require_numeric_states(name: str, features: Schema, options: Mapping[str, Any]) -> None:
    from ..core import DataError, check_observed

    if (column := options["column"]) not in features:  # the transforms refuse it
        return
    check_observed(column, features, f"{name}, column")
    if features[column].kind != "vector":
        raise DataError(f"the states are of kind {features[column].kind!r}, but this method plans numbers",
                        where=f"{name}, column {column!r}", hint="name a column of numbers: --method.column COLUMN")


def _require_prompts(name: str, features: Schema, options: Mapping[str, Any]) -> None:
    from ..core import DataError

    for option in ("objects", "words", "prompt_objects"):
        if options[option] not in features:
            raise DataError(f"the data have no column {options[option]!r}; the columns are {', '.join(features)}",
                            where=f"{name}, {option}",
                            hint=f"name one of them: --method.{option.replace('_', '-')} COLUMN")


NUMBERS = Need("actions that are numbers", _refuse_classes)
NUMBERS_OR_CLASSES = "actions that are numbers or classes"
NUMERIC_STATES = Need("states that are numbers", _require_numeric_states)
POINT_CLOUDS = Need("point clouds: observations of shape (points, 3), or more channels with colors or intensities",
                    _require_point_clouds)
ONE_MOTION = Need("one square camera image, and actions that are one motion: where to pick, where to place, and "
                  "the turn", _require_one_motion)
CAMERAS = Need("cameras: without them BYOL has nothing to compare", _require_cameras)
TASK = "a task in words"
PROMPTS = Need("objects of shape (objects, features), and prompts: a class of words and an object at each position",
               _require_prompts)
GIVEN_GOAL = "while acting: a goal"


@dataclass(frozen=True)
class Reference:
    """Where a method was published, and what it needs.

    Args:
        paper: Authors, year and arXiv number, and how the method differs from the paper.
        rows: Rows of the ledger, if it is in there.
        needs: What the data must have, and what must be given while acting. `find_method` checks each `Need`. The
            parts of the method that read a column check the others when the training starts.
    """

    paper: str
    rows: tuple[str, ...] = ()
    needs: tuple[Need | str, ...] = (NUMBERS,)


@dataclass(frozen=True)
class NamedMethod:
    """An entry of the registry. A package may register one by an entry point, in place of a function.

    Args:
        function: "module:function" of the function that returns the method.
        summary: Description of the method in one sentence.
        reference: The publication and the requirements.
        when: When to choose the method: the rest of a sentence that starts with "Choose it". It says what claims and
            benchmarks found, also if it speaks against the method.
    """

    function: str
    summary: str
    reference: Reference
    when: str = ""

    @property
    def family(self) -> str:
        """Name of the module that defines the function, such as "generative"."""
        return self.function.partition(":")[0].rpartition(".")[2]


METHODS: dict[str, NamedMethod] = {
    "bc": NamedMethod(
        "understudy.methods.behavior_cloning:bc",
        "Behavior cloning: regression to the mean of the demonstrations, or a distribution over discrete actions.",
        Reference("Pomerleau 1988 (ALVINN); as the baseline of Mandlekar et al. 2021, arXiv 2108.03298", ("047",),
                  (NUMBERS_OR_CLASSES,)),
        when="if there is one way to act, or as the small and fast baseline for everything else."),
    "robust-bc": NamedMethod(
        "understudy.methods.behavior_cloning:robust_bc",
        "Behavior cloning that survives wrong actions in the data: the median of many small blocks trains.",
        Reference("Liu et al. 2022 (RBC), arXiv 2201.12594", ("268",)),
        when="if an unknown part of the recorded actions is wrong; on clean data it only trains longer than `bc`."),
    "bc-gmm": NamedMethod(
        "understudy.methods.behavior_cloning:bc_gmm",
        "Behavior cloning with a mixture of Gaussians over a chunk, so that two good ways are not averaged.",
        Reference("Mandlekar et al. 2021, arXiv 2108.03298, whose chunks are one step long: horizon=1, "
                  "n_action_steps=1", ("047",)),
        when="if demonstrations act in several ways and a plan must take one network evaluation; precise motions "
             "take it many updates."),
    "bc-bins": NamedMethod(
        "understudy.methods.behavior_cloning:bc_bins",
        "Behavior cloning with each number of an action as one of 32 intervals, drawn one after the other.",
        Reference("Metz et al. 2017, arXiv 1705.05035, which learns values; Brohan et al. 2022 (RT-1), "
                  "arXiv 2212.06817, with 256 independent intervals (n_bins=256, autoregressive=False), images, "
                  "words and a transformer"),
        when="if demonstrations act in several ways, no shape of their distribution is known, and motions need little "
             "precision."),
    "bc-rnn-gmm": NamedMethod(
        "understudy.methods.behavior_cloning:bc_rnn_gmm",
        "Behavior cloning with a memory: an LSTM over the last observations, then a mixture of Gaussians.",
        Reference("Mandlekar et al. 2021, arXiv 2108.03298; the history slides here, and starts again every 10 steps "
                  "there", ("047",)),
        when="if what to do depends on the last ten observations."),
    "attention-tuner": NamedMethod(
        "understudy.methods.behavior_cloning:attention_tuner",
        "Behavior cloning with a transformer whose attention learns from the data which earlier steps to recall.",
        Reference("Yue et al. 2024 (AttentionTuner), arXiv 2411.07954, whose loss also covers the other steps",
                  ("213",), (NUMBERS_OR_CLASSES, "a column with the distances to the recalled steps")),
        when="if what to do depends on a step long ago, and a script or a person can say which one."),
    "fourier-transporter": NamedMethod(
        "understudy.methods.behavior_cloning:fourier_transporter",
        "Fourier transporter: picks and places in an image, by networks that turn with it, from few demonstrations.",
        Reference("Huang et al. 2024 (FourTran), arXiv 2401.12046, here in the plane, with a gripper without an angle "
                  "of its own", ("351",), (NUMBERS, ONE_MOTION)),
        when="if each action is one pick and one place in an image from above, and there are few demonstrations."),
    "cec": NamedMethod(
        "understudy.methods.behavior_cloning:cec",
        "Cross-episodic curriculum: a transformer over several episodes, the worst demonstrators first.",
        Reference("Shi et al. 2023 (CEC), arXiv 2310.08549, with images, a longer context, and episodes of a level "
                  "that were recorded one after another", ("136",),
                  (NUMBERS_OR_CLASSES, "a field of the episodes that orders the demonstrators")),
        when="if demonstrators of different skill did the same tasks, and the policy shall improve over several "
             "trials."),
    "keyframe-bc": NamedMethod(
        "understudy.methods.behavior_cloning:keyframe_bc",
        "Behavior cloning from a history in which keyframes count more: steps whose action the last ones do not tell.",
        Reference("Wen et al. 2021, arXiv 2106.06452, with images and a larger network"),
        when="if a policy with a history repeats its last action instead of reacting; it did not help in the toy of "
             "docs/history.md."),
    "bottleneck-bc": NamedMethod(
        "understudy.methods.behavior_cloning:bottleneck_bc",
        "Behavior cloning from a history through a noisy code that keeps little besides what tells the action.",
        Reference("Alemi et al. 2017, arXiv 1612.00410; as a part of Wen et al. 2020, arXiv 2010.14876, who also train "
                  "an adversary that looks for the last action in the code"),
        when="if a policy with a history repeats its last action and no steps shall be marked; it did not help in "
             "the toy of docs/history.md."),
    "interactive-language": NamedMethod(
        "understudy.methods.behavior_cloning:interactive_language",
        "Behavior cloning of labeled segments of long recordings, for instructions that may change at every step.",
        Reference("Lynch et al. 2022 (Interactive Language), arXiv 2210.06407, with four images, attention from the "
                  "words to them, frozen CLIP words and far larger networks", ("280",),
                  (NUMBERS_OR_CLASSES, "a column of text that says what is done at each step, or segments in the "
                   "metadata of the episodes")),
        when="if long recordings are labeled piece by piece, and a person gives new instructions while the robot "
             "acts."),
    "one-shot": NamedMethod(
        "understudy.methods.behavior_cloning:one_shot",
        "One-shot imitation: a transformer that does what one given demonstration shows.",
        Reference("Duan et al. 2017, arXiv 1703.07326, with a network that attends to all steps of a demonstration and "
                  "to blocks, and with many more tasks; here it reads a few frames",
                  needs=(NUMBERS_OR_CLASSES, "observations that are numbers", "several episodes of each of many tasks, "
                         "which have a name", "while acting: a demonstration")),
        when="if a task is easier to show than to say, and hundreds of demonstrations of many tasks exist; new tasks "
             "succeed half as often in docs/language.md."),
    "gcbc": NamedMethod(
        "understudy.methods.behavior_cloning:gcbc",
        "Goal-conditioned behavior cloning: the goal of each step is a later observation of its episode.",
        Reference("Lynch et al. 2019 (Play-GCBC), arXiv 1903.01973; as the baseline of Park et al. 2025, "
                  "arXiv 2410.20092", ("114",),
                  (NUMBERS, GIVEN_GOAL)),
        when="if a goal is given while acting and one way leads to it; the simplest policy with goals."),
    "maskdp": NamedMethod(
        "understudy.methods.behavior_cloning:maskdp",
        "Masked decision prediction: complete trajectories with hidden states and actions, and act towards a goal.",
        Reference("Liu et al. 2022 (MaskDP), arXiv 2211.12740, which trains a network of width 256 on 64 steps with "
                  "states of length 1 as targets", ("288",),
                  (NUMBERS, NUMERIC_STATES, "while acting: a goal, and the number of steps until then")),
        when="if goals are given with the number of steps until then; cloning with a goal was better in a toy (claim "
             "masked-trajectories)."),
    "bc-inverse-dynamics": NamedMethod(
        "understudy.methods.representation:bc_inverse_dynamics",
        "Behavior cloning on a frozen encoder, which was trained to tell the action between two observations.",
        Reference("Brandfonbrener et al. 2023, arXiv 2305.16985, who train the encoder on other episodes with hidden "
                  "goals: --stage encoder=RUN", ("019",), (NUMBERS_OR_CLASSES,)),
        when="if there are many episodes of other tasks to train the encoder on, and few of this one; no claim has "
             "tested it here."),
    "dualmind": NamedMethod(
        "understudy.methods.representation:dualmind",
        "DualMind: a trunk learns the dynamics without tasks. Frozen, it is steered by a prompt through new layers.",
        Reference("Wei et al. 2023, arXiv 2307.07909, with a history of six images, prompts from CLIP, and more and "
                  "more hidden actions. The first phase takes any episodes, also without tasks: --stage trunk=RUN",
                  ("169",), (NUMBERS_OR_CLASSES, f"{TASK}, or another column that says what to do (--method.prompt)",
                             "while acting: what to do, in words or as a column")),
        when="if one network shall serve many named tasks; its first phase is better than a random trunk, but the "
             "whole could not be told from cloning (claim dual-phase)."),
    "midas": NamedMethod(
        "understudy.methods.representation:midas",
        "MIDAS: learn to follow the motion that a prompt shows, then to follow prompts of words and objects.",
        Reference("Li et al. 2024, arXiv 2310.09676, with a history, images of objects, and a pretrained language "
                  "model that reads the prompt", ("172",),
                  (NUMBERS_OR_CLASSES, PROMPTS, "while acting: a prompt, as columns")),
        when="if prompts mix words and objects; set --method.keep-motions, or the second stage unlearns the first "
             "(claim multimodal-prompts)."),
    "diffusion-policy": NamedMethod(
        "understudy.methods.generative:diffusion_policy",
        "Diffusion policy: a chunk of actions is denoised in ten DDIM steps, and half of it is carried out.",
        Reference('Chi et al. 2023, arXiv 2303.04137, which predicts the noise (prediction="epsilon") with a wider '
                  "U-Net", ("260", "175")),
        when="if demonstrations act in several ways, and time for ten evaluations of a large network in each plan is "
             "there."),
    "diffusion-bc": NamedMethod(
        "understudy.methods.generative:diffusion_bc",
        "Diffusion cloning of single actions, which takes a likely one by extra steps or as the densest of many.",
        Reference("Pearce et al. 2023 (Diffusion-X, Diffusion-KDE), arXiv 2301.10677, with another network and noise "
                  "schedule", ("260",)),
        when="if demonstrations act in several ways and the robot must look after every action."),
    "dp3": NamedMethod(
        "understudy.methods.generative:dp3",
        "3D Diffusion Policy: a diffusion policy that observes point clouds, which a small PointNet encodes.",
        Reference("Ze et al. 2024, arXiv 2403.03954, with the widths of its small variant (Simple DP3) and a linear "
                  "layer in place of the MLP over the state", (),
                  (NUMBERS, POINT_CLOUDS)),
        when="if the observations are point clouds."),
    "streaming-diffusion-policy": NamedMethod(
        "understudy.methods.generative:streaming_diffusion_policy",
        "A buffer of actions, from nearly clean to noise, is denoised by a few steps whenever a part is executed.",
        Reference("Høeg et al. 2024, arXiv 2406.04806, with a U-Net that predicts the noise", ("038",)),
        when="if a diffusion policy needs too many evaluations for each plan; a third of them was enough in a toy."),
    "ptp": NamedMethod(
        "understudy.methods.generative:ptp",
        "Past-token prediction: a policy with a long history predicts its past actions too, and plans are chosen by "
        "them.",
        Reference("Torne et al. 2025, arXiv 2505.09561, which trains the encoder of images first, with two "
                  "observations, and then freezes it", ("344",)),
        when="if what to do depends on a long history; no gain over `diffusion-policy` with a history was found here."),
    "flow-policy": NamedMethod(
        "understudy.methods.generative:flow_policy",
        "A chunk of actions by flow matching: ten steps along the straight line from noise.",
        Reference("Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003", ("028",)),
        when="if demonstrations act in several ways; with --method.prediction sample also if motions are precise."),
    "training-time-rtc": NamedMethod(
        "understudy.methods.generative:training_time_rtc",
        "Training-time RTC: flow matching that learns to continue the actions that are executed while it plans.",
        Reference("Black et al. 2025, arXiv 2512.05964, with a transformer; delays are drawn uniformly, as for its "
                  "robots", (), (NUMBERS,)),
        when="if plans are late on a robot and there are updates enough; in two toys it was no better than "
             "real-time-chunking, which needs no training (docs/execution.md)."),
    "bid-flow-policy": NamedMethod(
        "understudy.methods.generative:bid_flow_policy",
        "A flow policy with bidirectional decoding: 15 plans, compared with the last chunk and with a weak policy.",
        Reference("Liu et al. 2024, arXiv 2408.17355, whose base is a diffusion policy, and whose weak policy is an "
                  "early checkpoint of the same run"),
        when="if the robot must look after every action and yet keep to one way, and 30 plans a step are affordable."),
    "sgac": NamedMethod(
        "understudy.methods.generative:sgac",
        "Diffusion policy with self-guidance by the last observation, and chunks that are kept while new ones agree.",
        Reference("So et al. 2025, arXiv 2510.12392, whose guidance scale is tuned for each task; 1 here", ("258",)),
        when="if a diffusion policy must react sooner than at the end of its chunk; its gain is undecided here."),
    "shortcut-policy": NamedMethod(
        "understudy.methods.generative:shortcut_policy",
        "A flow that is asked for large steps: one network evaluation gives a chunk, and more give a better one.",
        Reference("Frans et al. 2024, arXiv 2410.12557, whose smallest step is 1/128, with 800,000 updates"),
        when="if a plan must take one network evaluation and several ways are needed without training a teacher."),
    "mean-flow-policy": NamedMethod(
        "understudy.methods.generative:mean_flow_policy",
        "A flow that learns the average velocity from noise to action: one network evaluation gives a chunk.",
        Reference("Geng et al. 2025, arXiv 2505.13447, which generates images"),
        when="if a plan must take one network evaluation without a teacher, and motions need little precision."),
    "consistency-training": NamedMethod(
        "understudy.methods.generative:consistency_training",
        "A network that jumps from any noise level to the action in one step, trained on the demonstrations alone.",
        Reference("Song and Dhariwal 2023, arXiv 2310.14189, with 80 equally likely noise levels, as in Consistency "
                  "Policy, and a larger constant in its distance"),
        when="if a plan must take one network evaluation without a teacher, and motions need little precision; "
             "several evaluations help."),
    "consistency-policy": NamedMethod(
        "understudy.methods.generative:consistency_policy",
        "Consistency policy: a diffusion policy is distilled into a network that jumps from noise to action.",
        Reference("Prasad et al. 2024, arXiv 2405.07503, which jumps to any lower noise level and adds the loss of "
                  "diffusion; here the jumps end at the action, as in Song et al. 2023, arXiv 2303.01469"),
        when="if a trained diffusion policy is good and too slow; it lost 7 points on the toy fork, and most of the "
             "success where motions are precise."),
    "onedp": NamedMethod(
        "understudy.methods.generative:onedp",
        "OneDP: a diffusion policy is distilled into a generator whose plans have the distribution of the teacher's.",
        Reference("Wang et al. 2025 (OneDP-S), arXiv 2410.21257, with a learning rate of 1e-6 for the generator and of "
                  "2e-5 for its score, and larger networks", ("285",)),
        when="if a trained diffusion policy is good and too slow; it lost 10 points on the toy fork, and most of the "
             "success where motions are precise."),
    "reflow-policy": NamedMethod(
        "understudy.methods.generative:reflow_policy",
        "A flow is trained again on pairs of noise and the chunk that it made from it, so that one step gives a chunk.",
        Reference("Liu et al. 2023, arXiv 2209.03003, which stores the pairs; here each update makes new ones",
                  ("028",)),
        when="if a flow policy is good and too slow; two steps with --method.prediction sample lost at most 3 points "
             "on two toys."),
    "adaflow": NamedMethod(
        "understudy.methods.generative:adaflow",
        "A flow that chooses its steps: one where the action is certain, and more where demonstrations differ.",
        Reference("Hu et al. 2024, arXiv 2402.04292, which trains velocity and variance by one likelihood", ("267",)),
        when="if a flow policy is too slow and most states have one right action; it saved steps, but less than "
             "promised."),
    "interpolant-policy": NamedMethod(
        "understudy.methods.generative:interpolant_policy",
        "A flow whose chunks start at the last executed action and some noise, and not at pure noise.",
        Reference("Albergo et al. 2023, arXiv 2303.08797; Chen et al. 2024 (BRIDGeR), arXiv 2402.16075, whose source "
                  "is another policy", (),
                  (NUMBERS,)),
        when="if chunks shall continue the last executed action, and a plan may take five network evaluations."),
    "normalizing-flow-policy": NamedMethod(
        "understudy.methods.generative:normalizing_flow_policy",
        "An invertible network between noise and a chunk: exact likelihoods, and a plan in one pass.",
        Reference("Dinh et al. 2017, arXiv 1605.08803; as a policy in Ghugare and Eysenbach 2025, arXiv 2505.23527"),
        when="if demonstrations act in several ways and the likelihood of an action must be known exactly."),
    "beso": NamedMethod(
        "understudy.methods.generative:beso",
        "Goal-conditioned diffusion with classifier-free guidance towards a later observation of the episode.",
        Reference("Reuss et al. 2023, arXiv 2304.02532, with a causal transformer over the history", ("090",),
                  (NUMBERS, GIVEN_GOAL)),
        when="if a goal is given while acting and several ways of reaching it shall be kept; regression (`gcbc`) "
             "succeeded as often here."),
    "mdt": NamedMethod(
        "understudy.methods.generative:mdt",
        "Multimodal diffusion transformer: later observations and words are goals of one policy; few words are enough.",
        Reference("Reuss et al. 2024, arXiv 2407.05996, with images, pretrained encoders of images and words, half of "
                  "each batch with words, and the prediction of masked patches of later images", ("375",),
                  (NUMBERS, "a task in words for some episodes", "while acting: a goal, or a task in words")),
        when="if goals are later observations for all episodes, and words for a few of them."),
    "mode": NamedMethod(
        "understudy.methods.generative:mode",
        "Mixture of expert denoisers: diffusion by a transformer whose experts are chosen by the noise level.",
        Reference("Reuss et al. 2025, arXiv 2412.12953, with a network eight times as wide, language goals and "
                  "log-logistic noise levels", ("307",)),
        when="if a diffusion transformer shall grow without slower plans: its experts can be fused before it acts."),
    "dit-policy": NamedMethod(
        "understudy.methods.generative:dit_policy",
        "Diffusion transformer policy: context, time and noisy actions are tokens of one causal transformer.",
        Reference("Hou et al. 2024 (Dita), arXiv 2410.15959, which predicts the noise, with a network of 12 layers of "
                  "width 768, images, words and pretraining", ("352",)),
        when="if several ways and context must be weighed at every denoising step, and a transformer is affordable."),
    "contextvla": NamedMethod(
        "understudy.methods.generative:contextvla",
        "A flow policy with a history: after two blocks of a transformer, all past observations become one token.",
        Reference("Jang et al. 2025 (ContextVLA), arXiv 2510.04246, which does this in a pretrained vision-language "
                  "model, with tokens of words that are not pooled", ("304",)),
        when="if what to do depends on the last observations, and reading all of them in each layer is too slow."),
    "bet": NamedMethod(
        "understudy.methods.behavior_cloning:bet",
        "Behavior transformer: choose a cluster of demonstrated actions, then correct its center.",
        Reference("Shafiullah et al. 2022, arXiv 2206.11251, with a loss at every observation of the history",
                  ("284",)),
        when="if demonstrations act in several ways that form clusters of actions."),
    "vq-bet": NamedMethod(
        "understudy.methods.behavior_cloning:vq_bet",
        "Vector-quantized behavior transformer: choose the codes of a chunk, decode them, and correct the result.",
        Reference("Lee et al. 2024, arXiv 2403.03181, with a loss at every observation of the history"),
        when="if demonstrations act in several ways, and the clusters of whole chunks are to be learned."),
    "fast": NamedMethod(
        "understudy.methods.behavior_cloning:fast",
        "Action tokens: the cosine transform of a chunk as a few tokens, each predicted from those before it.",
        Reference("Pertsch et al. 2025, arXiv 2501.09747, which fine-tunes a vision-language model on chunks of one "
                  "second"),
        when="if actions are to be tokens, as for a language model; its plans are slow, and coarse where motions are "
             "precise."),
    "ibc": NamedMethod(
        "understudy.methods.behavior_cloning:ibc",
        "Implicit behavioral cloning: learn an energy of observation and action, and search its minimum.",
        Reference("Florence et al. 2021, arXiv 2109.00137, with 256 negatives and 16,384 candidates"),
        when="if single actions of few components jump between observations that are alike; for chunks only with "
             "--method.autoregressive (docs/heads.md)."),
    "streaming-flow-policy": NamedMethod(
        "understudy.methods.generative:streaming_flow_policy",
        "A flow in action space: each integration step from the last executed action gives the next action.",
        Reference("Jiang et al. 2025, arXiv 2505.21851, for actions that change little from step to step, such as "
                  "positions; without its variant with latent variables", (), (NUMBERS,)),
        when="if actions are positions that change little from step to step, and must be sent while the plan is made."),
    "mip": NamedMethod(
        "understudy.methods.generative:mip",
        "Minimal iterative policy: a regression, and a second one that reads the first answer. No randomness.",
        Reference("Pan et al. 2025, arXiv 2512.01809", ("264",)),
        when="if there is one way to act and motions are precise; no gain over regression is known here."),
    "act": NamedMethod(
        "understudy.methods.chunking:act",
        "Action chunking transformer: a conditional autoencoder of long chunks, which --method.ensemble averages where "
        "they overlap.",
        Reference("Zhao et al. 2023, arXiv 2304.13705, whose chunks are 100 steps at 50 Hz, with a network four times "
                  "as wide", ("158",)),
        when="if long and smooth chunks suit the task; averaging overlapping chunks (--method.ensemble) harmed in "
             "the toy here."),
    "knn": NamedMethod(
        "understudy.methods.retrieval:knn",
        "Nearest neighbors: the mean chunk of the most similar situations; with one neighbor, a replay of the nearest.",
        Reference("Cover and Hart 1967; as a policy in Pari et al. 2021, arXiv 2112.01511", ("079",),
                  ("observations and actions that are numbers or classes",)),
        when="if there are very few demonstrations, or to see at once what they contain: nothing is trained."),
    "vinn": NamedMethod(
        "understudy.methods.retrieval:vinn",
        "Visual imitation by nearest neighbors: nearer actions count more, by the features of a fixed image network.",
        Reference("Pari et al. 2021, arXiv 2112.01511, whose network was trained further on the images alone",
                  ("079",), (NUMBERS_OR_CLASSES, "for cameras the weights of a ResNet-18 (the extra hub)")),
        when="if there are few demonstrations with cameras and a pretrained image network; its gain is undecided "
             "here."),
    "search-bc": NamedMethod(
        "understudy.methods.retrieval:search_bc",
        "Search: follow the most similar demonstration, and search again when the situations differ.",
        Reference("Malato et al. 2023, arXiv 2306.09082, and 2024, arXiv 2401.16398 (ZIP), which compare the states of "
                  "a pretrained video model", ("262",), (NUMBERS, "no cameras")),
        when="if there are few demonstrations, and the behavior shall change with them without training."),
    "retrieve-align-replay": NamedMethod(
        "understudy.methods.retrieval:retrieve_align_replay",
        "Retrieval, alignment, replay: choose a demonstration, go where it began, and repeat its motion.",
        Reference("Di Palo and Johns 2024, arXiv 2312.12345, whose retrieval compares features of DINO, and whose "
                  "alignment is visual servoing by a camera at the wrist", ("316",),
                  (NUMBERS, "actions that are velocities of an observed pose", "prior data: the robot moves away from "
                   "the start of each demonstration")),
        when="if there is one demonstration, and the robot can first go to where it began."),
    "mcnn": NamedMethod(
        "understudy.methods.retrieval:mcnn",
        "Memory-consistent network: near a stored example its action, farther away a bounded network.",
        Reference("Sridhar et al. 2024, arXiv 2310.06171, which chooses the examples by growing neural gas and trains "
                  "1,000,000 updates", ("249",), (NUMBERS, "no cameras")),
        when="if motions are precise and `knn` is too coarse; over its network alone no gain was found with 20 "
             "demonstrations."),
    "behavior-retrieval": NamedMethod(
        "understudy.methods.retrieval:behavior_retrieval",
        "Behavior cloning of a task's demonstrations and of the steps of prior data that are most like them.",
        Reference("Du et al. 2023, arXiv 2304.08742, which retrieves above a threshold and has a recurrent policy",
                  (), (NUMBERS, "prior data (--prior)", "no cameras in the embedding")),
        when="if the task has few demonstrations and much unlabeled prior data contains it; its gain is undecided "
             "here."),
    "skill-retrieval": NamedMethod(
        "understudy.methods.retrieval:skill_retrieval",
        "Skills from prior data, chosen by a policy that learns from a task and from the prior pieces most like it.",
        Reference("Nasiriany et al. 2022, arXiv 2210.11435 (SAILOR), without the losses that make skills predictable "
                  "and the input that tells retrieved pieces from the task's", ("178",),
                  (NUMBERS, "prior data (--prior)")),
        when="if the task is long, has few demonstrations, and shares pieces with prior data; no claim has tested "
             "its skills here."),
    "opal": NamedMethod(
        "understudy.methods.skills:opal",
        "An autoencoder learns skills of ten steps, and a policy learns which skill to begin.",
        Reference("Ajay et al. 2021, arXiv 2010.13611, its imitation learning, whose networks are recurrent"),
        when="if episodes are long and made of pieces that return; no claim has tested it here."),
    "play-lmp": NamedMethod(
        "understudy.methods.skills:play_lmp",
        "Latent plans from play: a prior draws a plan for the goal, and a policy carries it out step by step.",
        Reference("Lynch et al. 2019, arXiv 1903.01973, with pieces of 16 to 32 steps, recurrent networks and "
                  "mixtures of logistics", ("114",),
                  (NUMBERS, GIVEN_GOAL)),
        when="if the data are play without tasks and a goal is given while acting; no claim has tested it here."),
    "groot-2": NamedMethod(
        "understudy.methods.skills:groot_2",
        "Follows words that few episodes have: they give places in a space of latents that all episodes teach.",
        Reference("Cai et al. 2024 (GROOT-2), arXiv 2412.10410, with transformers and images; the form of the "
                  "alignment is not published in code", ("309",), (NUMBERS, "a task in words for some episodes")),
        when="if few of many episodes are described in words: it was better than cloning these few in a toy (claim "
             "weakly-labeled-skills)."),
    "omnijarvis": NamedMethod(
        "understudy.methods.skills:omnijarvis",
        "Behavior becomes codes of a few symbols, and a policy predicts the next code from words and earlier codes.",
        Reference("Wang et al. 2024 (OmniJARVIS), arXiv 2407.00114, with a pretrained language model, thoughts and "
                  "summaries as words, images, and codes of 128 steps", ("073",),
                  (NUMBERS_OR_CLASSES, TASK, "while acting: the task in words")),
        when="if a task in words takes many steps, and what to do depends on what was done before."),
    "pasta": NamedMethod(
        "understudy.methods.representation:pasta",
        "Pretrained action-state transformer: one token per number, hidden numbers are predicted, then the actions.",
        Reference("Boige et al. 2024 (PASTA), arXiv 2307.10936, whose numbers are classes, and which pretrains on "
                  "several robots", ("024",), (NUMBERS, "only observations that are numbers")),
        when="if observations are many single numbers; in a toy, one token for each vector was better than one for "
             "each number (claim component-tokens)."),
    "vinn-byol": NamedMethod(
        "understudy.methods.representation:vinn_byol",
        "Visual imitation by nearest neighbors, in the features of an encoder that learns from the images by BYOL.",
        Reference("Pari et al. 2021, arXiv 2112.01511, whose network is a ResNet-50 from ImageNet", ("079",),
                  (NUMBERS, CAMERAS)),
        when="if there are few demonstrations with cameras and no pretrained image network; no claim has tested it "
             "here."),
    "udrl": NamedMethod(
        "understudy.methods.return_conditioned:udrl",
        "Upside-down reinforcement learning: clone every action, given the return and the time that were left.",
        Reference("Srivastava et al. 2019, arXiv 1912.02877; Arulkumaran et al. 2022, arXiv 2202.11960, whose networks "
                  "are gated by the commands and recurrent; here offline, without new episodes", ("188",),
                  (NUMBERS_OR_CLASSES, "rewards", "while acting: a desired return, and the number of steps until "
                                                  "then")),
        when="if the data are of mixed quality with rewards, and both a return and a time limit are given while "
             "acting."),
    "decision-transformer": NamedMethod(
        "understudy.methods.return_conditioned:decision_transformer",
        "Decision Transformer: a causal transformer over returns to go, observations and actions predicts each action.",
        Reference("Chen et al. 2021, arXiv 2106.01345, with 100,000 updates and an embedding of the step within the "
                  "episode; here within the history", (),
                  (NUMBERS_OR_CLASSES, "rewards", "while acting: a desired return")),
        when="if the data are of mixed quality with rewards, and a history tells what to do; no claim has tested it "
             "here."),
    "arp": NamedMethod(
        "understudy.methods.return_conditioned:arp",
        "Adaptive return-conditioned policy: rewards are how well each observation fits the words of the task.",
        Reference("Kim et al. 2023 (ARP), arXiv 2309.10790, whose scorer is CLIP, frozen or trained further on the "
                  "demonstrations, and which also predicts the return. Here a scorer is trained on the demonstrations; "
                  "take one that knows more layouts with --stage scorer=RUN", ("237",),
                  (NUMBERS_OR_CLASSES, "tasks in words that differ between episodes")),
        when="if the task in words moves to new places; with a given scorer it did well here, with a learned one "
             "worse than cloning."),
    "decision-diffuser": NamedMethod(
        "understudy.methods.return_conditioned:decision_diffuser",
        "Decision Diffuser: diffusion plans states for a desired return, and inverse dynamics tell the actions.",
        Reference("Ajay et al. 2023, arXiv 2211.15657, with a U-Net that predicts the noise in 200 steps, plans of 100 "
                  "states whose first one is fixed, joint training and less noise in sampling", ("222",),
                  (NUMBERS, "rewards", NUMERIC_STATES, "while acting: a desired return")),
        when="if states tell what is wanted and several conditions are asked for together, each known from other "
             "episodes."),
    "dichotomy-of-control": NamedMethod(
        "understudy.methods.return_conditioned:dichotomy_of_control",
        "Dichotomy of Control: a policy reads a latent of the future that holds what actions decide, and not luck.",
        Reference("Yang et al. 2023, arXiv 2210.13435, with a transformer over the history, and latents of the whole "
                  "future", ("165",), (NUMBERS_OR_CLASSES, "rewards", "observations that are numbers")),
        when="if rewards depend on luck that no action can change; its gain in the toy here is undecided."),
    "procedure-cloning": NamedMethod(
        "understudy.methods.reasoning:procedure_cloning",
        "Procedure cloning: predict each step of the expert's search over a grid, and read the action from the last.",
        Reference("Yang et al. 2022, arXiv 2205.10816, whose search ends at the agent, with 128 to 256 channels and "
                  "500,000 updates", ("068",),
                  (NUMBERS_OR_CLASSES, "a map of cells (observation.grid) and the cell of the agent "
                                       "(observation.cell)")),
        when="if the expert plans on a map of cells and new maps must be solved."),
    "thought-cloning": NamedMethod(
        "understudy.methods.reasoning:thought_cloning",
        "Thought cloning: one policy predicts what the expert thinks, as text, and another reads it and acts.",
        Reference("Hu and Clune 2023, arXiv 2306.00323, which trains both policies together, on thoughts of its own in "
                  "later epochs, with recurrent networks and words one after the other", ("272",),
                  (NUMBERS_OR_CLASSES, "the thought of the expert at each step, as text (thought)")),
        when="if the expert says at each step what it is doing; its gain over cloning is undecided here."),
    "dagger": NamedMethod(
        "understudy.methods.interaction:dagger",
        "DAgger: the policy acts, the supervisor says what it would have done, and the policy learns that.",
        Reference("Ross et al. 2011, arXiv 1011.0686, where each round trains a new policy (reset_learner)",
                  (), (NUMBERS, "an environment with an expert, or a person")),
        when="if a policy drifts away from the demonstrations, and an expert or a person can say what to do there."),
    "td3-bc": NamedMethod(
        "understudy.methods.interaction:td3_bc",
        "TD3+BC: an actor-critic that stays close to stored actions, on demonstrations and then on its own episodes.",
        Reference("Fujimoto and Gu 2021, arXiv 2106.06860; Fujimoto et al. 2018, arXiv 1802.09477", ("200",),
                  (NUMBERS, "rewards", "an environment")),
        when="if there are rewards and an environment, and the policy shall become better than the demonstrations."),
}


def method_names() -> list[str]:
    """The names of all methods: understudy's, then those that installed packages register."""
    return [*METHODS, *(name for name in find_plugins("methods") if name not in METHODS)]


def find_method(name: str, features: Schema | None = None, trust: tuple[str, ...] = (), **options) -> Method:
    """Returns a method by its name, from "module:function", or from a method.json, run or checkpoint.

    Args:
        name: Name of a method, "module:function", the path of a method.json, or the folder of a run or checkpoint.
        features: The columns of the data that it will be trained on.
        trust: Packages besides understudy whose code may be loaded. A name that an installed package registers needs
            none.
        **options: Arguments of the function (horizon, ...), if `name` names a function.

    Raises:
        UserError: There is no such name, the function has no such option, or the data lack what
            the method needs.
        UntrustedCode: "module:function" names code of a package that is not trusted.
    """
    from ..core import ConfigError, nearest_names

    if (function := find_function(name, trust)) is not None:
        if features is not None:
            _check_needs(name, function, features, options)
        return _build_method(function, name, features, options)
    if Path(name).exists():
        if options:
            raise ConfigError(f"{name} is a method already and takes no options", where="--" + next(iter(options)),
                              hint="leave it out: any field can be set, such as --learner.steps 500")
        from ..learn.method import Method

        return Method.load(name, trust)
    if 0 < len(found := _methods_about(name)) <= MAX_MENTIONS:
        raise ConfigError(f"there is no method {name!r}, but it is mentioned by {', '.join(found)}",
                          hint=f"did you mean {found[0]!r}?" if len(found) == 1 else
                          "name one of these; understudy methods describes them")
    raise ConfigError(f"there is no method {name!r}", hint=nearest_names(name, method_names()) +
                      "understudy methods lists all; a module:function, a method.json or a run can be named too")


def _methods_about(word: str) -> list[str]:
    """Names of the methods whose name, summary or paper contains a word, upper or lower case."""
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(word.replace('_', '-'))}(?![a-z0-9])", re.IGNORECASE)
    return [m["name"] for m in _descriptions() if pattern.search(f"{m['name']} {m['summary']} {m['paper']}")]


def recommend(features: Schema) -> str:
    """Name of the method to start with: "bc" for discrete actions, else "bc-gmm".

    "bc-gmm" does not average different ways of doing the same thing, plans in one step, and trains in a minute on a
    CPU. Other methods can be better, above all `bc` where several steps must not be executed without looking (Hopper
    and Walker2d in docs/real-input.md). Compare them.

    Args:
        features: The columns of the data.
    """
    return "bc" if features["action"].kind == "discrete" else "bc-gmm"


def describe_methods() -> list[dict]:
    """Describes all methods as JSON values.

    Methods of other packages are listed and not loaded.

    Returns:
        For each method "name", "family", "rows" of the ledger, "paper", "needs" (requirements of the data),
        "summary", "when" to choose it, and "cost" (see `method_costs`; None if it was not measured).
    """
    return list(_descriptions())


def method_costs() -> dict[str, dict[str, float]]:
    """What methods cost on one CPU core, as measured by benchmarks/method_cost.py on columns of numbers.

    Returns:
        By the name of a method: "weights" (number of weights of all networks that are trained), "train_seconds" (CPU
        time of all updates) and "plan_ms" (CPU milliseconds of a step at which it plans).
    """
    from ..files import read_json

    return read_json(COSTS)["methods"]


def _descriptions() -> Iterator[dict]:
    costs = method_costs()
    for name, method in METHODS.items():
        yield _description(name, method, costs.get(name))
    for name, entry in find_plugins("methods").items():
        if name not in METHODS:
            yield {"name": name, "family": package_of(entry), "rows": [], "paper": "", "needs": [],
                   "summary": f"Registered by the package {package_of(entry)}.", "when": "", "cost": None}


def describe_method(name: str) -> dict | None:
    """Describes one method, with the keys of `describe_methods`.

    A method that another package registers is loaded.

    Args:
        name: Name of the method.

    Returns:
        The description. None if there is no such name.
    """
    name = name.replace("_", "-")
    if name in METHODS:
        return _description(name, METHODS[name], method_costs().get(name))
    if name not in find_plugins("methods"):
        return None
    found = load_plugin("methods", name)
    if isinstance(found, NamedMethod):
        return _description(name, found)
    description = next(d for d in _descriptions() if d["name"] == name)
    return {**description, "summary": (inspect.getdoc(found) or description["summary"]).partition("\n")[0]}


def _description(name: str, method: NamedMethod, cost: dict[str, float] | None = None) -> dict:
    reference = method.reference
    return {"name": name, "family": method.family, "rows": list(reference.rows), "paper": reference.paper,
            "needs": [need.text if isinstance(need, Need) else need for need in reference.needs],
            "summary": method.summary, "when": method.when, "cost": cost}


def _check_needs(name: str, function: Callable[..., Method], features: Schema, options: Mapping[str, Any]) -> None:
    """Checks the requirements of a named method on the columns of the data."""
    method = METHODS.get(name := name.replace("_", "-"))
    defaults = {p.name: p.default for p in inspect.signature(function).parameters.values()}
    for need in method.reference.needs if method is not None else ():
        if isinstance(need, Need):
            need.check(name, features, {**defaults, **options})


def find_function(name: str, trust: tuple[str, ...] = ()) -> Callable[..., Method] | None:
    """Returns the function that builds a method.

    Args:
        name: Name of a method, or "module:function".
        trust: Packages besides understudy whose code may be loaded.

    Returns:
        The function. None if `name` is the path of a file or folder, or unknown.

    Raises:
        UserError: There is no such module or function.
        UntrustedCode: It is code of a package that is not trusted.
    """
    known = name.replace("_", "-")
    if known in METHODS:
        return _import_function(METHODS[known].function, name)
    if known in find_plugins("methods"):
        found = load_plugin("methods", known)
        return _import_function(found.function, name) if isinstance(found, NamedMethod) else _callable(found, name)
    if ":" not in name or Path(name).exists():
        return None
    from ..config import UntrustedCode

    package = name.partition(":")[0].split(".")[0]
    if package not in ("understudy", *trust):
        raise UntrustedCode(f"{name} is outside the trusted packages ({', '.join(('understudy', *trust))})",
                            hint=f"add --trust {package} if you trust that code to run")
    return _import_function(name, name)


def _import_function(path: str, name: str) -> Callable[..., Method]:
    from ..core import ConfigError
    from ..user_code import import_module

    module, _, attribute = path.partition(":")
    imported = import_module(module, name)
    try:
        found = getattr(imported, attribute)
    except AttributeError:
        near = difflib.get_close_matches(attribute, dir(imported), 1)
        raise ConfigError(f"there is no {attribute!r} in the module {module}", where=name,
                          hint=f"did you mean {module}:{near[0]}?" if near else "check the name after the colon"
                          ) from None
    return _callable(found, name)


def _callable(found, name: str) -> Callable[..., Method]:
    """The function, or an error that says what stands in its place."""
    from ..core import ConfigError
    from ..learn.method import Method
    from ..policy import PolicyConfig

    if callable(found):
        return found
    attribute = name.rpartition(":")[2].replace("-", "_")
    if isinstance(found, NamedMethod):
        raise ConfigError("this is a NamedMethod, which gives an entry point of a package its function", where=name,
                          hint=f"name the function itself: {found.function}")
    value = f"Method({attribute})" if isinstance(found, PolicyConfig) else attribute
    is_part = isinstance(found, (Method, PolicyConfig))
    article = "an" if type(found).__name__[0] in "aeiou" else "a"
    raise ConfigError(
        f"this is {article} {type(found).__name__}, and not a function", where=name,
        hint=f"write a function that returns it, and name the function: def {attribute.lower()}_method(): return "
             f"{value}" if is_part else "name a function in that module")


def _build_method(function: Callable[..., Method], name: str, features: Schema | None, options: dict) -> Method:
    from ..core import ConfigError
    from ..learn.method import Method

    known = inspect.signature(function).parameters
    for key in options:
        if key not in known or key == "features":
            near = difflib.get_close_matches(key, known, 1)
            raise ConfigError(f"{name} has no option {key!r}; it has {', '.join(k for k in known if k != 'features')}",
                              hint=f"did you mean {near[0]!r}?" if near else "leave it out")
    method = function(**options, **({"features": features} if "features" in known else {}))
    if not isinstance(method, Method):
        raise ConfigError(f"the function returned {type(method).__name__} instead of a Method", where=name,
                          hint="return understudy.Method(...) from it")
    return method
