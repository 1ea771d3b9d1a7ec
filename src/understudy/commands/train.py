"""understudy train"""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from .common import Despite, Device, Mapped, Out, Steps, Trust, cli, env_of, line, needed, opened, parse, split

if TYPE_CHECKING:
    from ..data.episode import Dataset
    from ..data.relabel import Say
    from ..envs.base import Env
    from ..learn.method import Method
    from ..learn.run import Run


FIRST = 200  # episodes of a stream that are looked at before it is trained on


@dataclass(frozen=True)
class Train:
    """Train a policy on demonstrations.

    Every field of the method can be set: --policy.head.steps 5 --learn.optim.rate 3e-4 --run.execute 2, after RECIPE
    and DATA; and the options of the recipe itself: --recipe.horizon 8. `understudy train RECIPE --help` lists them
    all with their defaults.

    After Ctrl-C, a kill or a power cut the same command goes on, and ends as if nothing had happened.
    """

    recipe: Annotated[str, Positional, arg(metavar="RECIPE")]
    """a method's name (understudy methods), module:function, or a method.json"""
    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations"""
    out: Annotated[Path, arg(metavar="RUN")]
    """the folder of the run"""
    steps: Annotated[int | None, arg(metavar="N")] = None
    """updates, in place of the method's"""
    seed: Annotated[int, arg(metavar="S")] = 0
    """of weights, order and noise"""
    device: Device = "auto"
    """where to compute; auto takes a GPU if there is one"""
    eval: Annotated[str | None, arg(metavar="ENV")] = None
    """roll out in it during training, on starts that `understudy eval` never uses; the best checkpoint is kept"""
    every: Annotated[int | None, arg(metavar="N")] = None
    """updates between checkpoints; a tenth of all by default"""
    rollouts: Annotated[int, arg(metavar="N")] = 20
    """episodes each time, with --eval"""
    hold: Annotated[float, arg(metavar="SHARE")] = 0.1
    """of the episodes kept for validation"""
    language: bool = False
    """read the task in words too (of the column or fact "task"), so that words decide what is done"""
    image_size: Annotated[int | tuple[int, int] | None, arg(metavar="PIXELS")] = None
    """side, or height and width, to which camera frames are decoded once"""
    buffer: Annotated[int | None, arg(metavar="STEPS")] = None
    """read DATA as a stream, shard by shard (.tar, .parquet; a folder of them, or demos-{000..099}.tar), with so many
    steps in memory at once"""
    map: Mapped = None
    """of topics to columns, for MCAP and ROS bags: what `understudy inspect --json` proposes, corrected"""
    despite: Despite = ()
    """train although an audit finds an error of this code"""
    include_interrupted: bool = False
    """also train on episodes whose recording was interrupted, which are left out otherwise"""
    max_episode_steps: Steps = None
    """after how many steps episodes of a D4RL file were cut, where it does not say (no timeouts)"""
    trust: Trust = ()
    """a package whose code may be loaded"""


def main(args: list[str]) -> None:
    own, options, changes = split(args)
    command = "understudy train " + shlex.join(args)
    if "-h" in own or "--help" in own:
        _help([a for a in own if a not in ("-h", "--help")], options)
    o = parse(Train, "train", own)
    from ..core import UserError
    from ..data.episode import interrupted_episodes
    from ..data.video import size_of
    from ..learn.devices import device
    from ..learn.run import Run
    from ..learn.train import held_out, train
    from .method import method_of, says

    if o.image_size is not None:
        size_of(o.image_size)
    where = device(o.device)
    out = Out()
    stream = None if o.buffer is None else _stream(o)
    data = (opened(o.data, o.image_size, o.map, o.despite, max_episode_steps=o.max_episode_steps) if stream is None
            else stream.first(FIRST))
    if o.image_size is not None and all(f.kind != "image" for f in data.features().values()):
        print("--image-size: the data have no camera frames", file=sys.stderr)
    say = _say(data) if o.language else None
    method = method_of(o.recipe, options, changes, data.features(), o.trust, f"understudy train {o.recipe}", say)
    score, env = None, None
    if o.eval is not None:
        from ..envs import make

        env = make(o.eval, min(o.rollouts, 16), o.trust)
        if say is not None and says(method).into not in env.features:
            raise UserError(f"expected an environment that says its task in words, found {o.eval}", where="--eval",
                            do="train without --eval, then: understudy eval RUN ENV --task WORDS")
        _fits(method, data, env)
        score = _score(method, env, o.rollouts, o.seed)
    kept = len(data) - (0 if o.include_interrupted else len(interrupted_episodes(data)))
    if kept and not held_out(kept, o.hold):
        print(f"no episode is held out{'' if o.hold == 0 else ': that takes 5 or more'}"
              ", so the error on other episodes is not measured", file=sys.stderr)
    said = Said(Run(o.out), o.steps or method.learn.steps, o.every, bool(kept and held_out(kept, o.hold) or score))
    try:
        train(method, data, o.out, steps=o.steps, seed=o.seed, device=where, score=score, every=o.every, hold=o.hold,
              watch=(said,), stream=stream, command=command,
              include_interrupted=o.include_interrupted)
    finally:
        if env is not None:
            env.close()
    places = Run(o.out).places()
    out.say(f"Written to {o.out}: " + ", ".join(f"{name} is {place}" for name, place in sorted(places.items()))
            + "; CARD.md says what it is, metrics.jsonl how it went.")
    acts = o.eval or env_of(data)
    there = [o.out, *([o.out / "best"] if o.eval and "best" in places else [])] if acts else []
    out.next(*(line("eval", run, acts, "--episodes", 100, *needed(o.trust, acts, run)) for run in there),
             line("eval", o.out, o.data, *needed((), None, o.out)))


