"""Row 309: do episodes without words raise how often instructions are followed, if few episodes have words?"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    RATE,
    SCORE,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Feature, normal, uniform
from understudy.data.column_changes import ConstantColumn
from understudy.data.episode import Dataset
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, CountingActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.wrappers import WrappedActor
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.latent_labels import SKILL, LatentLabels
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.skills.groot_2 import InstructedAutoencoder, groot_2
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

ROWS, N_THINGS = 100, 6  # environments side by side; things on the table
REACH, SPEED = 0.12, 0.1  # m; m a step
STATE, AROUND, TASK = "observation.state", "observation.environment_state", "observation.task"
ANGLES = 2 * np.pi * np.arange(N_THINGS) / N_THINGS
PLACES = 0.75 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32)


class NamedThings(Toy):
    """A hand goes to the one of six things on a table that a word names, and must touch no other thing.

    Each thing lies near its own place on a circle. observation.state (2): position of the hand, m, from -1 to 1.
    observation.environment_state (12): positions of the things, m. observation.task (1): the word, a class.
    observation.task? (1): whether it is given. action (2): velocity, where 1 is 0.1 m in a step of 0.1 s, clipped to
    [-1, 1]. Touching a thing ends the episode, with success if it is the named one.

    Best possible success: 1.0. `NamedThingsExpert(noise=0)` attains it.

    Args:
        limit: Number of steps of an episode.
        shift: Largest distance of a thing from its place along each axis, m.
    """

    state_columns = (STATE, AROUND, TASK)

    def __init__(self, rows: int = 1, limit: int = 30, shift: float = 0.2):
        self.shift = shift
        self.features = {
            STATE: named_vector("x", "y", unit="m"),
            AROUND: named_vector(*(f"{i}.{axis}" for i in range(N_THINGS) for axis in "xy"), unit="m"),
            TASK: Feature("int64", (1,), "discrete", num_classes=(N_THINGS,)), TASK + "?": Feature("bool", ()),
            "action": named_vector("x", "y")}
        self.metadata = {"env": "named_things", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": f"within {REACH} m of the thing that is named, and of no other before"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        zero = torch.zeros_like(key)
        drawn = uniform(key, zero, (3,)).numpy()
        shift = self.shift * (2 * uniform(key, zero, (N_THINGS, 2), stream=1).numpy() - 1)
        return {"at": (0.6 * drawn[:, :2] - 0.3).astype(np.float32), "things": (PLACES + shift).astype(np.float32),
                "named": (N_THINGS * drawn[:, 2]).astype(np.int64)}

    def observe(self):
        s = self.state
        return {STATE: s["at"], AROUND: s["things"].reshape(self.rows, -1), TASK: s["named"][:, None],
                TASK + "?": np.ones(self.rows, bool)}

    def state_from_columns(self, steps):
        return {"at": steps[STATE], "things": steps[AROUND].reshape(len(steps[STATE]), -1, 2),
                "named": steps[TASK][:, 0]}

    def advance(self, action):
        s = self.state
        s["at"] = np.clip(s["at"] + np.float32(SPEED) * action, -1, 1)
        touched = distance(s["things"], s["at"][:, None]) < REACH
        success = touched[np.arange(self.rows), s["named"]]
        return success, success, touched.any(1) & ~success

    def expert(self):
        return NamedThingsExpert()

    def map(self):
        things = [{"kind": "circle", "at": tuple(map(float, at)), "radius": REACH, "role": "goal"} for at in PLACES]
        return {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "path": (STATE, 0, 1), "shapes": things}

    def frame(self, row):
        from understudy.envs.raster import render_map

        things = [{"kind": "circle", "at": tuple(at), "radius": REACH, "role": "goal"}
                  for at in self.state["things"][row]]
        hand = {"kind": "circle", "at": tuple(self.state["at"][row]), "radius": 0.03, "role": "agent"}
        return render_map({**self.map(), "shapes": things}, [hand])


@dataclass(frozen=True)
class NamedThingsExpert(CountingActor):
    """Goes straight to the named thing.

    Args:
        noise: Standard deviation of Gaussian noise on the action.
    """

    noise: float = 0.2

    def act(self, obs, state):
        things = obs[AROUND].unflatten(1, (N_THINGS, 2))
        ahead = things[torch.arange(len(things)), obs[TASK][:, 0]] - obs[STATE]
        action = ahead / ahead.norm(dim=1, keepdim=True).clamp(min=SPEED)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action.float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class FewWords(DemonstrationSource):
    """Successful episodes of the expert, of which some have words.

    Args:
        episodes: Number of episodes to roll out.
        per_word: Number of episodes with words for each word. None gives words to all.
        shuffled: The words are exchanged between the episodes that have them, so that all are wrong.
    """

    episodes: int
    per_word: int | None
    shuffled: bool = False

    @cached_load
    def load(self, seed):
        env = NamedThings(ROWS)
        rollouts = rollout(env.expert(), env, self.episodes, recording_seed(seed))
        demonstrations = rollouts.filter(lambda e: e.metadata["success"])
        words = np.array([e.steps[TASK][0] for e in demonstrations])
        labeled = np.concatenate([np.flatnonzero(words[:, 0] == w)[:self.per_word] for w in range(N_THINGS)])
        if self.shuffled:
            assert self.per_word is not None
            shift = np.random.default_rng(seed).integers(self.per_word, len(labeled) - self.per_word + 1)
            words[labeled] = words[np.roll(labeled, shift)]
        return with_words(demonstrations, words, np.isin(np.arange(len(demonstrations)), labeled))


def with_words(data: Dataset, words: np.ndarray, has_words: np.ndarray) -> Dataset:
    """The episodes with other words, (n, 1), and whether they are given, (n,)."""
    return Dataset([e.replace({TASK: np.tile(words[i], (len(e) + 1, 1)), TASK + "?": np.full(len(e) + 1, has_words[i])})
                    for i, e in enumerate(data)])


def has_words(data: Dataset) -> np.ndarray:
    """Whether each episode has words, (n,)."""
    return np.array([bool(e.steps[TASK + "?"][0]) for e in data])


@dataclass(frozen=True)
class NearestLatent(Actor):
    """Chooses the latent of the most similar episode with the same word, by the squared distance of its first
    observation.

    Args:
        words: The words of the episodes, (n,).
        first: First observations of the episodes, (n, D).
        latents: Latents of the episodes, (n, L).
    """

    words: torch.Tensor = field(compare=False)
    first: torch.Tensor = field(compare=False)
    latents: torch.Tensor = field(compare=False)

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        gap = (torch.cat([obs[STATE], obs[AROUND]], 1).unsqueeze(1) - self.first).square().sum(2)
        gap = gap.where(obs[TASK] == self.words, torch.inf)
        return self.latents[gap.argmin(1)], state


@dataclass(frozen=True)
class InstructedSkills:
    """A method, what it learns from, and how it is told what to do.

    Args:
        episodes: ``"all"``, where few have words; only those with words (``"labeled"``); all with the words that a
            classifier gives to those without (``"pseudo"``); or all with their true words (``"true"``).
        prompt: The words, or the latents of episodes with the same word (``"nearest"``). These are latents of an
            autoencoder that has seen no words.
    """

    method: Method
    episodes: Literal["all", "labeled", "pseudo", "true"] = "all"
    prompt: Literal["words", "nearest"] = "words"


def instruction_success(experiment, option: InstructedSkills, data: Dataset, seed: int, episodes: int, starts: int
                        ) -> dict[str, list[float]]:
    """Trains a method and instructs it.

    Returns:
        "success": 0 or 1 per start. With latents that words prompt also "demonstration success": the same if an episode
        without words is the prompt, which shows the task from another start. With pseudo-labels also one "right
        words": the fraction of the episodes without words that get the right ones.
    """
    words, labeled = np.array([e.steps[TASK][0] for e in data]), has_words(data)
    learned_from, measures = data, {}
    if option.episodes == "labeled":
        learned_from = data.select(np.flatnonzero(labeled))
    elif option.episodes == "true":
        learned_from = with_words(data, words, np.ones_like(labeled))
    elif option.episodes == "pseudo":
        predictions = predicted_words(learned_from.select(np.flatnonzero(labeled)), data, seed)
        measures["right words"] = [float((predictions == words)[~labeled].mean())]
        learned_from = with_words(data, np.where(labeled[:, None], words, predictions), np.ones_like(labeled))
    if option.prompt == "nearest":
        learned_from = with_words(data, words, np.zeros_like(labeled))
    # What is learned from is a part of the key of the training.
    named = replace(experiment, source=(experiment.source, option.episodes, option.prompt))
    trained = train_once(named, option.method, learned_from, seed)
    rows, env = min(ROWS, episodes), experiment.env_options
    actor = build_actor(trained.method, trained.modules, rows, features=trained.features)
    prompts = {"success": actor}
    if isinstance(actor, WrappedActor):
        posterior = next(t.encoder for t in trained.method.transforms if isinstance(t, LatentLabels))
        if option.prompt == "nearest":
            prompts = {"success": replace(actor, actor=nearest_latent(posterior, data.select(np.flatnonzero(labeled))))}
        elif not labeled.all():
            of_demonstrations = nearest_latent(posterior, data.select(np.flatnonzero(~labeled)))
            prompts["demonstration success"] = replace(actor, actor=of_demonstrations)
    for name, prompted in prompts.items():
        rollouts = rollout(prompted, NamedThings(rows, **dict(env)), episodes, seed=starts)
        measures[name] = [float(e.metadata["success"]) for e in rollouts]
    return measures


def nearest_latent(posterior, data: Dataset) -> NearestLatent:
    """Looks up the latents of the first 10 steps of episodes."""
    latents = posterior.latents(data.map(ConstantColumn(SKILL, (0.0,) * LATENT)))
    first = [np.concatenate([e.steps[STATE][0], e.steps[AROUND][0]]) for e in data]
    return NearestLatent(torch.tensor([int(e.steps[TASK][0, 0]) for e in data]), torch.tensor(np.stack(first)),
                         latents[np.cumsum([0, *data.lengths[:-1]])])


def predicted_words(labeled: Dataset, data: Dataset, seed: int) -> np.ndarray:
    """The words that a classifier gives to the last steps of episodes, (n, 1). It learns from all steps of the episodes
    with words.
    """
    classifier = fit_method(CLASSIFIER, labeled, seed).policy
    obs = {k: torch.from_numpy(np.stack([e.steps[k][len(e) - 1:len(e)] for e in data])) for k in classifier.inputs}
    key = torch.zeros(len(data), dtype=torch.int64)
    with torch.no_grad():
        return classifier.plan(obs, classifier.noise(key, key))[:, 0].numpy()


def learner(steps: int, batch_size: int) -> BehaviorCloning:
    return BehaviorCloning(steps, batch_size, OPTIMIZER)


def acting_policy(last: str, **fields) -> PolicyConfig:
    """The same head and networks in all arms. They read the word or the latent in the column `last`."""
    return PolicyConfig(Gaussian(std=0.1), MLP(128, 1), TokenEncoder(32), inputs=(STATE, AROUND, last), **fields)


def words_to_actions() -> Method:
    return Method(acting_policy(TASK), RecedingHorizon(), learner(UPDATES, PIECES * LENGTH))


def words_to_latents(beta: float = 0.1) -> Method:
    """The method groot-2, with the columns of the toy and small networks."""
    method = groot_2(LENGTH, LATENT, beta)
    (stage,) = method.stages
    low = stage.method
    assert isinstance(low.learner, InstructedAutoencoder) and method.wrapper is not None
    instruction = replace(method.policy, trunk=MLP(64, 1), encoder=TokenEncoder(32), inputs=(TASK,))
    autoencoder = replace(
        low.learner, steps=UPDATES, batch_size=PIECES, optimizer=OPTIMIZER, posterior=MLP(64, 1),
        prior=replace(low.learner.prior, trunk=MLP(64, 1), encoder=TokenEncoder(32)), instruction=instruction)
    low = Method(acting_policy(SKILL, codec=low.policy.codec), learner=autoencoder,
                 transforms=(ConstantColumn(SKILL, (0.0,) * LATENT),))
    labels = tuple(t for t in method.transforms if isinstance(t, LatentLabels))
    return replace(method, policy=instruction, stages=(replace(stage, method=low),), transforms=labels,
                   wrapper=replace(method.wrapper, period=100))  # longer than an episode


SHOWN, PER_WORD = 240, 2
UPDATES, PIECES, LENGTH, LATENT = 800, 64, 10, 8
OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_steps=100)
CLASSIFIER = Method(PolicyConfig(Categorical(), MLP(64, 1), TokenEncoder(32), target=TASK, inputs=(STATE,)),
                    learner=learner(300, 128))
GROOT = Arm("GROOT-2", (InstructedSkills(words_to_latents()),))
LABELED = Arm("labeled", (InstructedSkills(words_to_actions(), "labeled"),))
ALL_WORDS = Arm("all words", (InstructedSkills(words_to_actions(), "true"),))
NEAREST = Arm("nearest latents", (InstructedSkills(words_to_latents(), prompt="nearest"),))
PSEUDO = Arm("pseudo-labels", (InstructedSkills(words_to_actions(), "pseudo"),))
ALONE = Arm("GROOT-2, labeled", (InstructedSkills(words_to_latents(), "labeled"),))
BETA = Arm("GROOT-2, beta 1", (InstructedSkills(words_to_latents(beta=1.0)),))
FEW = Experiment(
    FewWords(SHOWN, PER_WORD),
    "named_things",
    (GROOT, LABELED, ALL_WORDS),
    instruction_success,
    seeds=tuple(range(940, 948)),
    episodes=400,
    measures=(("demonstration success", RATE), ("right words", SCORE)),
    starts_seed=940,
    looks=((5, 0.02), (8, 0.03)),
    sanity=(("GROOT-2", "success", 0.45), ("labeled", "success", 0.2), ("all words", "success", 0.8)),
)


def comparison_part(name: str, arms: tuple[Arm, Arm], *, decides: bool, margin: float = 0.0,
                    per_word: int | None = PER_WORD) -> ClaimPart:
    """A part with the first seeds: the first arm succeeds more often than the second."""
    experiment = replace(FEW, source=FewWords(SHOWN, per_word), seeds=FEW.seeds[:5],
                         arms=arms, looks=(), sanity=())
    return ClaimPart(name, experiment, GreaterThan("success", arms[0].name, arms[1].name, margin), decides)


def with_wrong_words(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffled=True), sanity=())


CLAIM = Claim(
    name="weakly-labeled-skills",
    rows=("309",),
    parts=(
        ClaimPart("few words", FEW, GreaterThan("success", "GROOT-2", "labeled")),
        comparison_part("nearest latents", (GROOT, NEAREST), decides=True),
        comparison_part("pseudo-labels", (GROOT, PSEUDO), decides=True),
        comparison_part("episodes with words alone", (GROOT, ALONE), decides=False),
        comparison_part("beta", (BETA, LABELED), decides=False),
        comparison_part("all words", (LABELED, GROOT), decides=False, margin=-0.1, per_word=None),
    ),
    negative_control=NegativeControl(with_wrong_words, "few words"),
)
