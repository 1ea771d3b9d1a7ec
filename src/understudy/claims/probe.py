"""Probes: deterministic runs of seconds that tell whether a claim still computes the same numbers.

A probe runs every cell of a claim once, shortened: each training makes its first 4, 2 middle and last 4 updates, and
few episodes are rolled out, those of a policy for 32 steps. What cells share is computed once. It stores plain numbers
(losses, weights, actions, returns), which are compared with a tolerance. Keys are the claim's own names and positions,
so a probe stays comparable when code is renamed.

A probe sees code, data and packages that change any of these numbers. It does not see what only long training shows.
Commands run probes by `portable.run_portably`, so that all processors compute the same.
"""

from __future__ import annotations

import inspect
import json
import math
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from .. import config
from ..audit.scores.network_scores import fit_regression
from ..core import UserError, replaced
from ..data.episode import Dataset
from ..envs import HasExpert
from ..envs.base import Env, EnvWrapper
from ..evaluate.behavior.modes import RepeatedStartsEnv
from ..evaluate.recording import UniformRandomActor
from ..evaluate.rollout import rollout, rollout_steps
from ..evaluate.workers import single_threaded
from ..execute.actor import Actor, NoisyActor, PolicyActor
from ..files import read_json, write_text
from ..improve.journal import EpisodeJournal
from ..improve.restart import Attempts
from ..learn.fit import fit
from .base import Claim, ClaimPart, Experiment, MissingRequirement, smaller
from .memo import empty_memos
from .portable import run_portably
from .records import (
    PACKAGES,
    find_claim,
    fingerprint,
    installed_versions,
    missing_requirements,
    probe_path,
    provenance,
    record_path,
)

RELATIVE = 1e-4  # tolerance relative to an entry
FLOOR = 1e-5  # tolerance relative to the largest entry of its list: entries near zero are rounding errors
SCALE = 1e-7  # tolerance relative to the largest entry of its quantity in the claim, where a whole list is near zero
ABSOLUTE = 1e-8  # absolute tolerance: a gradient that is zero but for rounding differs between processors
EPISODES = 2  # rollouts per cell
ENTRIES = 64  # largest number of stored entries of a list of weights, actions or observations
ROUNDING = 6e-7, -6e-7  # relative errors of a weight: a few roundings in single precision, and the opposite ones
STABLE = 3  # entries that such errors change by more than a third of the tolerance are not compared
ADAM_STEP = torch.optim.Adam.step
ROLLOUT, FIT_REGRESSION = inspect.unwrap(rollout), inspect.unwrap(fit_regression)  # never replaced
STEPS = 16  # recorded steps of each rollout
POLICY_STEPS = 2 * STEPS  # steps of an episode in which a policy acts: after few updates, the first tell as much as all
STARTS_SEED = 100  # seed of the rollouts that record an environment
UPDATES = 20  # updates of a network that a score trains

Numbers = dict[str, list[float | None]]  # place in the claim -> entries; None is not compared
Status = Literal["confirmed", "due", "not run", "cannot run here"]


@dataclass(frozen=True)
class Confirmation:
    """What a probe says about a record.

    Attributes:
        status: "confirmed" if the numbers are equal within the tolerance, "due" if they are not, "not run" if there
            is no record or no stored probe, "cannot run here" if data or a simulator is missing.
        detail: The first difference, or what is missing. Empty if confirmed.
    """

    status: Status
    detail: str = ""
    differences: tuple[str, ...] = ()
    seconds: float = 0.0


def updates_to_probe(start: int, steps: int) -> list[int]:
    """The first 4, middle 2 and last 4 updates, in order and without repetition.

    Args:
        steps: Number of updates. The last one is `steps` - 1.
    """
    middle = (start + steps) // 2
    updates = {*range(start, start + 4), *range(middle - 1, middle + 1), *range(steps - 4, steps)}
    return sorted(n for n in updates if start <= n < steps)


