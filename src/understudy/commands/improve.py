"""The command understudy improve."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import ConfigError, UserError
from ..files import whole_folder
from ..serve.address import lerobot_name
from .parts.common import (
    Output,
    command_line,
    open_data,
    parse,
    read_provenance,
    recorded_env_of,
    trained_rate,
    trust_options,
    unused_path,
    warn_of_other_units,
)
from .parts.improve_options import ImproveOptions
from .parts.improve_robot import (
    DEVICES,
    RobotImprovement,
    TakeoverRecording,
    check_robot_options,
    collected_all_rounds,
    keys_line,
    load_untold_actor,
    promotion_text,
    success_lines,
    tell_unfinished_rounds,
    watched_toy,
)
from .parts.improve_rounds import COSTS, costs_of, fresh_json, print_round, rate_text, rounds_json, table_of
from .parts.improve_success import check_reads, load_classifier
from .parts.options import change_fields, options_of, parse_changes, refuse_given, split_arguments
from .parts.run_options import (
    improve_options_of,
    learns_interrupted,
    missing_data,
    run_options,
    train_arguments,
    trained_on,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data.episode import Dataset
    from ..envs.base import Env
    from ..evaluate.evaluation import Evaluation
    from ..execute.actor import Actor
    from ..improve.improvement import ImprovementMethod
    from ..improve.promotion import Promotion
    from ..improve.success import FrameRates, SuccessClassifier
    from ..learn.method import Method
    from ..learn.run import Run
COLLECTION_ROWS, COMPARISON_ROWS = 8, 16  # environments side by side; results do not depend on it
N_STARTS = 100  # number of starts of each comparison, except on a robot
PROG, FLAGS = "understudy improve", tuple(option.flag for option in options_of(ImproveOptions))


def main(args: list[str]) -> None:
    own, *of_method = split_arguments(args, ImproveOptions)
    o = parse(ImproveOptions, "improve", own)
    if lerobot_name(str(o.run)) is not None:
        o = _recording_options(o, [*chain(*of_method)])
        check_robot_options(o)
        with Output(o.json) as out, ExitStack() as resources:
            TakeoverRecording(o, out, resources).run()
        return
    refuse_given(o, ("task",), "is for policies of LeRobot")
    check_robot_options(o)
    if o.robot is None and not o.compare:
        o = replace(o, compare=N_STARTS)
    with Output(o.json) as out, ExitStack() as resources:
        _Command(o, [*chain(*of_method)], "understudy improve " + shlex.join(args), out, resources).run()


def _recording_options(o: ImproveOptions, of_method: Sequence[str]) -> ImproveOptions:
    """Returns the options with a policy of LeRobot, which LeRobot trains. Raises an error for those of a training."""
    if of_method:
        raise ConfigError("is no option of this command, and a policy of LeRobot is not trained here",
                          where=of_method[0], hint="leave it out, or give it to lerobot-train")
    if o.method != "hg-dagger":
        raise ConfigError(f"{o.method} trains, and LeRobot trains this policy", where=f"--with {o.method}",
                          hint="--with hg-dagger, which records your takeovers")
    refuse_given(o, ("rounds", "steps", "compare", "collect_with", "success", "rater", "html"),
                 "has no effect on a policy of LeRobot, which is not trained here")
    if o.robot is None and (o.env is None or o.supervisor != "keyboard"):
        raise ConfigError("the takeovers of a person are recorded", where="--supervisor",
                          hint="--env ENV --supervisor keyboard, or --robot TYPE with keyboard, gamepad or leader")
    return replace(o, rounds=1)


@dataclass(frozen=True)
class _Command:
    """One call of the command understudy improve.

    Args:
        method_options: Options of the method that the user gave, as words.
    """

    o: ImproveOptions
    method_options: list[str]
    command: str
    out: Output
    resources: ExitStack

    def run(self) -> None:
        from ..evaluate.env_checks import warn_unless_repeatable
        from ..evaluate.evaluation import validation_seed
        from ..execute.wrappers import NoiseSteeringWrapper
        from ..learn.devices import choose_device
        from ..learn.preflight import preflight, tell
        from ..learn.run import Run
        from ..learn.train import train

        o, run = self.o, Run(self.o.out)
        env_name, data, held_out, method, stages = self._prepare()
        self._check_resumed(env_name)
        if not isinstance(method.wrapper, NoiseSteeringWrapper):  # it learns from first episodes of its own
            tell(preflight(method, data, val_fraction=held_out, include_interrupted=learns_interrupted(o.run)).findings)
        if o.robot is not None:
            classifier = None if o.success is None else self.classifier
            RobotImprovement(o, self._origin(method), self.out, self.resources, classifier, self._begun).run(
                data, held_out, method, stages, learns_interrupted(o.run))
            return
        env = self._make(env_name, COMPARISON_ROWS)
        base = load_untold_actor(o.run, env, o)
        warn_unless_repeatable(base, env, validation_seed(o.seed))
        collection_env, person = self._people(env_name, method, env, stages)
        promotion = self._compare_base(run, env, base)
        self._print_plan(method, data, env_name, promotion)
        if not self._kind.starts_as_run:  # the first checkpoint is compared as it is
            promotion = replace(promotion, base=None)
        if isinstance(method.wrapper, NoiseSteeringWrapper):
            data, held_out = self._steered_data(method, collection_env, data), 0.0
        train(method, data, o.out, seed=o.seed, device=choose_device(o.device), score=promotion, stages=stages,
              env=collection_env, person=person, val_fraction=held_out, **self._origin(method),
              include_interrupted=learns_interrupted(o.run), callbacks=(partial(print_round, o.rounds),),
              progress=False)
        self._print_result(run, env_name, env, base, data)

    # -- what is needed ------------------------------------------------------------------------------------------

    def _prepare(self) -> tuple[str, Dataset, Any, Method, dict[str, Path]]:
        """Prepares the environment, the data and the held-out episodes, the method and the runs of its stages."""
        from ..checkpoint import find_checkpoint
        from ..improve.improvement import LEARNS_FROM_ITSELF, Improvement

        o = self.o
        people = dict.fromkeys(DEVICES if o.robot is not None else ("keyboard",), "person")
        supervisor = {"scripted": "expert", **people}.get(o.supervisor or "", o.supervisor)
        if supervisor not in (None, "expert", "person"):
            supervisor = Path(str(supervisor))
            try:
                find_checkpoint(supervisor)
            except UserError as error:
                raise UserError(f"{o.supervisor!r} is neither a supervisor nor a run: {error.problem}",
                                where="--supervisor", hint="name scripted (the expert of the environment), "
                                "keyboard (you, in a terminal), or the run of another policy") from None
        find_checkpoint(o.run)
        if o.out.resolve() in (o.run.resolve(), *o.run.resolve().parents):
            raise UserError("this is the run to improve, which stays as it is", where="--out",
                            hint="choose another folder")
        env_name = o.robot or o.env or recorded_env_of(o.run)
        if env_name is None:
            raise UserError(f"the data of {o.run} do not say in which environment they were recorded", where="--env",
                            hint="name it: --env ENV")
        if supervisor == "person" and not sys.stdin.isatty() and not collected_all_rounds(o):
            raise UserError("there is no terminal to read keys from", where="--supervisor keyboard",
                            hint="run it in a terminal, without a pipe; or --supervisor scripted")
        data, is_unchanged = self._trained_episodes(o.run, o.data)
        held_out = read_provenance(o.run)["held_out"] if is_unchanged else 0.1
        acts_best = o.robot is not None and o.compare and o.method not in LEARNS_FROM_ITSELF
        improvement = Improvement(o.run, data, supervisor, o.rounds, o.episodes, o.steps, o.trust, o.intervention_rate,
                                  o.collect_with or ("best" if acts_best else "last"), o.rater)
        method, stages = improvement.build(o.method)
        return env_name, data, held_out, change_fields(method, self.method_options, PROG, FLAGS), stages

    def _origin(self, method: Method) -> dict[str, Any]:
        """Returns the command and its options, for the run to store."""
        from .parts.method import method_options_to_json

        given_values = method_options_to_json(parse_changes(method, self.method_options, PROG))
        return {"command": self.command, "options": run_options("improve", self.o, given_values)}

    @cached_property
    def _begun(self) -> ImproveOptions | None:
        """Options of the call that began this run. None if this one does."""
        from ..learn.run import Run

        if not Run(self.o.out).saved_steps():
            return None
        if (begun := improve_options_of(self.o.out)) is None:
            raise UserError("there is a run of another command", where=self.o.out, hint="choose another --out")
        return begun

    def _check_resumed(self, env_name: str) -> None:
        """Raises UserError if a run would continue with another robot, classifier, environment, or number of rounds.

        On a robot a person compares, in as many trials as they like.
        """
        from ..learn.method import Method

        if (begun := self._begun) is None:
            return
        watched = self.o.robot is not None or begun.robot is not None
        for name, old, new in (("robot", begun.robot, self.o.robot), ("success", begun.success, self.o.success),
                               *(() if watched else (
                                   ("env", begun.env or recorded_env_of(self.o.run), env_name),
                                   ("compare", begun.compare or N_STARTS, self.o.compare)))):
            if old != new and not (isinstance(old, Path) and isinstance(new, Path) and old.resolve() == new.resolve()):
                raise UserError(f"its rounds were compared with --{name} {old}" if old is not None else
                                f"its rounds were compared without --{name}", where=self.o.out,
                                hint="choose another --out, or give the command it was begun with: "
                                     f"{read_provenance(self.o.out)['command']}")
        if begun.rounds != self.o.rounds:
            further = command_line("improve", self.o.out, "--with", self.o.method,
                                   "--robot" if self.o.robot else "--env", env_name)
            can_go_on = Method.load(self.o.out, self.o.trust).wrapper is None
            raise UserError(f"it was begun with --rounds {begun.rounds}, not {self.o.rounds}", where=self.o.out,
                            hint="choose another --out" + (
                                f", or improve its policy further when they are complete: {further} ... --out OTHER"
                                if can_go_on else ""))

    def _trained_episodes(self, run: Path, replacement: Path | None) -> tuple[Dataset, bool]:
        """Returns the episodes that a run was trained on, or `replacement`, and whether the run was trained on them."""
        from ..learn.method import load_policy

        command, improved = improve_options_of(run), None
        if command is not None and command.data is None and replacement is None and command.run.exists():
            improved = self._trained_episodes(command.run, None)[0]
        path = replacement or trained_on(run)
        if path is None or not path.exists():
            raise UserError(missing_data(path), where=run,
                            hint="name them, or other demonstrations of the task: --data DATA")

        def opened(place: Path) -> Dataset:
            size = next(iter(load_policy(run, trust=self.o.trust).image_sizes.values()), None)
            return open_data(place, size, ignore=(), run=run)
        if improved is None:
            improved = opened(path)
        if improved.fingerprint() == read_provenance(run).get("data", {}).get("fingerprint"):
            return self._with_rounds(improved, run), True
        if replacement is None:
            raise UserError(f"the data have changed since it was trained: {path}", where=run,
                            hint=f"train it again on them, or improve it with them as they are: --data {path}")
        if (old := trained_on(run)) is not None and old.exists():
            warn_of_other_units(opened(old), str(old), improved, f"--data {replacement}")
        if command is not None:
            print(f"the episodes that {run} collected are not learned again, because {replacement} is not what it "
                  "began with", file=sys.stderr)
        return improved, False

    def _with_rounds(self, data: Dataset, run: Path) -> Dataset:
        """Adds the episodes that a run has collected and learned."""
        from ..improve.collection import CollectionRounds
        from ..improve.earlier_rounds import with_earlier_rounds
        from ..learn.method import Method

        if not isinstance(Method.load(run, self.o.trust).collection, CollectionRounds):
            return data
        data, count = with_earlier_rounds(data, run, self.o.trust)
        if count:
            print(f"{count} episodes that {run} collected are not learned again, because its transforms would change "
                  "them once more", file=sys.stderr)
        return data

    def _make(self, name: str, rows: int) -> Env:
        from ..envs import make
        from ..improve.success import ClassifiedSuccess

        env = make(name, rows, self.o.trust)
        self.resources.callback(env.close)
        if self.o.success is None:
            return env
        check_reads(self.classifier[0].planner, f"--success {self.o.success}", env)
        return ClassifiedSuccess(env, self.classifier[0])

    @cached_property
    def classifier(self) -> tuple[SuccessClassifier, FrameRates]:
        """Classifier of --success, and how often it is wrong."""
        assert self.o.success is not None
        return load_classifier(self.o.success, trained_on(self.o.success), self.o.trust)

    def _people(self, env_name: str, method: Method, env: Env, stages: dict[str, Path]) -> tuple[Env, Actor | None]:
        """Returns the environment of the collection, and the person if one takes part. Checks the supervisor."""
        from ..improve.supervisors import check_units
        from ..learn.fit_method import check_collection
        from ..learn.method import load_policy

        o = self.o
        if o.supervisor is None and o.rater is None and not env.metadata.get("success"):
            raise UserError(f"{o.method} needs a success signal ({self._kind.summary}), and {env_name} "
                            "defines no success", where="--with",
                            hint="choose a method with a supervisor, such as dagger, an environment whose info has "
                                 "\"success\", or a classifier: --success RUN")
        if o.rater is not None:
            check_reads(load_policy(o.rater, trust=o.trust), f"--rater {o.rater}", env)
        if o.supervisor not in (None, "scripted", "keyboard"):
            load_untold_actor(Path(o.supervisor), env, o)  # refuses other columns and other actions
            check_units(load_policy(o.supervisor, trust=o.trust).features, trained_rate(Path(o.supervisor)),
                        env.features, env.metadata.get("fps"))
        if o.supervisor != "keyboard":
            check_collection(method, env, None, existing_stages=stages.keys())
            return self._make(env_name, COLLECTION_ROWS), None
        return watched_toy(self._make(env_name, 1), self.resources)

    def _compare_base(self, run: Run, env: Env, base: Actor) -> Promotion:
        """Builds the comparison of rounds, with the evaluation of the base policy if the run is new."""
        from ..evaluate.env_checks import warn_of_early_ends
        from ..improve.promotion import Promotion, compared_checkpoints

        o = self.o
        promotion = Promotion(env, o.compare, o.seed, run)
        if compared_checkpoints(run) and self._kind.starts_as_run:
            return promotion
        evaluation = promotion.evaluate(base)
        warn_of_early_ends(evaluation.episodes, env)
        if o.supervisor is o.rater is None and evaluation.success is not None and not evaluation.success.estimate:
            raise UserError(f"{o.run} succeeded in none of {o.compare} episodes, and {o.method} learns from successes",
                            where="--with", hint="practice needs a first success: record more demonstrations, make the "
                            "task easier, or choose a method with a supervisor, such as --with dagger")
        return replace(promotion, base=evaluation)

    @property
    def _kind(self) -> ImprovementMethod:
        from ..improve.improvement import IMPROVEMENTS

        return IMPROVEMENTS[self.o.method]

    def _steered_data(self, method: Method, env: Env, data: Dataset) -> Dataset:
        """Returns the first episodes of a policy whose noise is steered, collected once and stored in RUN2."""
        from ..data.formats import open_dataset, write_dataset
        from ..improve.practice import steered_episodes
        from ..learn.method import load_policy

        o, folder = self.o, self.o.out / "random"
        if not folder.is_dir():
            episodes = steered_episodes(method, load_policy(o.run, trust=o.trust), env, data, o.seed)
            with whole_folder(folder) as part:
                write_dataset(episodes, part / "episodes.npz", "npz")
        return open_dataset(folder / "episodes.npz")

    # -- what is said --------------------------------------------------------------------------------------------

    def _print_plan(self, method: Method, data: Dataset, env_name: str, promotion: Promotion) -> None:
        from ..data.episode import interrupted_episodes
        from ..improve.promotion import compared_checkpoints
        from ..learn.behavior_cloning import BehaviorCloning
        from ..learn.method import Method

        o, collection, base, unit = self.o, method.collection, promotion.base, _unit(promotion.env)
        assert collection is not None
        if base is None:
            line = compared_checkpoints(promotion.run)[0]
        else:
            rate = base.success or base.returns
            line = {"score": rate.estimate, "score/low": rate.low, "score/high": rate.high}
        who = "" if o.supervisor is None else f"; supervisor: {o.supervisor}"
        n_learned = len(data) - (0 if learns_interrupted(o.run) else len(interrupted_episodes(data)))
        plan = [f"base: {o.run}, {unit} {rate_text(line, unit)} in {o.compare} episodes of {env_name}",
                f"method: {o.method}: {self._kind.summary}{who}",
                f"rounds: {collection.describe()}; {o.episodes} episodes in each, beside the {n_learned} of RUN",
                f"compared: on the {o.compare} starts of the base, on which nothing trains; at the end on fresh ones",
                f"files: episodes in {o.out / 'collection'}; {o.out / 'best'} is the best policy, {o.out / 'last'} "
                "the newest"]
        plan += success_lines(o, "" if o.success is None else f"as {o.success} says; {self.classifier[1]}")
        learner = Method.load(o.run, o.trust).learner
        if not self._kind.starts_as_run:
            plan.append(f"start: untrained, so {o.out / 'best'} may be worse than {o.run}; the last lines say whether")
        if isinstance(method.learner, BehaviorCloning) and not isinstance(learner, BehaviorCloning):
            plan.append(f"learner: cloning with its usual settings, in place of {type(learner).__name__} of {o.run}")
        if o.supervisor == "keyboard":
            plan.append(keys_line(o))
        print(*plan, sep="\n", file=sys.stderr)
        tell_unfinished_rounds(o)

    def _print_result(self, run: Run, env_name: str, env: Env, base_actor: Actor, data: Dataset) -> None:
        from ..evaluate.evaluation import compare, evaluate, verdict
        from ..improve.promotion import best_checkpoint, compared_checkpoints

        o, lines = self.o, compared_checkpoints(run)
        rounds = [line for line in run.read_metrics() if "round" in line]
        costs = {name: sum(line.get(f"round/{name}", 0) for line in rounds) for name in COSTS}
        self.out.print("", table_of(lines, rounds, _unit(env), "base" if self._kind.starts_as_run else "untrained"), "")
        best = best_checkpoint(lines)
        base, other = evaluate(base_actor, env, o.compare, o.seed), None
        if best["step"]:
            other = evaluate(load_untold_actor(o.out / "best", env, o), env, o.compare, o.seed)
            self.out.print(verdict(other, base, (f"the policy in {o.out / 'best'}", f"the policy in {o.run}")))
        else:
            same = f"{o.out / 'best'} is " + (f"the policy of {o.run}" if self._kind.starts_as_run else
                                              f"untrained: keep {o.run}")
            self.out.print(f"No round improved the policy, and {same}. To try: more episodes in each round, more "
                           "updates (--steps), another method, or more demonstrations.")
        self._print_costs(costs, data, env_name, lines[-1]["step"], improved=other is not None)
        if o.html is not None:
            self._write_page(lines, rounds, env, base, other)
        self.out.print_json({
            "run": str(o.out), "base": str(o.run), "method": o.method, "supervisor": o.supervisor, "env": env_name,
            "human_steps": costs, "rounds": rounds_json(lines, rounds), "best": str(run.checkpoint_path(best["step"])),
            "fresh": fresh_json(base, other, None if other is None else compare(other, base))})

    def _write_page(self, lines, rounds, env: Env, base: Evaluation, best: Evaluation | None) -> None:
        """Writes the page: the outcome of each round against what it cost the supervisor."""
        from ..evaluate import plots
        from ..evaluate.evaluation import verdict_parts
        from ..evaluate.report import Table
        from .parts.improve_page import Outcome, cost_figures, minutes_of, write_improvement_page

        o, unit = self.o, _unit(env)
        outcomes = [Outcome(i, line["score"], line["score/low"], line["score/high"]) for i, line in enumerate(lines)]
        note = (f"On the {o.compare} starts that all rounds share" + ", in percent" * (unit == "success")
                + ". The band is the 95% interval.")
        figures = cost_figures(o.out, rounds, {o.method: outcomes}, unit, note)
        gains = [(f"round {i}", line["gain"], line["gain/low"], line["gain/high"], bool(line["gain/low"] > 0))
                 for i, line in enumerate(lines) if "gain" in line]
        figures.append(("Each round minus the best before it", plots.differences(gains, percent=unit == "success"),
                        "95% intervals on the same starts. A full dot: the interval lies above 0."))
        is_person, minutes = o.supervisor == "keyboard", minutes_of(o.out)
        rows = tuple((f"round {row['round'] + 1}", row["round/steps"], *costs_of(row), *(times if is_person else ()),
                      rate_text(line, unit).partition(" ")[0], promotion_text(line))
                     for line, row, times in zip(lines[1:], rounds, minutes, strict=True))
        names_of_times = ("minutes acted", "minutes watched") if is_person else ()
        names = (f"the policy in {o.out / 'best'}", f"the policy in {o.run}")
        verdict = ("No round improved the policy.",) if best is None else verdict_parts(best, base, names)
        assert o.html is not None
        write_improvement_page(o.html, f"{o.run} improved with {o.method}", o.out, rounds,
                               Table(("", "steps", *COSTS, *names_of_times, unit, ""), rows), figures, verdict)
        self.out.print(f"Page written to {o.html}")

    def _print_costs(self, costs: dict[str, int], data: Dataset, env_name: str, n_updates: int, improved: bool) -> None:
        """Prints the cost to a person, and the number of demonstrations of the same cost."""
        from ..checkpoint import find_checkpoint
        from ..data.mixture import ROUND
        from ..hints import pluralize

        o, total, trust = self.o, sum(costs.values()), trust_options(self.o.trust, env_name)
        commands = [command_line("eval", o.out / "best", env_name, "--against", o.run, "--episodes", 4 * o.compare,
                                 "--seed", o.seed + 1, *trust)] if improved else []
        if total:
            lengths = [len(e) for e in data if ROUND not in e.metadata]  # lengths of demonstrations
            count = max(round(total / (sum(lengths) / len(lengths))), 1)
            self.out.print(f"The supervisor acted {costs['acted']} steps, labeled {costs['labeled']} and watched "
                           f"{costs['watched']}. As many steps are {pluralize(count, 'more demonstration')}, the first "
                           "rival of every correction: record them, train on all with as many updates, and compare.")
            more, path, together = unused_path("more"), o.data or trained_on(o.run), unused_path("together.json")
            again = train_arguments(o.run, together, _UNCHANGED)
            commands += [command_line("record", env_name, "--out", more, "--episodes", count, "--seed", o.seed + 1,
                                      *(("--actor", "keyboard") if o.supervisor == "keyboard" else ()), *trust)]
            if again is not None:
                rival = unused_path("rival")
                commands += [command_line("merge", path, more, "--out", together),
                             command_line(*again, "--out", rival, "--steps",
                                          int(find_checkpoint(o.run).name) + n_updates),
                             command_line("eval", o.out / "best", env_name, "--against", rival, *trust)]
        else:
            self.out.print("It cost no human steps.")
        self.out.suggest(*commands, command_line("plot", o.out))


_UNCHANGED = ("out", "steps", "eval", "rollouts", "save_freq", "tensorboard", "wandb", "json")  # by these, the policy


def _unit(env: Env) -> str:
    return "success" if env.metadata.get("success") else "mean return"
