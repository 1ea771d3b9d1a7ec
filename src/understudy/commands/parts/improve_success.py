"""understudy improve --success: a classifier says what success is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...core import UserError
from .common import open_data, read_provenance

if TYPE_CHECKING:
    from ...envs.base import Env
    from ...improve.success import FrameRates, SuccessClassifier
    from ...policy import Planner


def check_reads(planner: Planner, option: str, env: Env) -> None:
    """Checks that an environment or a robot gives what a classifier or a rater reads.

    Args:
        option: How the user named it, such as "--success RUN".
    """
    from ...improve.step_rating import TAKEN
    from ...policy import check_features

    columns = tuple(name for name in planner.inputs if name != TAKEN)
    check_features(planner, env.features, f"{option}, in {env.metadata['env']}", resized=True, columns=columns,
                   hint="train it on episodes of this environment")


def load_classifier(run: Path, data: Path | None, trust: tuple[str, ...]) -> tuple[SuccessClassifier, FrameRates]:
    """Loads a classifier of success, and counts its errors on the frames that its training held out.

    Args:
        data: What it was trained on. None if its command does not name them.
    """
    from ...improve.success import SuccessClassifier, held_out_rates
    from ...learn.method import Method, load_policy, training_data

    policy = load_policy(run, trust=trust)
    classifier = SuccessClassifier(policy)
    provenance = read_provenance(run)
    if data is None or not data.exists():
        raise UserError("the data that it was trained on are gone" + (f": {data}" if data else ""), where=run,
                        hint="train it again: its false positives are counted on the episodes that were held out")
    episodes = open_data(data, next(iter(policy.image_sizes.values()), None), ignore=(), run=run)
    if not (held_out := provenance["held_out"]):
        raise UserError("no episode was held out when it was trained, so that nobody knows how often it is wrong",
                        where=run, hint="train it on at least 5 episodes")
    rates = held_out_rates(classifier, training_data(episodes.select(held_out), Method.load(run, trust)))
    if not rates.n_successes or not rates.n_failures:
        missing = "without success" if rates.n_successes else "with success"
        raise UserError(f"its held-out episodes have no frame {missing}", where=run,
                        hint="train it on more labeled episodes, of which some succeed and some fail")
    if rates.n_recognized * rates.n_failures <= rates.n_false * rates.n_successes:
        raise UserError(f"it does not tell success from failure: {rates}", where=run,
                        hint="train it longer (--steps), or on more labeled successes and failures")
    return classifier, rates