def take(claim: Claim, rounding: float = 0.0) -> dict:
    """Runs the probe of a claim on the current code.

    Args:
        claim: The claim. If it has a record, the options chosen there are probed, otherwise the first of each arm.
        rounding: Relative size of errors to add to the first weights of every network, as another CPU would.

    Returns:
        A JSON document: "claim", "versions" of packages, "cpu" and "numbers", lists of entries by their place.

    Raises:
        MissingRequirement: Data that the claim needs are not on this machine.
    """
    path, numbers = record_path(claim.name), {}
    chosen = {name: part["chosen"] for name, part in read_json(path)["parts"].items()} if path.exists() else {}
    done: set[str] = set()  # what cells compute; cells that compute the same are probed once
    loaded: dict[Any, tuple[Dataset, Numbers]] = {}
    with _repeatable(), empty_memos():
        for name, experiment, arms in _experiments(claim, chosen):
            numbers[f"{name} / seeds and episodes"] = [*map(float, (*experiment.seeds, experiment.episodes))]
            source, sizes = _smaller(experiment.source)
            measure, measure_sizes = _smaller(experiment.measure)
            experiment = replace(experiment, source=source, measure=measure, seeds=experiment.seeds[:1], looks=())
            if measure_sizes:
                numbers[f"{name} / full sizes of the measure"] = measure_sizes
            for arm, method in arms:
                key = json.dumps(config.dump([method, experiment.source, experiment.env, experiment.env_options,
                                              experiment.measure]))
                if key in done:
                    continue
                done.add(key)
                if source not in loaded:
                    loaded[source] = _load(experiment, rounding)
                    _put(numbers, f"{name} / demonstrations", {**loaded[source][1], "full sizes": sizes})
                env = f"env {experiment.env} {experiment.env_options}"
                method, sizes = _smaller(method)
                cell_numbers = _cell(experiment, method, loaded[source][0], env not in done, rounding)
                _put(numbers, f"{name} / {arm}", {**cell_numbers, "full sizes": sizes})
                done.add(env)
    versions = {"python": platform.python_version(), **installed_versions(*PACKAGES)}
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {"claim": claim.name, "versions": versions, "cpu": cpu, "numbers": numbers}


def compare(stored: Mapping, now: Mapping) -> list[str]:
    """Compares two probes.

    An entry is equal if it differs by at most 1e-4 of itself plus 1e-5 of the largest entry of its list plus 1e-8. What
    had no entries when it was stored is not compared.

    Args:
        stored: A probe as `take` returned it.

    Returns:
        One sentence for each place that differs, naming its first entry that differs. Empty if the probes are equal.
    """
    old, new, differences = stored["numbers"], now["numbers"], []
    scales = _scales(old)
    for place in dict.fromkeys((*old, *new)):
        if place not in new or place not in old:
            differences.append(f"{place}: {'only stored' if place in old else 'only now'}")
        elif old[place] and len(old[place]) != len(new[place]):
            differences.append(f"{place}: {len(old[place])} entries stored, {len(new[place])} now")
        elif old[place] and (at := _first_difference(old[place], new[place], scales[_quantity(place)])) is not None:
            differences.append(f"{place}[{at}]: {old[place][at]} stored, {new[place][at]} now")
    return differences


