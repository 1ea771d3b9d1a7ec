"""understudy improve with a person, who takes over from the policy: at a robot, or from a policy of LeRobot."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import ConfigError, UserError
from ...hints import pluralize
from .arms import confirm_calibrations, prepare_robot
from .common import (
    Output,
    acting_rate,
    command_line,
    draw_screen,
    given_options,
    plain_table,
    trained_rate,
    unused_path,
)
from .eval_options import EvalOptions
from .groups import ActingOptions
from .improve_success import check_reads
from .interactive import judge_pairs
from .options import refuse_given
from .policies import ROWS, load_actor
from .robot_options import command_keys, flush_input, show_session, tell_slow_cameras
from .sequential import fewest_rollouts
from .unblocked_output import unblocked_output

if TYPE_CHECKING:
    from ...data.episode import Dataset
    from ...envs.base import Env
    from ...envs.devices import JointKeyboard, RecordingKeys
    from ...execute.actor import Actor
    from ...improve.robot_takeover import RobotTakeoverEnv
    from ...improve.success import FrameRates, SuccessClassifier
    from ...improve.takeover import SupervisedEnv, TakeoverSupervisor
    from ...learn.method import Method
    from ...robots.base import Teleoperator
    from ...robots.safety import SafeRobot
    from .improve_options import ImproveOptions
    from .improve_page import Outcome

DEVICES = ("keyboard", "gamepad", "leader")


def check_robot_options(o: ImproveOptions) -> None:
    """Raises an error for options that have no effect with a robot, or need one."""
    if o.robot is None:
        o.refuse_without_robot("understudy robot --help names the robots; in an environment, --supervisor keyboard is "
                               "you")
        refuse_given(o, ("fps", "episode_time_s", "handover", "handover_seconds"), "needs --robot TYPE")
        if o.supervisor in ("gamepad", "leader"):
            raise ConfigError(f"a {o.supervisor} moves a robot, and none is named", where="--supervisor",
                              hint="--robot TYPE; in an environment: scripted, keyboard, or the run of another policy")
        return
    if o.env is not None:
        raise ConfigError("an environment and a robot are both named", where="--robot", hint="leave one of them out")
    if o.supervisor not in DEVICES:
        raise ConfigError("on a robot a person supervises" + (f", not {o.supervisor}" if o.supervisor else ""),
                          where="--supervisor", hint=f"{', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    if (o.teleop is not None) != (o.supervisor == "leader"):
        raise ConfigError("is missing" if o.supervisor == "leader" else f"has no effect with --supervisor "
                          f"{o.supervisor}", where="--teleop", hint="--supervisor leader --teleop so101_leader "
                          "--teleop.port PORT; keyboard and gamepad need none")
    if not sys.stdin.isatty() and needs_person(o):
        raise ConfigError("there is no terminal to read keys from", where=f"--supervisor {o.supervisor}",
                          hint="run it in a terminal, without a pipe")


def success_lines(o: ImproveOptions, success: str) -> list[str]:
    """Returns lines of the plan on the success classifier and the rater.

    Args:
        success: Who says what success is. Empty if there is no classifier.
    """
    from ...improve.step_rating import IS_GOOD
    from ...learn.method import Method

    rated = f"learned: what {o.rater} scores above 0.5, or above the mean of RUN's episodes of the task"
    if o.rater is not None and Method.load(o.rater, o.trust).policy.target == IS_GOOD:
        rated = f"learned: the steps that {o.rater} scores above 0.5"
    return [f"success: {success}"] * bool(success) + [rated] * (o.rater is not None)


def promotion_text(line: dict[str, Any]) -> str:
    """Returns in words whether the policy of a round became the best."""
    return "promoted" if line["promoted"] else "not promoted"


def learned_text(row: dict[str, Any]) -> str:
    """Returns in words how many of a person's steps in a round are learned. Empty if there are none."""
    acted, learned = row.get("round/acted"), row.get("round/learned")
    if not acted or learned is None:
        return ""
    others = ", the others are of a handover, taken back, or of an episode that is left out"
    return f"; {learned} of the {acted} are learned" + others * (learned < acted)


