"""understudy eval --interactive: a person judges trials of a real robot without knowing which policy is running."""

from __future__ import annotations

import inspect
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import UserError
from ...methods import find_function
from ...serve.address import served_address
from .arms import prepare_robot
from .common import Output, acting_rate, given_options, plain_table
from .conditions import parse_conditions, shown_demonstrations, tell_distant_conditions
from .options import refuse_given
from .policies import (
    load_actor,
    load_policy,
    refuse_unused_conditions,
    task_columns,
    tell_checkpoint,
    tell_untrained_task,
    weights_digest,
    weights_path,
)
from .robot_options import command_keys, flush_input, show_line
from .sequential import build_test, write_sequential_page
from .served import changed_checkpoint
from .unblocked_output import unblocked_output

if TYPE_CHECKING:
    from ...evaluate.interactive import Trial, TrialDesign, TrialLog, TrialSession
    from ...execute.actor import Actor
    from ...robots.env import RobotEnv
    from .eval_options import EvalOptions

TRIAL_LOG = Path("trials.jsonl")


def run_interactive(o: EvalOptions, out: Output) -> None:
    """Runs or resumes an evaluation in which a person judges the trials."""
    from ...evaluate.interactive import TrialDesign

    runs = [o.run] if o.against is None else [o.run, o.against]
    names = tuple(served_address(run) or str(run) for run in runs)  # a path has lost a slash of ws://
    design = TrialDesign(names, build_test(o), o.labels, o.seed)
    for label in o.labels:
        if not label or label.split() != [label] or label.isdigit() or label in PROMPT_COMMANDS:
            raise UserError(f"a label must be one word, and neither a number nor a command "
                            f"({', '.join(PROMPT_COMMANDS)}), but is {label!r}", where="--labels",
                            hint="worst first, success last: failure grasped success")
    if o.target is not None and o.robot is not None:
        raise UserError("a loop of your own and a robot are both named", where="--robot",
                        hint="leave one of them out")
    with ExitStack() as stack:
        _run_trials(o, out, runs, design, stack)


def _run_trials(o: EvalOptions, out: Output, runs: list[Path], design: TrialDesign, stack: ExitStack) -> None:
    """Runs the trials. A robot that was connected is released with `stack`."""
    from ...evaluate.interactive import TrialLog
    from ...robots.env import RobotEnv

    robot = None
    if o.robot is not None:
        fps = acting_rate(o.fps, *runs)
        robot = RobotEnv(prepare_robot(o.robot_config(), o.trust, o.yes), fps)
    loop = (_robot_loop(o, robot) if robot is not None else
            None if o.target is None else _load_loop(o.target, o.trust))
    if loop is None:
        refuse_given(o, ("task", "condition", "executor"),
                     "needs --robot TYPE or a loop of your own: otherwise you run the policy")
    weights = [_weights_digest(run, loop is not None) for run in runs]
    if len(set(filter(None, weights))) < len([w for w in weights if w]) or len({r.resolve() for r in runs}) < len(runs):
        raise UserError(f"{' and '.join(map(str, runs))} are the same policy", where="eval",
                        hint="there is nothing to tell apart")
    # before the first trial: loading tells, too
    if loop is not None:
        refuse_unused_conditions(runs, o)
    actors = None if loop is None else [_make_actor(run, o, robot) for run in runs]
    loop_name = o.target if o.robot is None else f"--robot {o.robot}"
    about = describe_trials(o, design, weights, loop_name)
    with TrialLog.open(o.save or TRIAL_LOG, about) as journal:
        table = _TrialConsole(o, out, design, journal, loop, actors)
        session = journal.session(design)
        if robot is not None and not session.is_over:
            stack.enter_context(unblocked_output())
            stack.enter_context(robot.robot)
        session = table.run(session)
        _print_result(o, design, session, journal.path, out)


