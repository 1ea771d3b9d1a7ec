"""The command understudy judge."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from ..core import UserError
from .parts.common import Output, command_line, draw_screen, open_data, parse, recorded_env, unused_path
from .parts.groups import JsonOption, PositiveCount, Seed, TrustOption, command_options
from .parts.learned_rewards import warn_of_other_data
from .parts.run_options import trained_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.episode import Dataset
    from ..improve.preferences import Segment
    from ..learn.rewards.preference_reward import PreferenceModel


@command_options
class JudgeOptions(JsonOption, TrustOption):
    """Say which of two segments of recorded episodes is better, pair after pair. `understudy train preference-reward`
    learns a reward from the answers.

    Both segments are shown side by side: 1 (the left is better), 2 (the right), 3 (both are as good), s (skip), q
    (quit). Each answer is stored at once, and the same command continues with the next pair.
    """

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """recorded episodes, such as those of a policy (understudy eval RUN ENV --save DATA)"""
    out: Annotated[Path, arg(metavar="COMPARISONS")]
    """folder of the answers, a recording with an episode for each comparison"""
    pairs: PositiveCount = 50
    """number of comparisons, those of earlier calls included"""
    length: PositiveCount = 25
    """steps in each segment"""
    judge: Literal["keyboard", "reward"] = "keyboard"
    """who answers: you, in this terminal, or the column next.reward of DATA, to try things out"""
    env: Annotated[str | None, arg(metavar="ENV")] = None
    """environment that draws data without cameras; by default the one in which they were recorded"""
    reward: Annotated[Path | None, arg(metavar="RUN")] = None
    """a run of preference-reward: the number of new answers with which its reward agrees is printed"""
    seed: Seed = 0
    """seed of the pairs"""


def main(args: list[str]) -> None:
    o = parse(JudgeOptions, "judge", args)
    with Output(o.json) as out, ExitStack() as resources:
        data = open_data(o.data, ignore=(), decode=False)
        reward = None if o.reward is None else _load_reward(o.reward, o.trust)
        if o.reward is not None:
            warn_of_other_data(data, o.reward, "the run of the reward")
        ask = _judge(o, data, resources)
        counts = _ask_all(o, data, ask, reward, resources)
        out.print(f"{counts['comparisons']} comparisons are in {o.out}, {counts['new']} of them new.")
        if counts["new"] and not counts["clear"]:
            equal = ": the sums of next.reward are equal in each pair" if o.judge == "reward" else ""
            out.print(f"None of the new ones prefers a segment{equal}. A reward is learned only from those that do: "
                      "compare other episodes, or longer segments (--length).")
        elif reward is not None and counts["new"]:
            out.print(f"{o.reward} agreed with {counts['agreed']} of the {counts['clear']} new answers that preferred "
                      "a segment.")
        if counts["clear"] or counts["new"] < counts["comparisons"]:
            compared = o.out
            earlier = None if o.reward is None else trained_on(o.reward)
            if earlier is not None and earlier != o.out:
                compared = unused_path("comparisons.json")
                out.suggest(command_line("merge", earlier, o.out, "--out", compared))
            out.suggest(command_line("train", "preference-reward", compared, "--out", unused_path("runs/reward")))
        out.print_json({**counts, "agreed": counts["agreed"] if reward is not None else None})


def _load_reward(run: Path, trust: tuple[str, ...]) -> PreferenceModel:
    from ..learn.method import load_modules
    from ..learn.rewards.preference_reward import PreferenceModel

    model = load_modules(run, trust).get("reward")
    if not isinstance(model, PreferenceModel):
        raise UserError("the run has no reward of preferences", where=f"--reward {run}",
                        hint="understudy train preference-reward COMPARISONS --out RUN trains one")
    return model


def _judge(o: JudgeOptions, data: Dataset, resources: ExitStack) -> Callable[[tuple[Segment, Segment], int], str]:
    """Returns the function that answers a comparison, given a pair and the number of answers before it."""
    from ..envs import make
    from ..improve.preferences import PreferenceKeys, PreferenceScreen, prefer_by_reward, segment_frames

    if o.judge == "reward":
        return lambda pair, number: prefer_by_reward(data, pair, o.length)
    if not sys.stdin.isatty():
        raise UserError("there is no terminal to read keys from", where="--judge keyboard",
                        hint="run it in a terminal, without a pipe; or --judge reward")
    name = o.env or recorded_env(data)
    has_camera = any(feature.kind == "image" for feature in data.features().values())
    env = None if has_camera or name is None else make(name, 1, o.trust)
    if env is not None:
        resources.callback(env.close)
    keyboard = PreferenceKeys()
    resources.enter_context(keyboard.listening())
    size = shutil.get_terminal_size()
    screen = PreferenceScreen(keyboard, draw_screen, 1 / float(data.metadata.get("fps") or 10),
                              max(8, min(24, size.lines - 4)), size.columns)
    return lambda pair, number: screen.ask(*(segment_frames(data, segment, o.length, env) for segment in pair),
                                           f"comparison {number + 1} of {o.pairs}")


def _ask_all(o: JudgeOptions, data: Dataset, ask: Callable[[tuple[Segment, Segment], int], str],
             reward: PreferenceModel | None, resources: ExitStack) -> dict[str, int]:
    """Asks until there are enough comparisons, or until the person quits."""
    from ..data.episode import Dataset
    from ..data.recording.recorder import Recorder
    from ..improve.preferences import answered_pairs, comparison, count_agreements, draw_pair, judged_data

    metadata = {"judged": judged_data(data), "by": o.judge, "seed": o.seed, "length": o.length}
    count, number = answered_pairs(o.out, metadata)
    counts = {"comparisons": count, "new": 0, "clear": 0, "agreed": 0}
    recorder: Recorder | None = None
    while counts["comparisons"] < o.pairs:
        pair = draw_pair(data, o.length, o.seed, number)
        answer = ask(pair, counts["comparisons"])
        if answer == "quit":
            break
        number += 1
        if answer == "skip":
            continue
        episode = comparison(data, pair, o.length, answer)
        counts["clear"] += answer != "equal"
        if reward is not None:
            counts["agreed"] += count_agreements(reward, Dataset([episode]))[0]
        if recorder is None:
            recorder = resources.enter_context(Recorder(episode.features(), o.out, fps=data.metadata.get("fps"),
                                                        clock=None, images="png", require_observation=False))
        recorder.add(replace(episode, metadata={**episode.metadata, **metadata, "pair": number - 1}))
        counts["comparisons"] += 1
        counts["new"] += 1
    return counts
