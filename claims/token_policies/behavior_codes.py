"""Row 073: do missions of several errands need codes of behavior, and a memory of the codes before?"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    SCORE,
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Batch, Feature, normal, uniform
from understudy.data.column_changes import LastAction
from understudy.data.episode import Dataset
from understudy.data.text_columns import TaskText
from understudy.data.window import Window
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, CountingActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.wrappers import SkillWrapper, WrappedActor
from understudy.heads.likelihood.gmm import GMM
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.latent_labels import SKILL, LatentLabels
from understudy.learn.cloning.skill_autoencoder import SkillPosterior
from understudy.learn.method import Method, build_actor
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.skills.omnijarvis import omnijarvis
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.quantization import FSQ
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
N_PLACES, SPEED, REACH = 5, 0.08, 0.15  # m a step, m
STATE, LIGHTS, TASK = "observation.state", "observation.lights", "observation.task"
LAST = "observation.last_action"
ANGLES = 2 * np.pi * np.arange(N_PLACES) / N_PLACES
PLACES = 0.8 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1).astype(np.float32)


class Errands(Toy):
    """A point fetches things from places on a circle and takes each home, in the order of a mission.

    observation.state (3): position, m, from -1 to 1, and 1 if it carries a thing. observation.lights: whether something
    came from each place already. observation.task: the places of the mission in their order, classes. simulator.state
    (2): number of errands that are done, and the chance. action (2): velocity, where 1 is 0.08 m in a step of 0.1 s,
    clipped to [-1, 1].

    Reaching a place whose turn it is not with empty hands ends the episode with failure. The last thing at home ends it
    with success.

    Best possible success: 1.0. `ErrandsExpert(noise=0)` attains it.

    Args:
        limit: Number of steps of an episode.
        errands: Number of errands of a mission.
        repeats: Places are drawn independently, so that most missions name a place again. False draws different ones.
    """

    state_columns = (STATE, LIGHTS, TASK, "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 160, errands: int = 4, repeats: bool = False):
        self.errands, self.repeats = errands, repeats
        self.features = {
            STATE: named_vector("x", "y", "carries"), LIGHTS: Feature("float32", (N_PLACES,)),
            TASK: Feature("int64", (errands,), "discrete", num_classes=(N_PLACES,) * errands),
            "simulator.state": named_vector("done"), "action": named_vector("x", "y")}
        self.metadata = {"env": "errands", "version": 1, "fps": 10, "limit": limit, "optimum": 1.0,
                         "success": "all things are at home, in the order of the mission"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        n, zero = len(key), torch.zeros_like(key)
        at = 0.2 * uniform(key, zero, (2,)).numpy() - 0.1
        drawn = uniform(key, zero, (max(N_PLACES, self.errands),), stream=1).numpy()
        if self.repeats:
            task = (N_PLACES * drawn[:, :self.errands]).astype(np.int64)
        else:
            task = drawn[:, :N_PLACES].argsort(1)[:, :self.errands]
        return {"at": at.astype(np.float32), "carries": np.zeros(n, bool), "lights": np.zeros((n, N_PLACES), bool),
                "task": task, "done": np.zeros(n, np.int64)}

    def observe(self):
        s = self.state
        return {STATE: np.concatenate([s["at"], s["carries"][:, None]], 1).astype(np.float32),
                LIGHTS: s["lights"].astype(np.float32), TASK: s["task"],
                "simulator.state": s["done"][:, None].astype(np.float32)}

    def state_from_columns(self, steps):
        return {"at": steps[STATE][:, :2], "carries": steps[STATE][:, 2] > 0.5, "lights": steps[LIGHTS] > 0.5,
                "task": steps[TASK], "done": np.rint(steps["simulator.state"][:, 0]).astype(np.int64)}

    def advance(self, action):
        s, rows = self.state, np.arange(self.rows)
        s["at"] = np.clip(s["at"] + np.float32(SPEED) * action, -1, 1)
        due = s["task"][rows, np.minimum(s["done"], self.errands - 1)]
        gap = distance(PLACES[None], s["at"][:, None])
        reached = (gap < REACH) & ~s["carries"][:, None]
        reaches_other_place = (reached & (np.arange(N_PLACES) != due[:, None])).any(1)
        home = s["carries"] & (distance(s["at"], np.zeros_like(s["at"])) < REACH)
        lights = s["lights"].copy()
        lights[rows, due] |= home
        s["lights"], s["done"] = lights, s["done"] + home
        s["carries"] = (s["carries"] | reached[rows, due]) & ~home
        success = s["done"] == self.errands
        return success, success, reaches_other_place

    def expert(self):
        return ErrandsExpert()

    def map(self):
        places = [{"kind": "circle", "at": tuple(map(float, at)), "radius": REACH, "role": "goal"} for at in PLACES]
        home = {"kind": "circle", "at": (0.0, 0.0), "radius": REACH, "role": "start"}
        return {"x": (-1.0, 1.0), "y": (-1.0, 1.0), "path": (STATE, 0, 1), "shapes": [home, *places]}

    def frame(self, row):
        from understudy.envs.raster import render_map

        at = self.state["at"][row]
        return render_map(self.map(), [{"kind": "circle", "at": tuple(at), "radius": 0.03, "role": "agent"}])


@dataclass(frozen=True)
class ErrandsExpert(CountingActor):
    """Goes straight to the place whose turn it is, and home again.

    Args:
        noise: Standard deviation of Gaussian noise on the action.
    """

    noise: float = 0.3

    def act(self, obs, state):
        at, carries = obs[STATE].split((2, 1), 1)
        done = obs["simulator.state"][:, 0].round().long().clamp(max=obs[TASK].shape[1] - 1)
        due = obs[TASK][torch.arange(len(at)), done]
        ahead = torch.where(carries > 0.5, 0.0, torch.from_numpy(PLACES)[due]) - at
        action = ahead / (ahead.norm(dim=1, keepdim=True)).clamp(min=SPEED)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action.float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class ErrandsEpisodes(DemonstrationSource):
    """Successful episodes of the expert.

    Args:
        episodes: Number of episodes to roll out.
        repeats: Missions may name a place again.
    """

    episodes: int
    repeats: bool

    @cached_load
    def load(self, seed):
        env = Errands(ROWS, repeats=self.repeats)
        return rollout(env.expert(), env, self.episodes, recording_seed(seed)).filter(lambda e: e.metadata["success"])


@dataclass(frozen=True)
class ExchangedCodes(SkillWrapper):
    """The low-level policy reads another code than the one that was chosen, by a fixed permutation of all codes."""

    def _column_value(self, action):
        assert self.quantizer is not None
        place = torch.tensor(self.quantizer.levels).cumprod(0) // torch.tensor(self.quantizer.levels)
        other = torch.randperm(self.quantizer.n_codes, generator=torch.Generator().manual_seed(0))
        number = other[(action.long() * place).sum(1)]
        return super()._column_value(number[:, None] // place % torch.tensor(self.quantizer.levels))


@dataclass(frozen=True)
class ExpertCodes(Actor):
    """Chooses the code of what the expert would do in the next steps.

    Args:
        posterior: Gives the codes of pieces.
        env: Options of the environment, in which the expert acts.
    """

    posterior: SkillPosterior
    env: tuple[tuple[str, Any], ...]

    def start(self, obs, key):
        return {"key": key}

    def act(self, obs, state):
        rows, quantizer = len(state["key"]), self.posterior.about.quantizer
        assert quantizer is not None
        env, expert, observations, done = Errands(rows, **dict(self.env)), ErrandsExpert(noise=0.0), [], []
        current_obs = env.restore(torch.arange(rows), {k: obs[k].numpy() for k in env.state_columns})
        acting = expert.start(current_obs, state["key"])
        for _ in range(self.posterior.about.length):
            observations.append(current_obs)
            action, acting = expert.act(current_obs, acting)
            done.append(action)
            current_obs = env.step(action).obs
        columns = {k: torch.stack([o[k] for o in observations], 1) for k in self.posterior.inputs}
        batch = Batch(columns, torch.stack(done, 1), torch.ones(rows, len(done), dtype=torch.bool))
        with torch.no_grad():
            return quantizer.to_levels(self.posterior(batch)), state


@dataclass(frozen=True)
class CodedMethod:
    """A method, and which codes its low-level policy reads.

    Args:
        codes: ``"chosen"`` by the high-level policy, ``"exchanged"`` for others by a fixed permutation, or the
            ``"expert"``'s.
    """

    method: Method
    codes: Literal["chosen", "exchanged", "expert"] = "chosen"


def success_and_levels(experiment, option: CodedMethod, data: Dataset, seed: int, episodes: int, starts: int
                       ) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" of each episode. With codes also one "levels used": the fraction of the levels that the codes of the
        demonstrations use, of the component that uses fewest.
    """
    trained = train_once(experiment, option.method, data, seed)
    method, env = trained.method, experiment.env_options
    if isinstance(method.wrapper, SkillWrapper) and option.codes == "exchanged":
        wrapper = ExchangedCodes(**{f.name: getattr(method.wrapper, f.name) for f in fields(method.wrapper)})
        method = replace(method, wrapper=wrapper)
    rows = min(ROWS, episodes)
    actor = build_actor(method, trained.modules, rows, features=trained.features)
    levels = {}
    if isinstance(actor, WrappedActor):
        labels = next(t for t in method.transforms if isinstance(t, LatentLabels))
        assert isinstance(labels.encoder, SkillPosterior)
        if option.codes == "expert":
            actor = replace(actor, actor=ExpertCodes(labels.encoder, env))
        levels = {"levels used": [fraction_used(QUANTIZER.to_levels(labels.encoder.latents(data)))]}
    rollouts = rollout(actor, Errands(rows, **dict(env)), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts], **levels}