def describe_trials(o: EvalOptions, design: TrialDesign, weights: Sequence[str | None], loop: str | None
                    ) -> dict[str, Any]:
    """Returns what the journal of trials says about them, so that only the same ones are continued in it."""
    on_robot = ("fps", "episode_time_s", "robot_limits", "robot_max_velocity", "robot_max_relative_target",
                "robot_max_torque")
    acting = ("task", "condition", "executor", *(on_robot if o.robot is not None else ()))
    return {**design.to_json(), "loop": loop, "weights": list(weights),
            "options": [str(word) if isinstance(word, Path) else word for word in given_options(o, *acting)]}


def judge_pairs(o: EvalOptions, design: TrialDesign, actors: Sequence[Actor], env: RobotEnv, path: Path,
                out: Output) -> dict[str, Any]:
    """Lets a person judge blind trials of two policies on a connected robot, or the rest of them.

    Args:
        o: The number of pairs (`episodes`), the duration of a trial and the type of the robot.
    """
    from ...evaluate.interactive import TrialLog

    with TrialLog.open(path, {**design.to_json(), "loop": f"--robot {o.robot}"}) as journal:
        console = _TrialConsole(o, out, design, journal, _robot_loop(o, env), actors)
        return design.result(console.run(journal.session(design)))


# -- the person -----------------------------------------------------------------------------------------------------


PROMPT_COMMANDS = {"again": "it was spoilt, and is run again", "round": "the round was spoilt, and is run again",
                   "quit": "stop for now", "correct": "the last answer was a mistake", "end": "no more trials"}