def tell_unfinished_rounds(o: ImproveOptions) -> None:
    """Says which episodes of an interrupted round are stored."""
    from ...improve.collection import UNFINISHED, round_folders

    for folder in round_folders(o.out / "collection", UNFINISHED):
        count = sum(1 for path in folder.glob("[0-9]*"))
        print(f"round {int(folder.name[-6:]) + 1} of {o.rounds}: {count} of {o.episodes} episodes are stored and not "
              "run again", file=sys.stderr)


def collected_all_rounds(o: ImproveOptions) -> bool:
    """Whether the episodes of all rounds are stored, so that no person has to act again."""
    from ...improve.collection import UNFINISHED, round_folders

    stored = [folder for folder in round_folders(o.out / "collection", UNFINISHED)
              if sum(1 for path in folder.glob("[0-9]*")) >= o.episodes]
    return len(round_folders(o.out / "collection")) + len(stored) >= o.rounds


def needs_person(o: ImproveOptions) -> bool:
    """Whether a person acts or judges at the robot, which is not connected otherwise."""
    return bool(o.compare) or not collected_all_rounds(o)


@dataclass(frozen=True)
class RobotImprovement:
    """One call of understudy improve with a robot.

    Args:
        origin: The command and its options, for the run to store.
        classifier: What says that an episode succeeds, and how often it is wrong. None if only the person does.
        begun: Options of the call that began the run. None if this one does.
    """

    o: ImproveOptions
    origin: Mapping[str, Any]
    out: Output
    resources: ExitStack
    classifier: tuple[SuccessClassifier, FrameRates] | None
    begun: ImproveOptions | None

    def run(self, data: Dataset, held_out: Any, method: Method, stages: dict[str, Path],
            include_interrupted: bool) -> None:
        from ...improve.blind_promotion import BlindPromotion
        from ...improve.collection import CollectionRounds
        from ...improve.takeover import TakeoverSupervisor
        from ...learn.critics.off_policy_actor_critic import ActorCritic
        from ...learn.devices import choose_device
        from ...learn.method import load_policy
        from ...learn.run import Run
        from ...learn.train import train

        o, run, rounds = self.o, Run(self.o.out), method.collection
        if isinstance(method.learner, ActorCritic):
            assert isinstance(rounds, CollectionRounds)
            method = replace(method, collection=replace(rounds, updates_meanwhile=True))
        env = self.prepare()
        load_untold_actor(o.run, env, o, rows=None)  # refuses other columns and other actions
        if self.classifier is not None:
            check_reads(self.classifier[0].planner, f"--success {o.success}", env)
        if o.rater is not None:
            check_reads(load_policy(o.rater, trust=o.trust), f"--rater {o.rater}", env)
        self._check_pairs()
        self._print_plan(method, data)
        self.connect(env)
        promotion = BlindPromotion(run, partial(self._compare, env) if o.compare else None)
        train(method, data, o.out, seed=o.seed, device=choose_device(o.device), score=promotion, stages=stages, env=env,
              person=TakeoverSupervisor(env.takeover, env.read), val_fraction=held_out, **self.origin,
              include_interrupted=include_interrupted, callbacks=(partial(_print_round, o.rounds),), progress=False)
        self._print_result(run)

    # -- what is needed ---------------------------------------------------------------------------------------------

    def prepare(self) -> RobotTakeoverEnv:
        """Returns the robot and the person as an environment. It is not connected yet."""
        from ...robots.registry import make_robot

        o = self.o
        robot = (prepare_robot(o.robot_config(), o.trust, o.yes) if needs_person(o) else
                 make_robot(o.robot_config(), o.trust))
        return self._env(robot, *self._device(robot))

    def connect(self, env: RobotTakeoverEnv) -> None:
        """Connects the robot and the device of the person after a question, if a person is needed."""
        self.resources.callback(env.close)
        if needs_person(self.o):
            self._ask_once()
            self.resources.enter_context(unblocked_output())
            self.resources.callback(tell_slow_cameras, env.robot)
            self.resources.enter_context(env.person.teleop)
            self.resources.enter_context(env.robot)

    def _device(self, robot: SafeRobot) -> tuple[Teleoperator, RecordingKeys, JointKeyboard | None]:
        """Returns the device of the person, the keys, and the keyboard if it moves the robot."""
        from ...improve.takeover import TakeoverJointKeyboard, TakeoverKeys
        from ...robots.registry import make_teleoperator
        from ...robots.teleoperators import VelocityTeleoperator

        o = self.o
        config = (o if o.supervisor == "leader" else replace(o, teleop=o.supervisor)).teleop_config(
            o.robot_use_degrees == "true")
        teleop, keyboard = make_teleoperator(config, robot, o.trust)
        if needs_person(o):
            confirm_calibrations(o.yes, robot, teleop)
        if keyboard is None:
            return teleop, TakeoverKeys(), None
        assert isinstance(teleop, VelocityTeleoperator)
        teleop.device = keys = TakeoverJointKeyboard(n_joints=keyboard.n_joints)
        return teleop, keys, keys

    def _env(self, robot: SafeRobot, teleop: Teleoperator, keys: RecordingKeys, keyboard: JointKeyboard | None
             ) -> RobotTakeoverEnv:
        from ...improve.robot_takeover import RobotPerson, RobotTakeoverEnv
        from ...robots.handover import Handover

        o = self.o
        handover = Handover(teleop, robot.limits, o.handover, o.handover_seconds)
        person = RobotPerson(handover, keys, show_session(robot, keyboard), partial(command_keys, keys))
        fps, recorded, source = acting_rate(o.fps, o.run), trained_rate(o.run), o.run
        if recorded is None and self.begun is not None:
            recorded, source = acting_rate(self.begun.fps, o.run), o.out
        if fps != (recorded or fps):
            raise ConfigError(f"new episodes are learned together with those of {source}, which have {recorded:g} "
                              "steps per second", where="--fps", hint=f"--fps {recorded:g}")
        return RobotTakeoverEnv(robot, person, fps, max(round(o.episode_time_s * fps), 1),
                                shows_success=None if self.classifier is None else self.classifier[0])

    def _ask_once(self) -> None:
        """Waits for enter. Before it, nothing moves and no motor has torque."""
        flush_input()
        print("press enter to connect: the motors hold the present pose, and nothing moves before you begin an episode "
              "(Ctrl-C: stop) ", end="", file=sys.stderr, flush=True)
        if not sys.stdin.readline():
            raise KeyboardInterrupt

    # -- the comparison ---------------------------------------------------------------------------------------------

    def _check_pairs(self) -> None:
        from ...evaluate.sequential import SequentialDifferenceTest

        if self.o.compare and (enough := fewest_rollouts(SequentialDifferenceTest, self.o.compare)) != self.o.compare:
            raise UserError(f"{self.o.compare} pairs of trials are too few for any verdict", where="--compare",
                            hint=f"at least {enough}; without --compare nothing is promoted")

    def _compare(self, env: RobotTakeoverEnv, newest: Path, best: Path, number: int) -> dict[str, Any]:
        """Lets the person judge blind trials of the policy after a round and of the best before it."""
        from ...evaluate.interactive import TrialDesign
        from ...evaluate.sequential import SequentialDifferenceTest

        o = self.o
        design = TrialDesign((f"the policy of round {number}", f"{best.name}, the best so far"),
                             SequentialDifferenceTest(max_rollouts=o.compare), seed=o.seed)
        options = EvalOptions(run=newest, against=best, interactive=True, episodes=o.compare, robot=o.robot,
                              episode_time_s=o.episode_time_s, seed=o.seed)
        actors = [load_untold_actor(path, env, o, rows=None) for path in (newest, best)]
        return judge_pairs(options, design, actors, env, o.out / "trials" / f"round-{number}.jsonl", self.out)

    # -- what is said -----------------------------------------------------------------------------------------------

    def _print_plan(self, method: Method, data: Dataset) -> None:
        from ...improve.improvement import IMPROVEMENTS

        o, collection = self.o, method.collection
        assert collection is not None
        compared = ("with nothing: without --compare N no round is promoted" if not o.compare else
                    f"each round with the best before it, in up to {o.compare} pairs of blind trials that you judge")
        plan = [f"method: {o.method}: {IMPROVEMENTS[o.method].summary}; supervisor: you, with a {o.supervisor}",
                f"robot: {o.robot}, {o.episode_time_s:g} s in an episode at most; between rounds it holds its pose",
                f"rounds: {collection.describe()}; {o.episodes} episodes in each, beside the {len(data)} of RUN",
                f"compared: {compared}",
                f"files: episodes in {o.out / 'collection'}; {o.out / 'best'} is the best policy, {o.out / 'last'} "
                "the newest", keys_line(o)]
        if not IMPROVEMENTS[o.method].starts_as_run:
            plan.append(f"start: untrained, so that it moves at random at first, and {o.out / 'best'} may be worse "
                        f"than {o.run}")
        judged = "" if self.classifier is None else f"as {o.success} says, or you; {self.classifier[1]}"
        plan += success_lines(o, judged)
        print(*plan, sep="\n", file=sys.stderr)
        tell_unfinished_rounds(o)

    def _print_result(self, run) -> None:
        from ...improve.blind_promotion import judged_checkpoints
        from ...improve.improvement import IMPROVEMENTS

        o, lines = self.o, judged_checkpoints(run)
        first = f"the policy of {o.run}" if IMPROVEMENTS[o.method].starts_as_run else f"untrained: keep {o.run}"
        rounds = [line for line in run.read_metrics() if "round" in line]
        names_of_pairs = ("pairs", "gain", "95% interval") if o.compare else ()
        cells = ((f"round {row['round'] + 1}", row["round/episodes"],
                  round(row["round/success"] * row["round/episodes"]), row["round/acted"],
                  row.get("round/learned", ""), row["round/watched"],
                  *((line.get("pairs", 0), *_difference(line)) if o.compare else ()), promotion_text(line))
                 for line, row in zip(lines[1:], rounds, strict=True))
        best = max(lines, key=lambda line: line["score"])
        self.out.print("", plain_table(("", "episodes", "successes", "acted", "learned", "watched",
                                        *names_of_pairs, ""), cells), "")
        if best["step"]:
            verdict = (f"{o.out / 'best'} is the policy of round {lines.index(best)}.",)
        elif not o.compare:
            verdict = ("Nothing was promoted, because nothing was compared.",
                       f"{o.out / 'last'} is the newest policy, and {o.out / 'best'} is {first}.")
        else:
            verdict = (f"No round improved the policy, and {o.out / 'best'} is {first}.",
                       "To try: more episodes in each round, more updates (--steps), or more demonstrations.")
        self.out.print(" ".join(verdict) + " The command below compares them." * (not o.compare))
        if o.html is not None:
            self._write_page(lines, rounds, verdict)
        self.out.suggest(
            command_line("eval", o.out / "last", "--against", o.run, "--interactive", *o.robot_arguments(),
                         *given_options(o, "trust")),
            command_line("inspect", o.out / "collection" / "000000" / "episodes.npz"))
        self.out.print_json({
            "run": str(o.out), "base": str(o.run), "method": o.method, "supervisor": o.supervisor, "robot": o.robot,
            "rounds": [{k: v for k, v in {**row, **line}.items() if k != "seconds"}
                       for line, row in zip(lines[1:], rounds, strict=True)],
            "best": str(run.checkpoint_path(best["step"]))})

    def _write_page(self, lines: list[dict[str, Any]], rounds: list[dict[str, Any]], verdict: tuple[str, ...]) -> None:
        """Writes the page: what each round cost the person, and how blind trials judged it."""
        from ...evaluate import plots
        from ...evaluate.report import Table
        from .improve_page import cost_figures, minutes_of, write_improvement_page

        o = self.o
        figures = cost_figures(o.out, rounds, _outcomes(lines, rounds), "success",
                               "In percent. In the episodes of a round you may have taken over. Its policy was trained "
                               "on the rounds before. The bands are 95% intervals.")
        gains = [(f"round {i}", line["difference"], line["difference/low"], line["difference/high"],
                  bool(line["difference/low"] > 0)) for i, line in enumerate(lines) if "difference" in line]
        if gains:
            figures.append(("Each round minus the best before it", plots.differences(gains),
                            "Blind trials, 95% intervals. A full dot: the interval lies above 0."))
        rows = tuple((f"round {row['round'] + 1}", row["round/episodes"],
                      round(row["round/success"] * row["round/episodes"]), row["round/acted"],
                      row.get("round/learned", ""), row["round/watched"], *minutes, line.get("pairs", 0),
                      promotion_text(line))
                     for line, row, minutes in zip(lines[1:], rounds, minutes_of(o.out), strict=True))
        header = ("", "episodes", "successes", "steps acted", "of them learned", "steps watched", "minutes acted",
                  "minutes watched", "pairs of trials", "")
        assert o.html is not None
        write_improvement_page(o.html, f"{o.run} improved with {o.method} on {o.robot}", o.out, rounds,
                               Table(header, rows), figures, verdict)
        self.out.print(f"Page written to {o.html}")