def confirm(claim: Claim, *, trust_source: bool = False) -> Confirmation:
    """Probes a claim and compares the result with its stored probe.

    Args:
        trust_source: Confirm without a run if the record's source fingerprint is that of the current code. This does
            not see changed packages.
    """
    began = time.perf_counter()
    for path, what in ((record_path(claim.name), "record"), (probe_path(claim.name), "stored probe")):
        if not path.exists():
            return Confirmation("not run", f"has no {what}")
    if trust_source and read_json(record_path(claim.name))["fingerprint"] == fingerprint(claim):
        return Confirmation("confirmed", seconds=time.perf_counter() - began)
    if lacks := missing_requirements(claim):
        return Confirmation("cannot run here", f"needs {', '.join(lacks)}")
    stored = read_json(probe_path(claim.name))
    try:
        now = take(claim)
    except MissingRequirement as error:
        return Confirmation("cannot run here", f"needs {error.where}")
    except UserError as error:
        return Confirmation("due", f"the probe fails: {error}", (str(error),), time.perf_counter() - began)
    except Exception as error:  # a defect in the code of this claim: the others are still to be probed
        text = "".join(traceback.format_exception(error)[-2:]).strip()
        return Confirmation("due", f"the probe fails: {type(error).__name__}: {error}", (text,),
                            time.perf_counter() - began)
    differences = tuple(compare(stored, now))
    detail = differences[0] + _elsewhere(stored, now) if differences else ""
    return Confirmation("due" if differences else "confirmed", detail, differences, time.perf_counter() - began)


def confirm_all(names: Iterable[str], *, trust_source: bool = False) -> Iterator[Confirmation]:
    """Confirms claims in processes that compute the same on all processors. Results in the order of the names."""
    return run_portably(partial(_confirm_named, trust_source=trust_source), names)


def _confirm_named(name: str, trust_source: bool) -> Confirmation:
    return confirm(find_claim(name), trust_source=trust_source)


def store_all(names: Iterable[str]) -> list[dict]:
    """Stores the probes of claims, in processes that compute the same on all processors."""
    return list(run_portably(_store_named, names))


def _store_named(name: str) -> dict:
    return store(find_claim(name))


def store(claim: Claim) -> dict:
    """Takes the probe of a claim and writes it to its file.

    Entries that errors of the size of rounding change are stored as null and never compared. For example, the loss may
    not depend on a bias, and the optimizer then moves it by the sign of a rounding error, which differs between
    processors. Call this only on the code that made the record.
    """
    probe = take(claim)
    scales = _scales(probe["numbers"])
    for rounded in 2 * [take(claim, rounding)["numbers"] for rounding in ROUNDING]:  # twice: floors become lower
        probe["numbers"] = {place: _stable(entries, rounded.get(place, []), scales[_quantity(place)])
                            for place, entries in probe["numbers"].items()}
    _write(claim.name, probe)
    return probe


def save_confirmation(claim: Claim) -> None:
    """Notes in the stored probe that the record is confirmed at this commit, with the date and the source fingerprint.

    Call it after `confirm` returned the status "confirmed". Until this source code changes, the record is not listed as
    stale.
    """
    origin = provenance()
    confirmed = {"commit": origin["commit"], "date": origin["date"], "fingerprint": fingerprint(claim)}
    _write(claim.name, {**read_json(probe_path(claim.name)), "confirmed": confirmed})


def _write(name: str, probe: Mapping) -> None:
    """Writes a probe with one line per list of entries, so that differences between versions are readable."""
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in probe["numbers"].items())
    head = json.dumps({k: v for k, v in probe.items() if k != "numbers"}, indent=1)[:-2]
    write_text(probe_path(name), f'{head},\n "numbers": {{\n{lines}\n }}\n}}\n')


# -- what is run --------------------------------------------------------------------------------------------------


def _experiments(claim: Claim, chosen: Mapping) -> Iterator[tuple[str, Experiment, list[tuple[str, Any]]]]:
    """Name, experiment and (arm, chosen option) of each part, and last of the negative control."""
    def options(part: ClaimPart, experiment: Experiment):
        pick = chosen.get(part.name, {})
        return [(a.name, a.options[pick.get(a.name, 0)]) for a in experiment.arms]
    for part in claim.parts:
        yield part.name, part.experiment, options(part, part.experiment)
    for part in claim.parts:
        if part.name == claim.negative_control.part and claim.negative_control.probed:
            changed = claim.negative_control.change(part.experiment)
            judged = [(arm, method) for arm, method in options(part, changed) if arm in part.rule.arms]
            yield "negative control", changed, judged