def fraction_used(level: torch.Tensor) -> float:
    """The fraction of levels (N, D) that at least 1 % of the steps use, of the component that uses fewest."""
    used = [(torch.bincount(c, minlength=n) >= 0.01 * len(c)).float().mean()
            for c, n in zip(level.T, QUANTIZER.levels, strict=True)]
    return float(min(used))


def learner(steps: int) -> BehaviorCloning:
    return BehaviorCloning(steps, 128, OPTIMIZER)


def clone_codes(memory: int) -> Method:
    """A policy that predicts codes of behavior, from the codes and observations of so many periods."""
    method = omnijarvis(PERIOD, QUANTIZER.levels, memory)
    (stage,) = method.stages
    autoencoder = replace(stage.method.learner, posterior=MLP(64, 1), steps=STAGE_STEPS, batch_size=64,
                          optimizer=OPTIMIZER)
    low = replace(stage.method, learner=autoencoder, policy=replace(
        stage.method.policy, trunk=MLP(64, 1), encoder=TokenEncoder(32), inputs=(STATE, SKILL)))
    high = replace(method.policy, trunk=MLP(128, 1), encoder=TokenEncoder(32),
                   inputs=(*INPUTS, *((LAST,) if memory > 1 else ())))
    transforms = tuple(t for t in method.transforms if not isinstance(t, TaskText))
    return replace(method, policy=high, learner=learner(STEPS), transforms=transforms,
                   stages=(replace(stage, method=low),))


