"""Every named method: found by its name, plain data, and able to train and act."""

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import BENCHMARKS

from understudy import config, make
from understudy.commands.methods import cost_texts
from understudy.commands.parts.conditions import open_conditions
from understudy.commands.train import _check_policy_fits
from understudy.config import UntrustedCode
from understudy.core import ConfigError, DataError, Feature, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import EXPERT
from understudy.data.shown_demonstration import DEMONSTRATION
from understudy.data.text_columns import TaskText
from understudy.evaluate.evaluation import recording_seed, tuning_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import LAST_REWARD
from understudy.files import write_json
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.likelihood.bins import Bins
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.method import build_actor, policy_features, training_data
from understudy.learn.train import train
from understudy.methods import (
    describe_method,
    describe_methods,
    find_function,
    find_method,
    method_costs,
    method_files,
    needs,
    read_info,
    recommend,
)
from understudy.methods.behavior_cloning.bc import bc
from understudy.nets.transformer import Transformer
from understudy.policy import Policy
from understudy.testing import ContractViolation, check_method, example_columns, random_dataset

FEATURES = {"observation.environment_state": Feature("float32", (3,)), "observation.state": Feature("float32", (2,)),
            "action": Feature("float32", (2,))}
CHOICES = {**FEATURES, "action": Feature("int64", (1,), "discrete", num_classes=(4,))}
LEARN_CLASSES = ["attention-tuner", "bc", "cec", "interactive-language", "one-shot", "skill-bc", "dwsl", "gcivl",
    "hilp", "hiql", "abco", "bco", "cilo", "vpt", "discrete-bcq", "discrete-cql", "history-iql", "iql", "nfq",
    "discrete-sac", "dqn", "dvpo", "loop", "ppo", "procedure-cloning", "thought-cloning", "bc-inverse-dynamics",
    "dualmind", "dynamo", "icvf", "midas", "knn", "vinn", "arp", "decision-transformer", "dichotomy-of-control",
    "udrl", "composite-motion", "ele", "gail", "sarm", "omnijarvis"]
LEARN_CLASSES_ELSEWHERE = [  # they need other columns, and have own tests of classes
    "abco", "bco", "cilo", "attention-tuner", "composite-motion", "ele", "gail", "interactive-language", "history-iql",
    "iql", "dvpo", "loop", "ppo", "procedure-cloning", "thought-cloning", "dualmind", "midas", "arp", "omnijarvis",
    "discrete-bcq", "discrete-cql", "discrete-sac", "dqn", "nfq", "skill-bc"]
LARGE = ("ptp", "sgac", "vq-bet")  # networks that take seconds here; smaller ones of these kinds are tested elsewhere


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in method_files()])
def test_contract(name):
    check_method(name)