class _TrialConsole:
    """Prints messages to the person, and reads the person's answers."""

    def __init__(
        self, o: EvalOptions, out: Output, design: TrialDesign, journal: TrialLog, loop, actors: Sequence[Actor] | None
    ):
        self.o, self.out, self.design, self.journal, self.loop, self.actors = o, out, design, journal, loop, actors
        self.link = journal.path.with_suffix(".policy")
        self.is_comparison = len(design.policies) == 2

    def run(self, session: TrialSession) -> TrialSession:
        """Runs all remaining trials and returns the final session."""
        if not session.is_over:
            self._welcome(session)
        while (step := self.design.next_event(session)) != "over":
            session = {"begin": self._begin, "label": self._label, "end": self._end}[step](session)
        return session

    def _record_event(self, session: TrialSession, event: dict) -> TrialSession:
        """Adds an event to the session, after it is written to the disk."""
        after = self.design.update(session, event)
        self.journal.write(event)
        return after

    def _welcome(self, session: TrialSession) -> None:
        most, names, path = self.o.episodes, self.design.policies, self.journal.path
        asked = (f"Does {names[0]} or {names[1]} succeed more often? Up to {most} rounds of two trials, one of each "
                 "policy in an order that is told at the end, looked at after every round." if self.is_comparison else
                 f"Does {names[0]} succeed in more or in less than {self.o.threshold:g} of its trials? Up to {most} "
                 "of them, looked at after every one.")
        self._say(asked, f"Every answer is kept in {path}: after any interruption the same command continues.")
        unit = "rounds" if self.is_comparison else "trials"
        self._say(f"So far: {unit} complete {len(session.rounds)}, trials begun {session.n_trials}."
                  if session.n_trials else self._attainable_evidence())

    def _attainable_evidence(self) -> str:
        """The smallest effect that this number of trials can show, printed before the first trial."""
        from ...evaluate.planning import smallest_detectable_effect

        low, high = smallest_detectable_effect(self.design.test)
        if self.is_comparison:
            return (f"In so many rounds a difference of {math.ceil(100 * high)} points shows four times in five at "
                    "best: if one policy succeeds wherever the other does. A smaller one shows less often.")
        detectable_rates = [f"of {math.floor(100 * low)}% or less"] if low == low else []
        detectable_rates += [f"of {math.ceil(100 * high)}% or more"] if high == high else []
        if not detectable_rates:
            return "In so many trials even a rate of 0% or of 100% shows less than four times in five."
        return f"In so many trials a rate {' or '.join(detectable_rates)} shows four times in five, another less often."

    def _begin(self, session: TrialSession) -> TrialSession:
        trial = self.design.current_trial(session)
        last = self.design.last_label(session)
        if self.is_comparison:
            place = "second" if session.current_round.labels else "first"
            scene = ("Set the scene as it was for the first." if session.current_round.labels else
                     "Set a new scene, which you can set once more.")
            what = f"Round {trial.start}, {place} of two trials. {scene}"
        else:
            what = f"Trial {trial.index}. Set the scene."
        if self.loop is None:
            self._link(session)
            what += f" The policy to run is {self.link}."
        answer = self._ask(f"\n{what}", "enter: begin" + f" | correct (it was {last})" * bool(last) + " | end | quit",
                           {"": "begin", "correct": "correct" if last else "nothing", "end": "end", "quit": "quit"})
        if answer == "correct":
            return self._correct(session)
        if answer == "nothing":
            self._say("there is no answer to correct")
            return session
        if answer == "end":
            sure = self._ask("The evaluation would be over, although it is not settled.", "yes: end it | no",
                             {"yes": "yes", "no": "no", "": "no"})
            return self._record_event(session, self.design.final_event(session)) if sure == "yes" else session
        session = self._record_event(session, {"event": "begin"})
        return session if self.loop is None else self._run_trial(session, trial)

    def _run_trial(self, session: TrialSession, trial: Trial) -> TrialSession:
        """Runs one trial with the user's own control loop. Ctrl-C ends the trial and not the evaluation."""
        import numpy as np

        assert self.actors is not None
        actor = self.actors[self.design.current_policy(session)]
        try:
            with _catch_interrupt() as stopped:
                outcome = self.loop(actor, trial)
        except KeyboardInterrupt:
            if not stopped():
                raise
            self._say("\nstopped by you")
            return session
        except UserError:
            raise
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            raise UserError(f"the loop failed with {type(error).__name__}: {error}", where=self.o.target,
                            hint="fix it; the same command continues, and asks about this trial") from error
        if checkpoint_change := changed_checkpoint(self.design.policies[self.design.current_policy(session)]):
            self._record_event(session, {"event": "spoilt"})
            raise UserError(f"{checkpoint_change}. Trials of several checkpoints cannot be judged together, so this "
                            "one does not count", where=self.journal.path, hint="serve the first one again, without "
                            "--watch, and give the same command; or begin again with another --save")
        if outcome is None:
            return session
        if outcome == "again" and self.o.robot is not None:
            self._say("discarded; it is run again")
            return self._record_event(session, {"event": "spoilt"})
        if isinstance(outcome, str) and outcome in self.design.labels:
            label = outcome
        elif isinstance(outcome, (bool, np.bool_)):
            label = self.design.labels[-1 if outcome else 0]
        else:
            raise UserError(f"the loop returned {outcome!r}, which is not None, True, False or one of "
                            f"{', '.join(self.design.labels)}", where=self.o.target,
                            hint="the same command continues, and asks about this trial")
        if self.o.robot is not None:  # the person pressed a key
            self._say(label)
            return self._record_event(session, {"event": "label", "label": label})
        self._say(f"{label}, says the loop")
        return self._record_event(session, {"event": "label", "label": label, "by": "loop"})

    def _label(self, session: TrialSession) -> TrialSession:
        choices, labels = self._label_choices()
        more = ["again", "round", "quit"] if self.is_comparison else ["again", "quit"]
        answer, note = self._ask_with_note(f"How did trial {session.n_trials} go?", f"{choices} | {' | '.join(more)}",
                                           labels | {m: m for m in more})
        noted = {"note": note} if note else {}
        if answer in ("again", "round"):
            return self._record_event(session, {"event": "spoilt" if answer == "again" else "scrap", **noted})
        session = self._record_event(session, {"event": "label", "label": answer, **noted})
        if not self.is_comparison and not session.is_over and self.design.verdict(session) is None:
            result = self.design.result(session)["policies"][0]
            self._say(f"{result['successes']} of {result['trials']} so far; not settled")
        elif self.is_comparison and not session.current_round.labels and self.design.verdict(session) is None:
            self._say("not settled")
        return session

    def _correct(self, session: TrialSession) -> TrialSession:
        answer = self._ask(f"It was called {self.design.last_label(session)}. What was it?", *self._label_choices())
        return self._record_event(session, {"event": "correct", "label": answer})

    def _label_choices(self) -> tuple[str, dict[str, str]]:
        """Returns the labels with their numbers, and the label of each answer: a number, the label, or y or n."""
        names = self.design.labels
        answers = {str(i): label for i, label in enumerate(names, 1)}
        # "y" and "n" stay the short forms of labels that begin so
        answers |= {word: label for word, label in (("y", names[-1]), ("n", names[0]))
                  if not any(name.lower().startswith(word) for name in names)}
        words = {word: answers[word[0]] for word in ("yes", "no") if word[0] in answers}
        return ("   ".join(f"{word} {label}" for word, label in answers.items()),
                answers | {label: label for label in names} | words)

    def _end(self, session: TrialSession) -> TrialSession:
        futile = self.design.verdict(session) == "futile"
        why = "Enough: it would hardly be settled within what is left." if futile else "Settled."
        answer = self._ask(f"\n{why}", f"enter: show | correct (it was {self.design.last_label(session)}) | quit",
                           {"": "show", "correct": "correct", "quit": "quit"})
        if answer == "correct":
            return self._correct(session)
        return self._record_event(session, self.design.final_event(session))

    def _link(self, session: TrialSession) -> None:
        """Creates a link with a neutral name to the policy of the current trial."""
        run, new = Path(self.design.policies[self.design.current_policy(session)]), f"{self.link}.new"
        target = (run if run.exists() else weights_path(run)).resolve()  # "RUN/best" is a name, not a folder
        with suppress(FileNotFoundError):
            os.unlink(new)
        os.symlink(target, new)
        os.replace(new, self.link)

    # -- asking ---------------------------------------------------------------------------------------------------

    def _say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)

    def _ask(self, what: str, how: str, answers: dict[str, str]) -> str:
        return self._ask_with_note(what, how, answers)[0]

    def _ask_with_note(self, what: str, how: str, answers: dict[str, str]) -> tuple[str, str]:
        """Asks a question. The first word of the reply is the answer, in full or abbreviated. The rest is a note."""
        self._say(what)
        while True:
            flush_input()
            try:
                words = input(f"  {how} > ").split(maxsplit=1)
            except EOFError:
                raise KeyboardInterrupt from None
            word, note = (words[0].lower() if words else ""), (words[1].strip() if len(words) > 1 else "")
            matches = {answers[a] for a in answers if a.lower() == word} or {
                answers[a] for a in answers if word and a.lower().startswith(word)}
            if matches == {"quit"}:
                raise KeyboardInterrupt
            if len(matches) == 1:
                return matches.pop(), note
            problem = f"could be {' or '.join(sorted(matches))}" if matches else "is none of these"
            self._say(f"  {word!r} {problem}")