def _smaller(part: Any) -> tuple[Any, list[float]]:
    """A source, measure or method as the probe uses it, and its full sizes."""
    sizes = getattr(part, "probe_sizes", {})
    return part.for_probe() if hasattr(part, "for_probe") else smaller(part, **sizes) if sizes else (part, [])


def _load(experiment: Experiment, rounding: float) -> tuple[Dataset, Numbers]:
    seed = experiment.seeds[0]
    with _recorded(rounding) as recorder:
        data = experiment.source.load(seed)
    numbers = recorder.numbers
    numbers["episodes and steps"] = [len(data), sum(len(e) for e in data)]
    column = "action" if "action" in data[0].steps else next(iter(data[0].steps))
    numbers["actions"] = _entries(np.concatenate([np.asarray(e.steps[column], float).ravel() for e in data]))
    for i, column in enumerate(k for k in data[0].steps if k.startswith("keep.")):
        weights = np.concatenate([np.asarray(e.steps[column], float) for e in data])
        numbers[f"weights of arm {i + 1}"] = [float(weights.sum()), *_entries(weights)]
    return data, numbers


def _cell(experiment: Experiment, method: Any, data: Dataset, look_at_env: bool, rounding: float) -> Numbers:
    with _recorded(rounding) as recorder:
        measured = experiment.measure(experiment, method, data, experiment.seeds[0], EPISODES, experiment.starts_seed)
        for i, values in enumerate(measured.values()):
            recorder.numbers[f"measure {i + 1}"] = _entries(np.asarray(values, float))
        if look_at_env and recorder.env is not None:
            recorder.look_at_env()
    return recorder.numbers


