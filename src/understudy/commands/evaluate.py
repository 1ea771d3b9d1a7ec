"""The command understudy eval."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import ConfigError, DataError, Diverged, UserError, role
from ..files import replace_nonfinite
from ..hints import path_text
from ..user_code import refuse_python_file
from .calibrate import detector_source, load_detector
from .parts import behavior_metrics
from .parts.common import (
    Output,
    acting_options,
    command_line,
    demonstrations_path,
    earlier_provenances,
    env_trust_options,
    given_options,
    has_no_run,
    is_recorded,
    open_data,
    parse,
    plain_table,
    progress_bar,
    read_provenance,
    robot_arguments,
    trust_options,
    unused_path,
)
from .parts.conditions import example_evaluation, is_judge, return_discount
from .parts.eval_options import EvalOptions
from .parts.interactive import run_interactive
from .parts.learned_rewards import tell_learned_reward
from .parts.options import refuse_given
from .parts.policies import (
    append_result,
    load_actor,
    refuse_unused_conditions,
    run_names,
    tell_checkpoint,
    tell_untrained_episodes,
    weights_path,
)
from .parts.rollouts import evaluate_run
from .parts.run_options import reseeded_command
from .parts.sequential import run_sequential
from .parts.served import changed_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from ..data.episode import Dataset
    from ..envs.base import Env
    from ..evaluate.action_prediction import ActionPrediction, Origin
    from ..evaluate.behavior_metrics import BehaviorMetrics
    from ..evaluate.evaluation import Evaluation
    from ..evaluate.failure_detection import FailureDetector
    from ..evaluate.fitted_q import PolicyValue
    from ..learn.critics.fitted_q import FittedQ
    from ..learn.method import Method, TrainedRun


def main(args: list[str]) -> None:
    o = parse(EvalOptions, "eval", args)
    with Output(o.json) as out:
        o = _checked_options(o, args)
        for run in filter(None, (o.run, o.against)):
            tell_learned_reward(run)
        recorded = is_recorded(o.target)
        on_robot = command_line("eval", o.run, "--interactive", "--threshold", 0.7, "--robot", o.robot or "TYPE")
        o.refuse_without_robot(on_robot)
        if o.robot is not None and not o.interactive:
            raise ConfigError("needs --interactive: a person judges the trials of a robot", where="--robot",
                              hint=on_robot)
        if o.interactive:
            run_interactive(o, out)
            return
        if o.against is not None and weights_path(o.run).resolve() == weights_path(o.against).resolve():
            same = f"{path_text(o.run)} and {path_text(o.against)} are the same checkpoint"
            if o.sequential:
                raise UserError(same, where="--against", hint="there is nothing to tell apart")
            out.print(f"{same}: there is nothing to tell apart")
            o = replace(o, against=None)
        if not o.sequential:
            refuse_given(o, ("threshold",), "needs --sequential or --interactive",
                         command_line("eval", o.run, o.target or "ENV", "--sequential", "--threshold", o.threshold))
        if o.target is None:
            raise UserError("neither an environment nor recorded episodes are named", where="understudy eval",
                            hint=command_line("eval", o.run, "ENV"))
        if recorded:
            if o.sequential:
                raise UserError("these are recorded episodes, and --sequential needs an environment", where=o.target,
                                hint="--sequential decides how many episodes are rolled out")
            demonstrations_path(Path(o.target))
            _evaluate_recorded(o, out)
        elif o.target.startswith((".", "/", "~")) or (":" not in o.target and Path(o.target).suffix):
            raise UserError("there is no such file of recorded episodes, and no such environment", where=o.target,
                            hint="check the path")
        else:
            if Path(o.target).is_dir():
                print(f"{o.target} is the environment; the recorded episodes in this folder are ./{o.target}",
                      file=sys.stderr)
            (run_sequential if o.sequential else _evaluate_rollouts)(o, out)
            for run in filter(None, (o.run, o.against)):
                if checkpoint_change := changed_checkpoint(run):
                    print(f"warning: {checkpoint_change}; the result is of all of them", file=sys.stderr)


def _checked_options(o: EvalOptions, args: list[str]) -> EvalOptions:
    """Returns the options with the default number of episodes."""
    if sum(a.split("=")[0] == "--against" for a in args) > 1:
        raise UserError("is given more than once", where="--against",
                        hint="compare two at a time")
    recorded = not o.interactive and is_recorded(o.target)
    if recorded and not o.sequential:
        refuse_given(o, ("episodes",), "these are recorded episodes: those that were held out are evaluated, or all",
                     "leave it out, or evaluate a view of some of them (understudy view)")
    if o.episodes is None:
        o = replace(o, episodes=1000 if o.sequential and not o.interactive else 100)
    is_fixed_rollout = not (o.interactive or o.sequential or recorded)
    in_env = ("eval", o.run, "ENV")
    _refuse_where(o, (
        (recorded or o.interactive, ("rows",), "is a number of environments, and these are recorded episodes or trials",
         "leave it out"),
        (not o.interactive or o.robot is None, ("fps", "episode_time_s"),
         "needs --interactive and --robot, whose trials it is about", "leave it out"),
        (o.interactive or o.sequential, ("workers",), "must be 1 with --sequential or --interactive",
         "leave it out: these test after every episode"),
        (not o.interactive, ("labels",), "needs --interactive, where a person says how a trial went",
         "leave it out: an environment decides itself what is a success")))
    behavior_metrics.check_options(o)
    _refuse_where(o, ((bool(o.against) or not is_fixed_rollout, ("train_env",),
                       "needs one run, an environment, and a fixed number of episodes",
                       command_line(*in_env, "--train-env", o.train_env)),))
    if o.train_env is not None and o.train_env == o.target:
        raise UserError(f"{o.target} is the environment to evaluate in, too, so there is no gap", where="--train-env",
                        hint="name the environment of the training data here, and a new one as ENV")
    refuse_python_file(o.target or "", command_line("eval", o.run, *(("--interactive",) if o.interactive else ())))
    _refuse_where(o, (
        (not recorded, ("fitted_q", "discount"), "estimates a value from recorded episodes, and there are none here",
         "leave it out: in an environment the return is measured"),
        (not recorded, ("columns",), "names the columns of recorded episodes, and there are none here",
         "leave it out: an environment has the columns that it shows"),
        (not is_fixed_rollout, ("detect", "detector"), "needs an environment, and a fixed number of episodes",
         command_line(*in_env, "--detect")),
        (recorded or o.interactive, ("rename",), "names the columns of an environment, and there is none here",
         "leave it out; --columns names those of recorded episodes"),
        (not o.fitted_q, ("discount", "updates"), "is an option of --fitted-q", "add --fitted-q, or leave it out"),
        (recorded and not o.fitted_q, ("seed",), "is the seed of --fitted-q here", "add --fitted-q, or leave it out")))
    return o


def _refuse_where(o: EvalOptions, restrictions: Sequence[tuple[bool, tuple[str, ...], str, str]]) -> None:
    """Raises ConfigError for the first restriction that applies: its options, what is wrong with them, and the hint."""
    for applies, names, problem, hint in restrictions:
        if applies:
            refuse_given(o, names, problem, hint)


# -- acting ---------------------------------------------------------------------------------------------------------


def _evaluate_rollouts(o: EvalOptions, out: Output) -> None:
    refuse_unused_conditions([o.run], o)
    demonstrations = behavior_metrics.demonstrations_of(o)
    detector = load_detector(o.run, o, o.detector) if o.detect or o.detector is not None else None
    env, evaluation, other, training, behaved = _roll_out(o, detector, demonstrations)
    detection = None
    if detector is not None:
        result = detector.evaluate(evaluation.episodes)
        evaluation, detection = replace(evaluation, alarms=result.describe(detector)), result.to_json(detector)
    _print_evaluation(o, out, env, evaluation, other)
    runs = [r for r in (o.run, o.against) if r is not None]
    names = run_names(runs)
    evaluations = dict(zip(names, (e for e in (evaluation, other) if e is not None), strict=True))
    behavior = dict(zip(names, behaved, strict=True))
    _print_trials(evaluations, out)
    gap_text, gap = "", None
    if training is not None:
        gap_text, gap = _generalization_gap(o, training, evaluation)
        out.print("", gap_text)
    if o.save:
        out.print(f"Episodes written to {o.save}")
    in_detail = o.details or o.repeats or o.demonstrations is not None  # they are given for these figures alone
    (behavior_metrics.print_metrics if in_detail else behavior_metrics.print_most_frequent_failure)(behavior, out)
    document = evaluation.to_json(other, path_text(o.against))
    successes = None if evaluation.successes is None else evaluation.successes.tolist()
    each = {"success": successes, "return": evaluation.episode_returns.tolist()}
    document["generalization_gap"] = gap
    append_result(o, {**document, "seed": o.seed, "each": each})
    commands = _next_commands(o, evaluation, other)
    if o.html is not None:
        from ..evaluate.report import write_report
        from ..learn.training_curves import TrainingCurves

        curves = {name: TrainingCurves.load(run) for name, run in zip(names, runs, strict=True) if not has_no_run(run)}
        write_report(o.html, env=env, runs=evaluations, training={n: run for n, run in curves.items() if run.curves},
                     behavior=behavior, commands=commands, gap=gap_text)
        out.print(f"Report written to {o.html}")
    out.suggest(*(command for command, _ in commands))
    out.print_json({**document, "detection": detection,
                    "checkpoint": path_text(weights_path(o.run)), "behavior": {
        **behaved[0].to_json(), "against": behaved[1].to_json() if other else None}})


def _roll_out(o: EvalOptions, detector: FailureDetector | None, demonstrations: Dataset | None
              ) -> tuple[Env, Evaluation, Evaluation | None, Evaluation | None, list[BehaviorMetrics]]:
    """The closed environment, the evaluation of the run, of `against` and in `train_env`, and the behavior of the first
    two."""
    from ..envs import make
    from ..evaluate.evaluation import with_common_success
    from .parts.kept_episodes import KeptEpisodes

    assert o.target is not None and o.episodes is not None
    with closing(make(o.target, min(o.rows, o.episodes), o.trust)) as env, KeptEpisodes() as kept:
        evaluation = evaluate_run(o.run, env, o, o.save, o.target, kept,
                                  None if detector is None else detector_source(o.run, detector))
        other = None if o.against is None else evaluate_run(o.against, env, o, None, o.target, kept)
        training = None
        if o.train_env is not None:
            with closing(make(o.train_env, min(o.rows, o.episodes), o.trust)) as training_env:
                training = evaluate_run(o.run, training_env, o, None, o.train_env, kept)
        if other is not None:
            (evaluation,), (other,) = with_common_success([[evaluation], [other]])
        behaved = [behavior_metrics.measure_run(run, load_actor(run, env, o)[0], env, e, demonstrations, o)
                   for run, e in ((o.run, evaluation), (o.against, other)) if run is not None and e is not None]
    return env, evaluation, other, training, behaved


def _generalization_gap(o: EvalOptions, training: Evaluation, evaluation: Evaluation) -> tuple[str, dict[str, Any]]:
    """Returns the generalization gap in words, and as JSON."""
    from ..evaluate.comparison import describe_generalization_gap, generalization_gap

    assert o.train_env is not None and o.target is not None
    gap = generalization_gap(training, evaluation)
    document = training.to_json()
    return describe_generalization_gap(training, gap, (o.train_env, o.target)), {
        "env": o.train_env, "of": gap.metric, "successes": document["successes"], "success": document["success"],
        "return": document["return"], **replace_nonfinite(gap.to_json())}


def _print_evaluation(o: EvalOptions, out: Output, env: Env, evaluation: Evaluation, other: Evaluation | None) -> None:
    from ..evaluate.evaluation import verdict, verdict_parts

    if other is not None:
        out.print(*(f"{path_text(run)}: {verdict_parts(e)[1]}" for run, e in ((o.run, evaluation), (o.against, other))))
    named = (f"the policy in {path_text(o.run)}", f"the policy in {path_text(o.against)}")
    out.print(verdict(evaluation, other, named if other else ("this checkpoint", "")))
    if evaluation.success is not None and env.metadata.get("success"):
        out.print(f"Success: {env.metadata['success']}.")
    if evaluation.alarms:
        out.print(evaluation.alarms)
    asked = [text for text in o.condition if "return" in text.partition("=")[0]]
    if evaluation.success is not None and asked:
        discount = return_discount(o.run, o.trust)
        unit = "" if discount == 1 else f", in which a reward counts {discount:g} times the one before it"
        out.print(f"Mean return {evaluation.returns.estimate:.4g}, where {' '.join(asked)} was asked for{unit}.")


def _print_trials(evaluations: dict[str, Evaluation], out: Output) -> None:
    """Prints the success rate in each trial, if episodes are several trials."""
    from ..evaluate.evaluation import describe_trial_gain

    rates = [e.trials for e in evaluations.values()]
    if any(trial_rates is None for trial_rates in rates):
        return
    names = list(evaluations) if len(evaluations) > 1 else ["success"]
    rows = ((number, *(f"{r.estimate:.1%} [{r.low:.1%}, {r.high:.1%}]" for r in row))
            for number, row in enumerate(zip(*filter(None, rates), strict=True), 1))
    out.print("", plain_table(("trial", *names), rows))
    for name, e in evaluations.items():
        if gain := describe_trial_gain(e):
            out.print(gain if len(evaluations) == 1 else f"{name}: {gain}")


def _next_commands(o: EvalOptions, evaluation: Evaluation, other: Evaluation | None) -> list[tuple[str, str]]:
    """Returns useful next commands with descriptions, such as a policy to compare with or more episodes."""
    from ..evaluate.evaluation import compare

    trust = trust_options(o.trust, o.target, o.run, *((o.against,) if o.against else ()))

    def again(episodes, *more):
        return command_line("eval", o.run, o.target, "--episodes", episodes, *acting_options(o),
                            *given_options(o, "demonstrations", "repeats", "rename"), *more, *trust)
    commands = []
    if evaluation.success is not None and evaluation.success.estimate < 0.5 and not has_no_run(o.run):
        cause = command_line("diagnose", o.run, "--env", o.target, *acting_options(o), *trust)
        commands.append((cause, "The most likely cause of the failures:"))
    if other is not None:
        if o.against is not None and o.episodes is not None and compare(evaluation, other).better is None:
            commands.append((again(4 * o.episodes, "--against", o.against), "More episodes, to tell the two apart:"))
    elif not has_no_run(o.run) and (second := reseeded_command(o.run)) is not None:
        commands += [(second[0], "Another training seed, to see how much depends on it:"),
                     (again(o.episodes, "--against", second[1]), "And the two compared, on the same starts:")]
    if o.html is None:
        page = again(o.episodes, *given_options(o, "against", "train_env"), "--html", unused_path("report.html"))
        commands.append((page, "The same as a page:"))
    return commands


# -- recorded episodes ------------------------------------------------------------------------------------------------


def _refuse_options_of_rollouts(o: EvalOptions) -> None:
    """Raises UserError for options that say nothing about recorded episodes."""
    refuse_given(o, ("demonstrations", "details", "repeats", "executor", "save", "workers"),
                 "these are recorded episodes, in which no policy can act", "leave it out, or name an environment")
    refuse_given(o, ("against",), "these are recorded episodes, and --against needs an environment",
                 "evaluate each run on them alone: the energy scores compare")
    if has_no_run(o.run):
        raise UserError(f"these are recorded episodes, and {path_text(o.run)} needs an environment: it is not a run",
                        where=o.target, hint="evaluate the run that it was exported from, or that is served there")
    refuse_given(o, ("condition", "task"), "these are recorded episodes, which have their own conditions and tasks",
                 "leave it out, or name an environment")


def _evaluate_recorded(o: EvalOptions, out: Output) -> None:
    from ..data.operations import Operation
    from ..evaluate import fitted_q
    from ..evaluate.action_prediction import episodes_to_evaluate, evaluate_action_prediction
    from ..execute.wrappers import ResidualWrapper
    from ..learn.devices import choose_device
    from ..learn.method import TrainedRun, has_latent_actions

    _refuse_options_of_rollouts(o)
    tell_checkpoint(o.run)
    trained = TrainedRun.load(o.run, o.trust, choose_device(o.device), transforms=True)
    policy, method = trained.policy, trained.method
    assert o.target is not None
    data = open_data(Path(o.target), next(iter(policy.image_sizes.values()), None), decode=bool(policy.image_sizes),
                     columns=o.columns, run=o.run)
    if role(policy.config.target) == "action" and any(isinstance(part, Operation) for part in method.transforms):
        data = _with_recorded_actions(data)
    episodes, origin = episodes_to_evaluate(read_provenance(o.run), data, earlier_provenances(o.run))
    recorded, chosen = data, episodes
    if isinstance(method.wrapper, ResidualWrapper):
        print("what is compared are corrections of the base policy, in units of their scale, and not actions",
              file=sys.stderr)
    data, episodes = _transform_parts(data, method, episodes)
    tell_untrained_episodes(o.run, data.select(episodes), o.trust, recorded=True)
    estimate = None
    if o.fitted_q:
        unchanged = _without_changed_rewards(method)
        parts = (data, episodes) if unchanged == method else _transform_parts(recorded, unchanged, chosen)
        estimate = _value_estimate(o, trained, *parts, origin)
    prediction = evaluate_action_prediction(policy, data, episodes, origin, executor=method.executor,
                                            of_latents=has_latent_actions(method))
    append_result(o, prediction.to_json())
    out.print(f"{prediction.headline()}{prediction.baselines()}", "", _component_table(prediction), "",
              prediction.describe_distribution(), "",
              _time_table(prediction), "", prediction.note)
    value = None if estimate is None else estimate()
    if value is not None:
        out.print("", value.describe(), "", fitted_q.NOTE)
    commands = _commands_to_act(o, recorded, method)
    if o.html is None:
        of_value = ("fitted_q", "discount", "updates", "seed") if o.fitted_q else ()
        again = command_line("eval", o.run, o.target, "--html", "report.html",
                             *given_options(o, "columns", *of_value), *trust_options((), None, o.run))
        commands.append((again, "The same as a page:"))
    else:
        from ..evaluate.report import write_prediction_report

        write_prediction_report(prediction, o.html, commands=commands,
                                value="" if value is None else f"{value.describe()} {fitted_q.NOTE}")
        out.print(f"Report written to {o.html}")
    out.suggest(*(command for command, _ in commands))
    out.print_json({**prediction.to_json(), "checkpoint": str(weights_path(o.run)),
                    "fitted_q": None if value is None else value.to_json()})


def _commands_to_act(o: EvalOptions, recorded: Dataset, method: Method) -> list[tuple[str, str]]:
    """Returns the command that lets the policy act, in an environment or on a robot, and what it is for."""
    env, env_options = example_evaluation(recorded, method) or (None, [])
    trust = trust_options(o.trust, env, o.run) or env_trust_options(env)
    commands = [(command_line("eval", o.run, env, "--episodes", 100, *env_options, *trust),
                 "Whether it works, where it acts by itself:")] if env is not None else []
    if env is None and not is_judge(method):
        robot = robot_arguments(recorded.metadata, recorded.features()) or ["--robot", "TYPE", "--robot.port", "PORT"]
        commands.append((command_line("eval", o.run, "--interactive", "--threshold", 0.7, *robot,
                                      *trust_options((), None, o.run)),
                         "Whether it works, on the robot, where you judge the trials:"))
    return commands


def _with_recorded_actions(data: Dataset) -> Dataset:
    """Returns the episodes in which all actions were recorded. Actions that a method filled in are not targets."""
    from ..data.missing_actions import NoActions, has_action

    kept = [i for i, episode in enumerate(data.iterate_once()) if has_action(episode).all()]
    place = data.metadata.get("path", "data set")
    if len(data) and not kept:
        raise NoActions("no episode has all of its actions, so that there is nothing to compare with", where=place,
                        hint="let the policy act: understudy eval RUN ENV")
    if len(kept) < len(data):
        print(f"{place}: {len(data) - len(kept)} of {len(data)} episodes lack actions. They are left out, and the "
              "others are numbered without them", file=sys.stderr)
    return data if len(kept) == len(data) else data.select(kept)


def _without_changed_rewards(method: Method) -> Method:
    """Returns the method without its changes of rewards, so that policies are judged by the rewards of the data."""
    from ..data.relabel import ScaledReward
    from ..learn.rewards.learned_reward import LearnedReward

    return replace(method, transforms=tuple(
        change for change in method.transforms if not isinstance(change, (ScaledReward, LearnedReward))))


def _value_estimate(o: EvalOptions, trained: TrainedRun, data: Dataset, episodes: Sequence[int], origin: Origin
                    ) -> Callable[[], PolicyValue]:
    """Prepares the estimate of the policy's value by fitted Q evaluation on all episodes."""
    from ..evaluate.fitted_q import check
    from ..learn.critics.fitted_q import FittedQ

    check(trained, data)
    discount = getattr(trained.method.learner, "discount", 0.99) if o.discount is None else o.discount
    n_trained_on = {"held out": len(data) - len(episodes), "trained on": len(data), "other data": 0}[origin]
    return partial(_fitted_value, o, trained, data, FittedQ(steps=o.updates, discount=discount), n_trained_on)