@contextmanager
def _catch_interrupt():
    """Catches interrupts. Its function tells whether Ctrl-C was the cause. A context manager."""
    signals = []

    def stop(number, frame):
        signals.append(number)
        raise KeyboardInterrupt
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: bool(signals)
    finally:
        signal.signal(signal.SIGINT, before)


# -- the policies, and the loop ---------------------------------------------------------------------------------------


def _robot_loop(o: EvalOptions, env: RobotEnv) -> Callable:
    """Returns a function that runs a trial on a robot, and returns "again" if it was discarded.

    The robot holds in between.
    """
    from ...robots.acting import act_on_robot

    def loop(actor: Actor, trial: Trial) -> bool | str | None:
        with command_keys() as pressed:
            done = act_on_robot(env.robot, actor, trial.key, fps=env.metadata["fps"], seconds=o.episode_time_s,
                                keys=pressed, show=show_line)
        print(f"{done.counts.steps} steps")  # how many were late would reveal the slower policy
        if done.ended == "quit":  # the same command asks about this trial
            raise KeyboardInterrupt
        return "again" if done.ended == "discard" else done.success

    return loop


def _load_loop(name: str, trust: tuple[str, ...]) -> Callable:
    if ":" not in name:
        raise UserError(f"{name} is not a function module:actor_loop that runs one trial",
                        where="--interactive", hint="in an environment, --sequential stops by itself; without a loop, "
                        "you run the robot")
    loop: Any = find_function(name, trust)
    try:
        inspect.signature(loop).bind(None, None)
    except (TypeError, ValueError):
        raise UserError(f"{getattr(loop, '__name__', loop)} is not a function of (actor, trial)", where=name,
                        hint="def actor_loop(actor, trial): runs one trial, and returns None or whether it "
                        "succeeded") from None
    return loop