@dataclass
class _Recorder:
    """Replaces the functions that train and roll out, and records the numbers that they compute."""

    rounding: float = 0.0
    numbers: Numbers = field(default_factory=dict)
    env: Any = None
    trainings: int = 0
    rollouts: int = 0
    regressions: int = 0
    steps: dict[torch.optim.Adam, int] = field(default_factory=dict)  # of networks that scores train

    def fit(self, learner, batch, steps, *, start=0, callbacks=()):
        self.trainings += 1
        place, logs = f"training {self.trainings}", []
        self._round(learner.policy.parameters())
        self._round(learner.trained_policy.parameters())
        for n in updates_to_probe(start, steps):
            _set_counter(learner, n)
            logs.append(learner.update(batch(n)))
            for callback in callbacks:
                callback(n + 1, learner, logs[-1])
        self.numbers[f"{place} / updates"] = [start, steps]
        for name, key in (("losses", "loss"), ("gradients", "gradient"), ("rates", "rate")):
            self.numbers[f"{place} / {name}"] = [float(s[key]) for s in logs if key in s]  # TD3 delays its policy
        self._weights(place, learner.trained_policy.parameters())

    def regress(self, state, action, members, steps, seed, **options):
        self.regressions += 1
        nets = FIT_REGRESSION(state, action, members, min(steps, UPDATES), seed, **options)
        self.numbers[f"regression {self.regressions} / size"] = [*state.shape, *action.shape, members, steps]
        self._weights(f"regression {self.regressions}", nets.parameters())
        return nets

    def rollout(self, actor, env, episodes, seed=0, **options):
        self.rollouts += 1
        if isinstance(env, Attempts):
            env.limit = min(env.limit, 120)  # with a policy of few updates no attempt would succeed
        rollouts = ROLLOUT(actor, _FirstSteps(env) if _is_policy(actor) else env, episodes, seed, **options)
        self.env = env.env if isinstance(env, RepeatedStartsEnv) else env  # which knows the starts of one seed alone
        self._episodes(f"rollout {self.rollouts}", rollouts)
        return rollouts

    def adam_step(self, optimizer, *args, **kwargs):
        """One step of a score's own training. Only the first are made: long trainings magnify rounding errors."""
        if type(optimizer) is not torch.optim.Adam:  # a learner's, which is a subclass of it
            return ADAM_STEP(optimizer, *args, **kwargs)
        if optimizer not in self.steps:
            self._round(p for group in optimizer.param_groups for p in group["params"])
        self._round_gradients(optimizer)
        self.steps[optimizer] = self.steps.get(optimizer, 0) + 1
        return ADAM_STEP(optimizer, *args, **kwargs) if self.steps[optimizer] <= UPDATES else None

    def finish(self):
        """Records the networks that scores trained, and their planned number of updates."""
        for i, (optimizer, steps) in enumerate(self.steps.items()):
            place = f"score training {i + 1}"
            self.numbers[f"{place} / updates"] = [steps]
            self._weights(place, [p for group in optimizer.param_groups for p in group["params"]])

    def look_at_env(self):
        """Records random actions to the end of an episode and, if there is an expert, its episode to success."""
        action = self.env.features["action"]
        noise = UniformRandomActor(self.env) if action.kind == "discrete" else NoisyActor(None, action.size)
        self._episodes("environment, random actions", ROLLOUT(noise, self.env, 1, STARTS_SEED))
        if isinstance(self.env, HasExpert):
            self._episodes("environment, expert", ROLLOUT(self.env.expert(), self.env, 1, STARTS_SEED))

    @torch.no_grad()
    def _round(self, parameters: Iterable[torch.Tensor]) -> None:
        """Adds rounding errors, the same ones in each run."""
        if self.rounding:
            rng = torch.Generator().manual_seed(0)
            for p in parameters:
                p.mul_(1 + self.rounding * torch.randn(p.shape, generator=rng))

    @torch.no_grad()
    def _round_gradients(self, optimizer: torch.optim.Adam) -> None:
        """Adds rounding errors, on the scale of the largest gradient: Adam makes whole steps of zeros with errors."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.rounding and gradients:
            rng = torch.Generator().manual_seed(0)
            error = self.rounding * max(float(g.abs().max()) for g in gradients)
            for gradient in gradients:
                gradient.add_(error * torch.randn(gradient.shape, generator=rng) * (gradient != 0))

    def _weights(self, place, parameters):
        weights = [p.detach().double().flatten() for p in parameters]
        if weights:
            self.numbers[f"{place} / norms"] = [float(w.norm()) for w in weights]
            self.numbers[f"{place} / weights"] = _entries(torch.cat(weights).numpy())

    def _episodes(self, place, episodes):
        few = episodes[:4]
        self.numbers[f"{place} / lengths"] = [len(episodes), *(len(e) for e in few)]
        for name, prefix, count in (("actions", "action", 32), ("observations", "observation.", 32),
                                    ("rewards", "next.reward", 16)):
            values = [np.asarray(e.steps[k][:STEPS], float).ravel() for e in few for k in e.steps
                      if k.startswith(prefix)]
            self.numbers[f"{place} / {name}"] = _entries(np.concatenate(values), count)


class _FirstSteps(EnvWrapper):
    """The environment, whose episodes are cut off after the first steps."""

    def __init__(self, env: Env):
        super().__init__(env)
        self.metadata, self.clock = env.metadata, torch.zeros(env.rows, dtype=torch.int64)

    def reset(self, which, key):
        self.clock[which] = 0
        return self.env.reset(which, key)

    def step(self, action):
        self.clock += 1
        result = self.env.step(action)
        return replace(result, truncated=result.truncated | (self.clock >= POLICY_STEPS))


def _is_policy(actor: Actor) -> bool:
    """Whether a policy acts, perhaps inside of other actors."""
    return isinstance(actor, PolicyActor) or any(
        isinstance(part, Actor) and _is_policy(part) for part in vars(actor).values())


def _set_counter(learner: Any, update: int) -> None:
    """Make `update` the number of the next update, for the learning-rate schedule, the noise and the average."""
    learner.n_updates = update
    for average in (*learner.averages.values(), *learner.targets.values()):
        average.updates = update


# -- how it is run ------------------------------------------------------------------------------------------------


@contextmanager
def _repeatable() -> Iterator[None]:
    """A context with one thread and a fixed random state, in which convolutions are products of matrices."""
    without_onednn = torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)  # a value would warn without a GPU
    with (single_threaded(), torch.random.fork_rng([]), torch.backends.nnpack.flags(enabled=False), without_onednn):
        torch.manual_seed(0)
        yield


def _rollout_steps(*args, usual_length: float = 1.0, **options) -> Dataset:
    """`rollout_steps`, by calls of `rollout`, which are recorded. These run as few episodes as possible."""
    return EpisodeJournal(None).rollout_steps(*args, **options)


@contextmanager
def _recorded(rounding: float) -> Iterator[_Recorder]:
    """A context in which `fit`, `rollout` and `fit_regression` are those of a recorder."""
    recorder = _Recorder(rounding)
    instead: dict[Callable, Callable] = {fit: recorder.fit, rollout: recorder.rollout, fit_regression: recorder.regress,
                                         rollout_steps: _rollout_steps}

    def step(*args, **kwargs):
        return recorder.adam_step(*args, **kwargs)
    step.hooked = True  # ty: ignore[missing-attribute]  (or PyTorch keeps it in subclasses)
    torch.optim.Adam.step = step
    try:
        with replaced(instead):
            yield recorder
        recorder.finish()
    finally:
        torch.optim.Adam.step = ADAM_STEP


# -- numbers ------------------------------------------------------------------------------------------------------


def _entries(values: np.ndarray, count: int = ENTRIES) -> list[float | None]:
    """`count` entries at even distances, including the first and the last. All entries if there are fewer."""
    flat = np.asarray(values, float).ravel()
    return flat[np.unique(np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(int))].tolist() if len(flat) \
        else []


def _put(numbers: Numbers, place: str, measures: Mapping[str, Sequence[float] | Sequence[float | None]]) -> None:
    for name, values in measures.items():
        numbers[f"{place} / {name}"] = [
            float(f"{v:.7g}") if v is not None and math.isfinite(v) else None for v in values]


def _quantity(place: str) -> str:
    """What the numbers of a place are, such as "gradients"."""
    return place.rpartition(" / ")[2]


def _scales(numbers: Numbers) -> dict[str, float]:
    """The largest entry of each quantity."""
    scales: dict[str, float] = {}
    for place, entries in numbers.items():
        scales[_quantity(place)] = max(scales.get(_quantity(place), 0.0), _largest(entries))
    return scales


def _largest(entries: Sequence[float | None]) -> float:
    return max((abs(v) for v in entries if v is not None), default=0.0)


def _first_difference(old: Sequence[float | None], new: Sequence[float | None], scale: float) -> int | None:
    return next((i for i, equal in enumerate(_equal(old, new, scale)) if not equal), None)


def _equal(old: Sequence[float | None], new: Sequence[float | None], scale: float, divisor: float = 1) -> list[bool]:
    floor = ABSOLUTE + max(FLOOR * _largest(old), SCALE * scale)
    return [a is None or b is not None and abs(a - b) <= (RELATIVE * abs(a) + floor) / divisor
            for a, b in zip(old, new, strict=True)]


def _stable(entries: Sequence[float | None], rounded: Sequence[float | None], scale: float) -> list[float | None]:
    """`entries`, with None for those that rounding changes."""
    if len(entries) != len(rounded):
        return [None] * len(entries)
    return [v if equal else None for v, equal in zip(entries, _equal(entries, rounded, scale, STABLE), strict=True)]


# -- the machine --------------------------------------------------------------------------------------------------


def _elsewhere(stored: Mapping, now: Mapping) -> str:
    """The differences between the two machines, in words. They may be the reason of a different number."""
    other = [f"{name} {stored['versions'].get(name, 'absent')} then, {version} now"
             for name, version in now["versions"].items() if stored["versions"].get(name) != version]
    if stored["cpu"] != now["cpu"]:
        other.append(f"CPU {stored['cpu']} then, {now['cpu']} now")
    return f" ({'; '.join(other)})" if other else ""