def clone_actions(history: int) -> Method:
    """A flat policy, which reads the same from the observations and actions of so many steps."""
    policy = PolicyConfig(GMM(), MLP(128, 1), TokenEncoder(32), window=Window(history),
                          inputs=(*INPUTS, *((LAST,) if history > 1 else ())))
    return Method(policy, RecedingHorizon(), learner(STAGE_STEPS + STEPS), (LastAction(),))


PERIOD, MEMORY, QUANTIZER = 10, 10, FSQ((5, 5, 5))
STAGE_STEPS, STEPS = 1000, 2000
OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_steps=100)
INPUTS = (STATE, LIGHTS, TASK)
MISSIONS = Experiment(
    ErrandsEpisodes(200, repeats=True),
    "errands",
    (
        Arm("codes", (CodedMethod(clone_codes(MEMORY)),)),
        Arm("no memory", (CodedMethod(clone_codes(1)),)),
        Arm("flat", (CodedMethod(clone_actions(MEMORY)),)),
        Arm("flat, one step", (CodedMethod(clone_actions(1)),)),
        Arm("expert's codes", (CodedMethod(clone_codes(MEMORY), "expert"),)),
    ),
    success_and_levels,
    seeds=tuple(range(870, 875)),
    env_options=(("repeats", True),),
    episodes=400,
    measures=(("levels used", SCORE),),
    starts_seed=870,
    sanity=(("codes", "success", 0.5), ("flat", "success", 0.2), ("flat, one step", "success", 0.2),
            ("expert's codes", "success", 0.9)),
)
DIFFERENT = replace(MISSIONS, source=ErrandsEpisodes(200, repeats=False), arms=(MISSIONS.arms[0], MISSIONS.arms[3]),
                    env_options=(("repeats", False),), sanity=(("flat, one step", "success", 0.8),))
OVER_FLAT, OVER_NO_MEMORY = GreaterThan("success", "codes", "flat"), GreaterThan("success", "codes", "no memory")
OVER_ONE_STEP = GreaterThan("success", "codes", "flat, one step")


def with_exchanged_codes(experiment: Experiment) -> Experiment:
    exchanged = experiment.change_options(lambda o: replace(o, codes="exchanged"), "codes", "no memory")
    return replace(exchanged, sanity=())


CLAIM = Claim(
    name="behavior-codes",
    rows=("073",),
    parts=(
        ClaimPart("repeated places", MISSIONS, AllOf((OVER_NO_MEMORY, OVER_FLAT, OVER_ONE_STEP))),
        ClaimPart("different places", DIFFERENT, OVER_ONE_STEP, is_decisive=False),
        ClaimPart("levels", replace(MISSIONS, sanity=()), AboveBound("levels used", "codes", 0.8), is_decisive=False),
    ),
    negative_control=NegativeControl(
        with_exchanged_codes, "repeated places", removes=(OVER_NO_MEMORY, OVER_FLAT, OVER_ONE_STEP)
    ),
)