@dataclass(frozen=True)
class TakeoverRecording:
    """One call of understudy improve with a policy of LeRobot: takeovers are recorded, and nothing is trained."""

    o: ImproveOptions
    out: Output
    resources: ExitStack

    def run(self) -> None:
        from ...data.formats import write_dataset
        from ...envs import make
        from ...improve.recorded_takeovers import record_takeovers, takeover_episodes
        from ...improve.takeover import TakeoverSupervisor

        o, place = self.o, self.o.out / "takeovers"
        at_robot = RobotImprovement(o, {}, self.out, self.resources, None, None)
        robot = None if o.robot is None else at_robot.prepare()
        env = make(str(o.env), 1, o.trust) if robot is None else robot
        acting = ActingOptions(device=o.device, trust=o.trust, seed=o.seed, task=o.task)
        actor = load_actor(o.run, env, acting, rows=None)[0]
        self._print_plan(place)
        if robot is None:
            self.resources.callback(env.close)
            watched, person = watched_toy(env, self.resources)
        else:
            at_robot.connect(robot)
            watched, person = robot, TakeoverSupervisor(robot.takeover, robot.read)
        settings = {"RUN": str(o.run), "--env": o.env, "--robot": o.robot, "--task": o.task, "--fps": o.fps,
                    "--episodes": o.episodes, "--seed": o.seed}
        episodes = record_takeovers(actor, watched, person, o.episodes, o.seed, o.out / "collection", settings)
        takeovers = takeover_episodes(episodes, o.task)
        if len(takeovers) and not place.exists():
            write_dataset(takeovers, place)
        self._print_result(episodes, takeovers, place)

    def _print_plan(self, place: Path) -> None:
        o = self.o
        print(f"method: {o.method}, without training: you watch, take over and give back, with a {o.supervisor}",
              f"episodes: {o.episodes} of {o.robot or o.env}; nothing is compared",
              f"files: episodes in {o.out / 'collection'}, your takeovers in {place}", keys_line(o), sep="\n",
              file=sys.stderr)
        tell_unfinished_rounds(o)

    def _print_result(self, episodes: Dataset, takeovers: Dataset, place: Path) -> None:
        o, data, together = self.o, self.o.data or "DATA", Path(unused_path("together"))
        acted, watched = (sum(e.metadata[name] for e in episodes) for name in ("acted", "watched"))
        self.out.print(f"{pluralize(len(episodes), 'episode')}: you acted {acted} steps and watched {watched}.")
        if not len(takeovers):
            self.out.print("Nothing is to be learned, because you did not take over, or took it back.")
        else:
            policy = str(o.run).removeprefix("lerobot:")
            self.out.print(
                f"{pluralize(len(takeovers), 'takeover')} of {takeovers.steps} steps in {place}, each as an episode. "
                f"Nothing was trained, and {o.run} is as it was. Train it with LeRobot on the demonstrations and the "
                "takeovers together, or another policy here:")
            view = together.with_suffix(".json")
            self.out.suggest(
                command_line("merge", data, place, "--out", view), command_line("convert", view, together),
                shlex.join(["lerobot-train", f"--policy.path={policy}", f"--dataset.repo_id=local/{together}",
                            f"--dataset.root={together}", "--policy.push_to_hub=false"]),
                command_line("train", "METHOD", together, "--out", unused_path("run")))
        self.out.print_json({
            "run": str(o.out), "base": str(o.run), "method": o.method, "supervisor": o.supervisor, "env": o.env,
            "robot": o.robot, "episodes": len(episodes), "human_steps": {"acted": acted, "watched": watched},
            "takeovers": len(takeovers), "learned": takeovers.steps})