def _fitted_value(o: EvalOptions, trained: TrainedRun, data: Dataset, config: FittedQ, n_trained_on: int
                  ) -> PolicyValue:
    from ..evaluate.fitted_q import evaluate_fitted_q

    try:
        with progress_bar("fitted Q evaluation", o.updates) as progress:
            return evaluate_fitted_q(trained, data, config, o.seed, n_trained_on,
                                     [lambda step, learner, metrics: progress(step)])
    except Diverged as error:
        raise UserError(f"{error.problem}, at {error.where}", where="--fitted-q",
                        hint="take fewer --updates, or a lower --discount") from None


def _transform_parts(data: Dataset, method: Method, episodes: Sequence[int]) -> tuple[Dataset, list[int]]:
    """Transforms the recorded data as for training. Returns them, and which episodes are evaluated.

    An operation may change the order and the number of the episodes. It is therefore applied twice, as in training:
    once to the evaluated episodes, and once to all other episodes.
    """
    import numpy as np

    from ..data.operations import Operation
    from ..learn.method import training_data, without_made_episodes

    method = without_made_episodes(method)
    if not any(isinstance(part, Operation) for part in method.transforms):
        return training_data(data, method), list(episodes)
    others = sorted(set(range(len(data))) - set(episodes))
    numbers = [part for part in (list(episodes), others) if part]
    parts = [training_data(data.select(part), method) for part in numbers]
    first, whole = parts[0], sum(parts[1:], parts[0])
    if not len(first):
        raise DataError("the operations of the method leave none of the episodes to evaluate",
                        where=data.metadata.get("path", "data set"),
                        hint="name episodes such as those that it was trained on")
    recorded = [i for part in numbers for i in part]
    if [e.metadata for e in whole] == [data[i].metadata for i in recorded]:  # the same episodes: keep their numbers
        return whole.select(np.argsort(recorded)), list(episodes)
    return whole, list(range(len(first)))


def _component_table(prediction: ActionPrediction) -> Table:
    """Builds a table of the errors of each component, next to the errors of predictions without a policy."""
    error = "wrong" if prediction.is_discrete else f"off by{f' ({prediction.unit})' if prediction.unit else ''}"
    rows = []
    for c, part in zip(prediction.by_component, prediction.by_dimension, strict=True):
        r2 = "never changes" if c.is_constant else "" if c.r2 is None else f"{c.r2:.3g}"
        rows.append((c.name, f"{c.policy:.3g}", f"{c.average:.3g}", f"{c.last_action:.3g}",
                     *([] if prediction.is_discrete else [r2]), f"{part.spread:.3g}"))
    return plain_table(("component", error, "average", "last action", *([] if prediction.is_discrete else ["R²"]),
                        "spread of its samples"), rows)


def _time_table(prediction: ActionPrediction) -> Table:
    error = f"error{f' ({prediction.unit})' if prediction.unit else ''}"
    return plain_table(("of the episode", error, "spread of its samples"),
                       ((p.name, f"{p.error:.3g}", f"{p.spread:.3g}") for p in prediction.by_time))