def _weights_digest(run: Path, ours: bool) -> str | None:
    """Returns the digest of a policy's weights. None if it is not a run of understudy, and a person runs the robot."""
    try:
        return weights_digest(weights_path(run))
    except (UserError, OSError):
        if ours:
            raise
        if not run.exists():
            raise UserError("there is no policy here", where=run, hint="check the path") from None
        return None


def _make_actor(run: Path, o: EvalOptions, robot: RobotEnv | None) -> Actor:
    from ...execute.actor import ObservationWrapper
    from ...execute.demonstrated import DemonstratedActor

    if robot is not None:
        return load_actor(run, robot, o, rows=None, tell=True)[0]
    tell_checkpoint(run)
    planner, plays, _ = load_policy(run, o, None)
    words = {} if o.task is None else task_columns(run, {}, o)
    if words:
        tell_untrained_task(run, str(o.task), o.trust)
    conditions = {k: v for k, v in parse_conditions(o.condition, {}).items() if k in planner.inputs}
    tell_distant_conditions(run, conditions, o.trust)
    columns = {**words, **conditions}
    plays = ObservationWrapper(plays, columns) if columns else plays
    demonstrated = shown_demonstrations(run, o.condition, o.trust)
    return plays if demonstrated is None else DemonstratedActor(plays, *demonstrated)


# -- the end ----------------------------------------------------------------------------------------------------------


def _print_result(o: EvalOptions, design: TrialDesign, session: TrialSession, path: Path, out: Output) -> None:
    from ...evaluate.evaluation import sequential_verdict_parts

    result = design.result(session)
    won = tuple(p["successes"] for p in result["policies"])
    unit = "rounds" if len(won) == 2 else "trials"
    if result["rounds"]:
        rows = ((p["name"], *p["labels"].values(), f"{i['estimate']:.1%}", f"{i['low']:.1%} to {i['high']:.1%}",
                 p["spoilt"]) for p in result["policies"] for i in [p["success"]])
        table = plain_table(("", *design.labels, "rate", "95% interval", "spoilt"), rows)
        verdict = sequential_verdict_parts(design.test, design.test_state(session), won, design.policies, unit)
        out.print("", table, "", " ".join(verdict))
        if o.html is not None:
            states = [design.test_state(replace(session, rounds=session.rounds[:n + 1]))
                      for n in range(len(session.rounds))]
            names = [Path(name).name for name in design.policies]
            write_sequential_page(o.html, design.test, states, verdict, names, "trials", unit)
            out.print(f"Report written to {o.html}")
    else:
        out.print("", "No round was completed: nothing can be said.")
    out.print(f"All answers, and whose the trials were: {path}")
    out.print_json(result)