def keys_line(o: ImproveOptions) -> str:
    """Returns the line of the plan on the keys of the person."""
    from ...improve.takeover import KEYS

    if o.robot is None:
        return f"keys: {KEYS}; WASD or the arrows move, space stops"
    pedals = "; space: hold, tab: take over" * (o.supervisor != "keyboard")
    return f"keys: {KEYS}{pedals}" + "; moving the leader takes over" * (o.supervisor == "leader")


def watched_toy(env: Env, resources: ExitStack) -> tuple[SupervisedEnv, TakeoverSupervisor]:
    """Returns a toy that a person at the keyboard watches, and the person."""
    import numpy as np

    from ...evaluate.teleoperate import Screen
    from ...improve.takeover import SupervisedEnv, Takeover, TakeoverKeyboard, TakeoverSupervisor

    size = env.features["action"].shape
    low, high = (np.broadcast_to(env.metadata.get(k, np.nan), size).reshape(-1).tolist() for k in ("low", "high"))
    keyboard, takeover = TakeoverKeyboard(low, high), Takeover()
    if sys.stdin.isatty():  # if not, all episodes are stored, and nobody acts
        resources.enter_context(keyboard.listening())
    screen = Screen(draw_screen, max(8, min(24, shutil.get_terminal_size().lines - 6)))
    return SupervisedEnv(env, keyboard, takeover, screen), TakeoverSupervisor(takeover, keyboard.read)