def _stream(o: Train):
    from ..core import UserError
    from ..data.stream import Stream

    for name in ("image_size", "map", "max_episode_steps"):
        if getattr(o, name) is not None:
            raise UserError("expected no such option with --buffer: shards are read as they are",
                            where=f"--{name.replace('_', '-')}", do="leave one of the two out")
    stream = Stream(o.data, o.buffer)
    print(f"a stream of {len(stream):,} episodes, {stream.steps:,} steps in {len(stream.shards)} "
          f"shard{'s' * (len(stream.shards) != 1)}; statistics and validation are of the first "
          f"{min(FIRST, len(stream))}", file=sys.stderr)
    return stream


class Said:
    """A line a checkpoint: what its validation found, if there is one (`judged`), and the mean loss since the last."""

    def __init__(self, run: Run, steps: int, every: int | None, judged: bool):
        from ..learn.train import interval

        self.run, self.steps, self.every, self.judged = run, steps, every or interval(steps), judged
        self.losses: list[float] = []

    def __call__(self, step, learner, seen) -> None:
        if "loss" in seen:
            self.losses.append(seen["loss"])
            if self.judged or step < self.steps and step % self.every:
                return
        names = {"score": "score in rollouts", "validation/energy": "error on held-out episodes"}
        found = [f"{name} {seen[key]:.4g}" for key, name in names.items() if key in seen]
        losses = self.losses or self._before(step)
        if losses:
            found.append(f"loss {sum(losses) / len(losses):.4g}")
        if found:
            print(f"update {step}: {', '.join(found)}", file=sys.stderr)
        self.losses.clear()

    def _before(self, step: int) -> list[float]:
        """What the curve holds of the stretch up to `step`: a kill may come before its checkpoint was judged."""
        return [line["loss"] for line in self.run.lines()
                if (step - 1) // self.every * self.every < line["step"] <= step and line.get("loss") is not None]


def _help(own: list[str], options: list[str]) -> None:
    """Of the command, and, where a recipe is named, of every field that can be set."""
    with contextlib.suppress(SystemExit):
        parse(Train, "train", ["--help"])
    if own and not own[0].startswith("-"):
        from ..learn.method import Method
        from .method import method_of

        print(f"\nWhat can be set in {own[0]}, and its defaults:\n")
        method = method_of(own[0], options, [], None, tuple(_trusted(own)), "")
        cli(Method, ["--help"], f"understudy train {own[0]} DATA --out RUN", default=method)
    sys.exit(0)


def _trusted(own: list[str]) -> list[str]:
    return [b for a, b in zip(own[:-1], own[1:], strict=True) if a == "--trust"]


def _say(data: Dataset) -> Say:
    """With room for the longest task. Raises UserError where there are no words."""
    from ..core import UserError
    from ..data.relabel import Say, words

    longest = max(len(str(text).encode()) for episode in data for text in words(episode))
    if not longest:
        raise UserError("expected tasks in words, found none", where=data.facts.get("path", "data set"),
                        do="keep them in the column or fact 'task' of each episode, or leave out --language")
    return Say(max(Say().length, longest))


def _fits(method: Method, data, env: Env) -> None:
    """Raises UserError now, and not after the first hour, if the policy could not act there."""
    from ..nets.vision import weights_given
    from ..policy import Policy

    for relabel in method.data:
        data = data.map(relabel)
    with weights_given():  # nothing is fetched for this
        policy = Policy(method.policy, data.features())
    policy.check(env.features, str(env.facts["env"]), resized=True)


def _score(method: Method, env: Env, episodes: int, seed: int):
    """Success where it is defined, else the mean return; always on the same starts, which eval never uses."""
    from ..evaluate.judge import during, evaluate
    from ..execute.actor import Plays
    from ..execute.planners import Fixed

    def score(policy) -> float:
        found = evaluate(Plays(Fixed(policy), method.run, policy.frames), env, episodes, during(seed))
        return (found.success or found.returns).estimate
    return score