@pytest.mark.parametrize(("function", "message"), [
    ("looping(horizon: int = 1):\n    for _ in range(2):\n        pass\n    return bc(horizon)", "without For"),
    ("long(horizon: int = 1):\n" + "    horizon = 1\n" * 20 + "    return bc(horizon)", "at most 20 lines"),
    ("untyped(horizon=1):\n    return bc(horizon)", "horizon needs a type"),
    ("required(horizon: int):\n    return bc(horizon)", "horizon needs a default"),
    ("late():\n    return replace(bc(4), executor=RecedingHorizon(2, skip=1))", "chunks that begin 1 steps before"),
    ("lax():\n    return bc()", "data without rewards must be refused"),
])
def test_the_contract_can_fail(function, message, tmp_path, monkeypatch):
    (tmp_path / "bad_methods.py").write_text(
        "from dataclasses import replace\nfrom understudy import RecedingHorizon\n"
        "from understudy.methods import method\nfrom understudy.methods.behavior_cloning.bc import bc\n"
        "from understudy.methods.needs import NUMBERS, REWARDS\n\n\n"
        f"@method('Somebody 2026', when='if it must fail.', needs=(NUMBERS, REWARDS))\ndef {function}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((ContractViolation, UserError), match=message):
        check_method(f"bad_methods:{function.partition('(')[0]}", trust=("bad_methods",))


@pytest.mark.parametrize("name", ["arp", "dualmind"])
def test_words_may_be_a_column_of_the_data(name):
    check_method(name, {**FEATURES, "observation.task": Feature("uint8", (8,), "text")})


@pytest.mark.parametrize("name", LARGE)
def test_what_is_carried_out_is_what_was_meant(name):
    method = find_method(name, FEATURES)
    window, executor = method.policy.window, method.executor
    executor.check_planner(Policy(method.policy, FEATURES))
    assert executor.skip == -window.action_offset and executor.skip + executor.n_action_steps <= window.horizon


def test_diffusion_policy_is_the_five_million_u_net():
    method = find_method("diffusion-policy")
    door = {"observation.state": Feature("float32", (39,)), "action": Feature("float32", (28,))}
    policy = Policy(method.policy, door)
    assert 4.5e6 < sum(p.numel() for p in policy.parameters()) < 5.5e6
    head, window, run = method.policy.head, method.policy.window, method.executor
    assert head == Diffusion(n_steps=10, prediction="sample")
    assert (window.n_obs_steps, window.horizon, run.n_action_steps, run.skip) == (2, 16, 8, 1)
    assert find_method("diffusion-policy", prediction="epsilon").policy.head == Diffusion(n_steps=10)  # the paper's
    assert isinstance(find_method("diffusion-policy", trunk="transformer").policy.trunk, Transformer)


def test_dp3_reads_clouds_as_sets_and_other_columns_as_vectors():
    clouds = {"observation.points": Feature("float32", (16, 3)), "observation.camera": Feature("float32", (16, 6))}
    method = find_method("dp3", {**clouds, "observation.matrix": Feature("float32", (4, 4)), **FEATURES})
    assert method.policy.encoder.point_clouds == method.policy.codec.unscaled == tuple(clouds)
    data = random_dataset({**clouds, **FEATURES}, episodes=2, steps=6)
    policy = Policy(method.policy, data.features()).fit_statistics(data).eval()
    obs = dict(policy.windows(data).batch(3, 0).obs)
    noise = policy.noise(keys(0, range(3)), torch.zeros(3, dtype=torch.int64))
    shuffled = {**obs, "observation.points": obs["observation.points"].flip(2)}
    torch.testing.assert_close(policy.plan(shuffled, noise), policy.plan(obs, noise), rtol=1e-4, atol=1e-5)


def test_dp3_reads_clouds_with_further_channels_by_their_names():
    with_intensity, poses = Feature("float32", (16, 4)), {"observation.poses": Feature("float32", (4, 4))}

    def clouds(name, **options):
        return find_method("dp3", {**FEATURES, **poses, name: with_intensity}, **options).policy.encoder.point_clouds
    for name in ("observation.point_cloud", "observation.front.pointcloud", "observation.points"):
        assert clouds(name) == (name,)
    for name in ("observation.lidar", "observation.waypoints", "observation.keypoints"):
        with pytest.raises(UserError, match=rf"--point-clouds COLUMN: .*{name} \(16, 4\)"):
            clouds(name)
        assert clouds(name, point_clouds=(name,)) == (name,)
    with pytest.raises(UserError, match="no column 'lidar'; .*: observation.poses, observation.lidar"):
        clouds("observation.lidar", point_clouds=("lidar",))
    with pytest.raises(UserError, match=r"column 'observation.state': A point cloud has the shape"):
        clouds("observation.lidar", point_clouds=("observation.state",))


def test_bc_looks_at_the_actions():
    assert isinstance(find_method("bc", FEATURES).policy.head, Regression)
    assert isinstance(find_method("bc", CHOICES).policy.head, Categorical)
    assert isinstance(find_method("bc").policy.head, Regression)
    assert find_method("bc", horizon=3) == bc(3)


def test_names():
    assert find_method("bc_rnn_gmm") == find_method("bc-rnn-gmm")
    with pytest.raises(UserError, match="did you mean 'diffusion-policy'"):
        find_method("difusion-policy")
    with pytest.raises(UserError, match="did you mean 'horizon'"):
        find_method("bc", horizont=3)
    with pytest.raises(UserError, match="knn has no option 'obsolete'"):
        find_method("knn", obsolete=1)


def test_methods_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "from understudy.methods.behavior_cloning.bc import bc\ndef mine(horizon: int = 5): return bc(horizon)\n"
        "def wrong(): return 3\nnumber = 3\nBC = bc(2)\nPOLICY = BC.policy\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UntrustedCode, match="--trust elsewhere"):
        find_method("elsewhere:mine")
    assert not (tmp_path / "ran").exists() and "elsewhere" not in sys.modules  # refused before it could run
    assert find_method("elsewhere:mine", trust=("elsewhere",)) == bc(5)
    assert find_method("elsewhere:mine", trust=("elsewhere",), horizon=2) == bc(2)
    for name, words in (("elsewhere:wrong", "returned int instead of a Method"),
                        ("elsewhere:number", "this is an int, and not a function\n  -> name a function"),
                        ("elsewhere:BC", r"this is a Method, and not a function\n  -> .* def bc_method.*: return BC$"),
                        ("elsewhere:POLICY", r"this is a PolicyConfig, .*\n.* return Method.POLICY.$"),
                        ("elsewhere:min", "elsewhere has no function 'min'; it has .*\n  -> did you mean 'mine'"),
                        ("elsewhere:absent", "elsewhere has no function 'absent'")):
        with pytest.raises(UserError, match=words):
            find_method(name, trust=("elsewhere",))
    with pytest.raises(UserError, match="there is no module 'nowhere_at_all"):
        find_method("nowhere_at_all:mine", trust=("nowhere_at_all",))
    assert find_method("understudy.methods.behavior_cloning.bc:bc") == bc()


@pytest.mark.parametrize(("word", "message"), [
    ("sailor", r"is mentioned by skill-retrieval\n.*did you mean 'skill-retrieval'"),  # in the paper
    ("2210.11435", "is mentioned by skill-retrieval"),
    ("autoencoder", "is mentioned by .*opal"),  # in the summary
    ("diffusion", r"is mentioned by .*diffusion-policy.*\n.*name one of these"),  # in the name
    ("diffusion-polici", "there is no method 'diffusion-polici'\n.*did you mean 'diffusion-policy'"),
    ("ailo", "there is no method 'ailo'\n"),  # part of a word
])
def test_an_unknown_name_suggests_the_methods_that_mention_it(word, message):
    with pytest.raises(UserError, match=message):
        find_method(word)


def test_an_unknown_name_shows_the_few_nearest_and_how_to_list_all():
    listing = "understudy methods lists all; a module:function, a method.json or a run can be named too"
    for name, suggestion in (("nope", ""), ("arXiv", ""), ("GCBX", "did you mean 'gcbc'? "),
                             ("vinn-byo", "did you mean 'vinn-byol' or 'vinn'? ")):
        with pytest.raises(ConfigError) as refusal:
            find_method(name)
        assert str(refusal.value) == f"there is no method {name!r}\n  -> {suggestion}{listing}"


def test_methods_from_files(tmp_path):
    write_json(tmp_path / "method.json", config.dump(bc(4)))
    assert find_method(str(tmp_path / "method.json")) == bc(4)
    with pytest.raises(UserError, match="takes no options"):
        find_method(str(tmp_path / "method.json"), horizon=2)
    with pytest.raises(UserError, match="there is no method"):
        find_method(str(tmp_path / "absent.json"))


def test_descriptions():
    described = {d["name"]: d for d in describe_methods()}
    assert list(described) == list(method_files())
    assert set(described) >= {"bc", "bc-gmm", "bc-rnn-gmm", "gcbc", "diffusion-policy", "flow-policy", "mip", "act",
                              "knn",
                              "vinn"}
    for d in described.values():
        assert list(d) == ["name", "family", "rows", "paper", "needs", "summary", "when", "cost"]
        assert d["when"].startswith("if ") and d["when"].endswith(".") and len(d["when"]) < 160
        assert d["cost"]["weights"] >= 0 and d["cost"]["train_seconds"] > 0 and d["cost"]["plan_ms"] > 0, (
            f"run python benchmarks/method_cost.py {d['name']}")
        assert all(re.fullmatch(r"\d{3}", r) for r in d["rows"])  # a method outside the ledger has none
        assert re.search(r"\b(19|20)\d\d\b", d["paper"]) and d["summary"].endswith(".") and all(d["needs"])
    assert described["mip"]["rows"] == ["264"] and "2512.01809" in described["mip"]["paper"]
    assert described["act"]["rows"] == ["158"] and described["act"]["family"] == "chunking"


@pytest.mark.parametrize("name", method_files())
def test_what_is_listed_is_what_is_imported(name):
    function = find_function(name)
    assert read_info(name)[1] == function.info
    assert read_info(name)[0] == " ".join(function.__doc__.split("\n\n")[0].split())
    assert function.__module__.split(".")[-2:] == [describe_method(name)["family"], name.replace("-", "_")]


def test_the_decorator_of_a_method_is_read_without_running_code():
    constants = {k for k in vars(needs) if k.isupper()}
    for path in method_files().values():
        (call,) = [d for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
                   for d in n.decorator_list if isinstance(d, ast.Call) and ast.unparse(d.func) == "method"]
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        others = [ast.unparse(n) for a in arguments for n in ast.walk(a) if not (
            isinstance(n, (ast.Constant, ast.Tuple, ast.Load)) or isinstance(n, ast.Name) and n.id in constants)]
        assert not others, f"{path.name}: write literals and constants of methods/needs.py in place of {others}"
    code = "import sys, understudy.methods as m; m.describe_methods(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["bc", "gcbc", "act", "knn", "reflow-policy"])
def test_costs_are_those_of_the_methods_as_they_are(name):
    """The number of weights tells whether a method was measured again after its networks changed."""
    spec = importlib.util.spec_from_file_location("method_cost", BENCHMARKS / "method_cost.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    method = find_method(name, features := bench.columns(name))
    policies = [Policy(m.policy, policy_features(m, features)) for m in (method, *(s.method for s in method.stages))]
    assert sum(p.numel() for policy in policies for p in policy.parameters()) == method_costs()[name]["weights"]


def test_a_cost_is_told_in_units_of_its_size():
    assert cost_texts(None) is None
    cost = {"weights": 2_340_000, "train_seconds": 90.0, "plan_ms": 0.123}
    assert cost_texts(cost) == ("2.3 M", "1.5 min", "0.12 ms")
    assert cost_texts({"weights": 45_600, "train_seconds": 5400.0, "plan_ms": 123.4}) == ("46 k", "1.5 h", "123 ms")


@pytest.mark.parametrize("name", method_files())
def test_what_needs_numbers_refuses_choices_before_it_trains(name):
    able = {d["name"]: any("classes" in need for need in d["needs"]) for d in describe_methods()}
    assert [n for n in able if able[n]] == LEARN_CLASSES
    if not able[name]:
        with pytest.raises(UserError, match=f"{name}, column 'action': the actions are classes, but this method "
                           "learns numbers\n  -> .* learn classes") as error:
            find_method(name, CHOICES)
        told = str(error.value).rpartition("-> ")[2].removesuffix(" learn classes").split(", ")
        family = {d["name"] for d in describe_methods() if d["family"] == describe_method(name)["family"]}
        assert set(told) <= {*LEARN_CLASSES} - {"attention-tuner"} and {"bc", "iql"} & set(told)  # needs more
        assert sorted(told, key=lambda other: other not in family) == told, "those of the same family come first"
        return
    if name in LEARN_CLASSES_ELSEWHERE:
        return
    # Which of two lights is on decides the choice, and every method that says so learns it.
    light = np.random.default_rng(0).integers(2, size=40)  # does not depend on the last choice
    data = Dataset([Episode({"observation.state": np.eye(2, dtype=np.float32)[light], "action": 1 + 2 * light[:, None],
                             "next.reward": np.ones(40, np.float32)}, {"proficiency": 1, "task": "look"})] * 2)
    features = {"observation.state": Feature("float32", (2,)), "action": CHOICES["action"],
                "next.reward": Feature("float32", ())}
    data = data.map(lambda e: replace(e, schema=features))
    shorter = {"n_obs_steps": 2} if name in ("decision-transformer", "cec") else {}
    method = find_method(name, data.features(), **shorter)
    if warmup := getattr(getattr(method.learner, "optimizer", None), "warmup_steps", 0):  # too slow for 120 updates
        faster = replace(method.learner.optimizer, lr=1e-3, warmup_steps=warmup // 100)
        method = replace(method, learner=replace(method.learner, optimizer=faster))
    data = training_data(data, method)
    torch.manual_seed(0)  # of the first weights
    policy = Policy(method.policy, data.features()).fit_statistics(data)
    learner = method.learner.build(policy, 0, 120, data)
    windows = learner.batch_sampler(data)
    obs = {"observation.state": torch.eye(2).repeat(50, 1), LAST_REWARD: torch.zeros(100)}
    obs |= {k: torch.zeros(100, 1) for k in open_conditions(method, features)}
    obs |= {k: torch.zeros(100, *f.shape) for k, f in policy.features.items() if k.startswith(DEMONSTRATION)}
    obs |= {goal.into: obs[goal.column] for goal in method.policy.window.goals}
    n_updates = min(method.learner.steps, 120)
    for start in range(0, n_updates, 30):
        fit(learner, lambda n: windows.batch(32, n), min(start + 30, n_updates), start=start)
        actor = build_actor(method, {**learner.modules, "policy": learner.trained_policy.eval()})
        # Some draw their choice, so one choice alone says little, and which one it is differs between processors.
        action, _ = actor.act(obs, actor.start(obs, keys(0, range(100))))
        if (share := (action.flatten() == torch.tensor([1.0, 3.0]).repeat(50)).float().mean()) > 0.95:
            break
        learner.trained_policy.train()
    assert share > 0.9


STATES = {"observation.state": FEATURES["observation.state"], "action": FEATURES["action"]}
IMAGES = {"observation.images.top": Feature("uint8", (16, 16, 3), "image"), "action": FEATURES["action"]}
REWARD = {"next.reward": Feature("float32", ())}
CLASSES = {**STATES, **REWARD, "observation.state": Feature("int64", (1,), "discrete", num_classes=(3,))}
# For each need: columns without it, and what the error says. None for what is needed only while acting.
WITHOUT = {
    **dict.fromkeys((needs.NUMBERS.text, needs.SOME_NUMBERS.text), (CHOICES, "the actions are classes")),
    needs.CLASSES.text: (STATES, "the actions are numbers"),
    "actions that are numbers or classes": None,  # `open_data` refuses data without actions
    "observations and actions that are numbers or classes": (IMAGES, "cannot read a column of kind 'image'"),
    "a column with the distances to the recalled steps": (STATES, "there is no column recalled"),
    needs.PLACES.text: (STATES, "there is no column place"), needs.SKILLS.text: (STATES, "there is no column 'skill'"),
    "a column of text that says what is done at each step, or segments in the metadata of the episodes": (
        STATES, "column 'subtask': it is missing"),
    "a field of the episodes that orders the demonstrators": (STATES, "there is no field 'proficiency'"),
    needs.POINT_CLOUDS.text: (STATES, "no point cloud"),
    "cameras: without them the encoder has nothing to learn from": (STATES, "no camera"),
    "no cameras": ({**STATES, **IMAGES}, "cannot read a column of kind 'image'"),
    "no cameras in the embedding": (STATES, "no part 'prior'"),  # which is needed too
    "tasks in words that differ between episodes": (STATES, "no episode has a task in words"),
    "a task in words": (STATES, "no episode has a task in words"),
    "a task in words, or another column that says what to do (--prompt)": (
        STATES, "no episode has a task in words"),
    "a task in words for some episodes": (STATES, "no episode has a task in words"),
    "states that are numbers": (CLASSES, "is not a vector of numbers|the states are of kind 'discrete'"),
    "observations that are numbers": (CLASSES, "is of kind 'discrete'"),
    "several episodes of each of many tasks, which have a name": (STATES, "the episode has no task"),
    "only observations that are numbers": (CLASSES, "cannot read a column of kind 'discrete'"),
    "one square camera image, and actions that are one motion: where to pick, where to place, and the turn": (
        STATES, "0 square images"),
    "rewards": (STATES, "there is no column '?next.reward"),
    "rewards, and which steps ended an episode (next.terminated)": (STATES, "there is no column '?next.reward"),
    "which steps ended an episode (next.terminated)": (STATES, "there is no column next.terminated"),
    "prior data (--prior)": (STATES, "no part 'prior'"),
    "rewards, and prior data (--prior) whose actions are ignored": (STATES, "no part 'task'"),
    "prior data: the robot moves away from the start of each demonstration": (STATES, "there is no field 'data"),
    "actions that are velocities of an observed pose": (STATES, "there is no field 'data"),  # cannot be seen
    "an environment": ({**STATES, **IMAGES}, "no environment to collect them in"),
    **dict.fromkeys((
        needs.AN_ENVIRONMENT_FOR_ROUNDS, "an environment with an expert, or a person", "an environment that tells "
        "success", "an environment that can be put into demonstrated states"), (STATES, "no environment to collect")),
    needs.OTHER_EPISODES: (STATES, "all 3 episodes are demonstrations"),
    needs.PRACTICE: (STATES, "3 of 3 episodes are demonstrations"),
    needs.SOME_ACTIONS: ({k: f for k, f in STATES.items() if k != "action"}, "no episode has actions"),
    needs.COMPARISONS.text: (STATES, "there are no columns 'segment' and 'preference'"),
    needs.TRACES: (STATES, "a trace needs two steps and the metadata field 'trace'"),
    needs.OBJECTS.text: (STATES, "no column 'observation.objects'"),
    needs.PATHS.text: (STATES, "the actions have 2 numbers, but 4 points have 8"),
    "a map of cells (observation.grid) and the cell of the agent (observation.cell)": (STATES, "'observation.grid'"),
    "the thought of the expert at each step, as text (thought)": (STATES, "there is no column 'thought'"),
    "objects of shape (objects, features), and prompts: a class of words and an object at each position": (
        STATES, "no column 'observation.objects'"),
    "for cameras the weights of a ResNet-18 (the extra hub)": None,  # fetched when they are read
}


@pytest.mark.parametrize("name, need", [(d["name"], need) for d in describe_methods() for need in d["needs"]
                                        if not need.startswith("while acting")])
def test_what_a_method_needs_is_refused_where_it_is_missing(name, need, tmp_path):
    if (case := WITHOUT[need]) is None:
        return
    features, words = case
    if needs.CLASSES.text in describe_method(name)["needs"] and need != needs.CLASSES.text:
        features = {**features, "action": CHOICES["action"]}
    data = random_dataset(features, episodes=3, steps=12)
    if need != needs.OTHER_EPISODES in describe_method(name)["needs"]:
        data = Dataset([*data[:2], replace(data[2], metadata={EXPERT: False})])
    with pytest.raises(UserError, match=words):
        method = find_method(name, data.features())
        env = None if need.startswith("an environment") or method.collection is None else make("fork", 1)
        train(method, data, tmp_path / "run", steps=1, env=env)


@pytest.mark.parametrize("name", method_files())
def test_a_method_that_reads_words_says_that_it_needs_them(name):
    method = find_method(name, example_columns(name))
    reads = any(isinstance(part, TaskText) for part in method.transforms)
    needed = [need for need in describe_method(name)["needs"] if not need.startswith("while acting")]
    says = any("in words" in need or "in the metadata of the episodes" in need for need in needed)
    assert reads == says


def test_words_that_are_missing_are_asked_for_with_the_command_that_adds_them(tmp_path):
    data = random_dataset(STATES, episodes=3, steps=12)
    data = Dataset(list(data), {"path": "demos"})
    method = find_method("omnijarvis", data.features())
    with pytest.raises(DataError, match="demos: no episode has a task in words") as refused:
        train(method, data, tmp_path / "run", steps=1)
    assert "view make demos --out told.json --label task=WORDS" in str(refused.value)
    assert not list(tmp_path.iterdir())
    (stage,) = find_method("dualmind", data.features()).stages  # a representation is learned without words
    short = replace(stage.method, learner=replace(stage.method.learner, steps=1))
    train(short, data, tmp_path / "trunk")
    with pytest.raises(DataError, match="no episode has a task in words"):
        train(find_method("dualmind", data.features()), data, tmp_path / "run", stages={"trunk": tmp_path / "trunk"})
    same = data.map(lambda e: replace(e, metadata={**e.metadata, "task": "go"}))
    with pytest.raises(DataError, match="all episodes have the same words"):
        train(find_method("arp", data.features()), same, tmp_path / "run", steps=1)


def test_a_goal_that_is_drawn_takes_the_place_of_a_goal_in_the_data():
    features = {**STATES, "observation.goal": STATES["observation.state"]}
    data = random_dataset(features, episodes=3, steps=12)
    for name in ("gcbc", "beso"):
        window = find_method(name, features).policy.window
        batches = [window.windows(d, ("observation.goal",), "action").batch(8, 0).obs["observation.goal"]
                   for d in (data, data.map(lambda e: e.replace({"observation.goal": None})))]
        assert batches[0].equal(batches[1])


@pytest.mark.parametrize("name", ["gcbc", "beso", "mdt", "play-lmp", "maskdp"])
def test_goals_are_values_of_an_observed_column(name):
    data = random_dataset(FEATURES, episodes=3, steps=12).map(lambda e: replace(e, metadata={"task": "go"}))
    listed = r"the observed columns are observation\.environment_state.* observation\.state.*\n  -> name one of them"
    with pytest.raises(ConfigError, match=f"column: the column 'action' is not observed; {listed}"):
        method = find_method(name, data.features(), column="action")
        first = method.stages[0].method if method.stages else method
        fit_method(replace(first, learner=replace(first.learner, steps=1)), data, 0)


@pytest.mark.slow
def test_bc_bins_goes_one_of_two_ways():
    """Demonstrations of fork pass a pillar left or right. Their mean is the pillar."""
    head = find_method("bc-bins", n_bins=8, edges="quantile", autoregressive=False).policy.head
    assert head == Bins(8, "quantile", False)
    env = make("fork", 50)
    data = rollout(env.expert(), env, 60, recording_seed(0))
    method = find_method("bc-bins")
    result = fit_method(replace(method, learner=replace(method.learner, steps=300)), data, 0)
    done = rollout(result.actor, env, 100, tuning_seed(0))
    assert np.mean([e.steps["next.success"].any() for e in done]) > 0.7
    side = np.array([e.steps["observation.state"][:, 1].mean() > 0 for e in done])
    assert 0.1 < side.mean() < 0.9  # both ways


@pytest.mark.slow
def test_gcbc_reaches_goals_that_are_images():
    """Which side of the image is bright tells the action where the goal differs, and numbers are read as before."""
    assert find_method("gcbc", STATES) == find_method("gcbc")  # nothing changes for numbers
    rng = np.random.default_rng(0)
    side = rng.integers(2, size=(60, 2))
    frames = np.zeros((60, 2, 16, 16, 3), np.uint8)
    for e, (now, later) in enumerate(side):
        frames[e, 0, :, 8 * now:8 * now + 8] = frames[e, 1, :, 8 * later:8 * later + 8] = 255
    move = (side[:, 1] - side[:, 0]).astype(np.float32)  # from the image of the first step to the goal, the second
    data = Dataset([Episode({"observation.images.top": np.repeat(frames[e], (1, 3), axis=0),
                             "action": np.array([[move[e]], [0], [0], [0]], np.float32)},
                            schema={"observation.images.top": IMAGES["observation.images.top"],
                                    "action": Feature("float32", (1,))}) for e in range(60)])
    method = find_method("gcbc", data.features(), column="observation.images.top")
    method = replace(method, learner=replace(method.learner, steps=150, batch_size=64))
    policy = fit_method(method, data, 0).policy
    now, goal = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).T
    bright = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    bright[0, :, :8] = bright[1, :, 8:] = 255
    obs = {"observation.images.top": bright[now][:, None], "observation.goal": bright[goal][:, None]}
    plan = policy.plan(obs, policy.noise(torch.arange(4), torch.zeros(4, dtype=torch.int64)))
    assert (plan.flatten() - (goal - now)).abs().max() < 0.3


def test_rows_are_in_the_ledger(shared):
    ledger_ids = {line.split("\t")[0] for line in (shared / "ledger/ledger.tsv").read_text().splitlines()[1:]}
    assert {r for d in describe_methods() for r in d["rows"]} <= ledger_ids


def test_whether_a_policy_can_act_somewhere_is_known_without_its_pretrained_weights():
    env = make("push-images", 1)
    data = rollout(env.expert(), env, 1, seed=recording_seed(0))
    method = find_method("vinn", weights="nowhere.safetensors")
    _check_policy_fits(method, data, env)
    with pytest.raises(UserError, match="observation.images.top"):
        _check_policy_fits(method, data, make("fork", 1))


def test_what_is_recommended_can_learn_the_actions():
    for feature in (Feature("float32", (2,)), Feature("int64", (1,), "discrete", num_classes=(3,))):
        features = {"observation.state": Feature("float32", (3,)), "action": feature}
        Policy(find_method(recommend(features), features).policy, features)