def load_untold_actor(run: Path, env: Env, o: ImproveOptions, rows: int | None = ROWS) -> Actor:
    """Loads the actor of a run for an environment that shows all that it reads. No option of improve tells it more."""
    try:
        return load_actor(run, env, ActingOptions(device=o.device, trust=o.trust, seed=o.seed), rows)[0]
    except UserError as error:
        if error.where not in ("--condition", "--task"):
            raise
        raise UserError(f"it acts only when it is told a goal, a number or a task (as eval does with {error.where}), "
                        "and improve tells nothing", where=run,
                        hint="choose an environment that shows it (--env ENV), or train a policy that is told nothing "
                             "(understudy train bc)") from None


def _outcomes(lines: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> dict[str, list[Outcome]]:
    """Returns success in the episodes of the rounds, and in the blind trials after them, if there are any."""
    from ...evaluate.stats import wilson
    from .improve_page import Outcome

    def outcome(n_rounds: int, successes: int, trials: int) -> Outcome:
        interval = wilson(successes, trials)
        return Outcome(n_rounds, interval.estimate, interval.low, interval.high)

    episodes = [outcome(i, round(row["round/success"] * row["round/episodes"]), row["round/episodes"])
                for i, row in enumerate(rounds)]
    trials = [outcome(i, line["successes"][0], line["pairs"]) for i, line in enumerate(lines) if line.get("pairs")]
    return {"episodes of the rounds": episodes, **({"blind trials after them": trials} if trials else {})}


def _difference(line: dict[str, Any]) -> tuple[str, str]:
    if "difference" not in line:
        return "", ""
    return (f"{100 * line['difference']:+.0f}",
            f"{100 * line['difference/low']:+.0f}, {100 * line['difference/high']:+.0f}")


def _print_round(n_rounds: int, step, learner, metrics) -> None:
    """Prints the episodes of a round, or whether its policy became the best. A callback of the training."""
    if "round" in metrics:
        print(f"round {int(metrics['round']) + 1} of {n_rounds}: {metrics['round/episodes']} episodes, "
              f"{metrics['round/steps']} steps (you acted {metrics['round/acted']} and watched "
              f"{metrics['round/watched']}){learned_text(metrics)}; now it trains", file=sys.stderr)
    elif "promoted" in metrics and step:
        print(f"  {promotion_text(metrics)}", file=sys.stderr)
