from ...core import Schema
from ...data.shown_demonstration import ShowDemonstration, numeric_observations
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.flow import Flow
from ...heads.likelihood.categorical import choose_head
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, OBSERVED_NUMBERS
from ..registry import method


@method("Duan et al. 2017, arXiv 1703.07326, with a network that attends to all steps of a demonstration and to "
        "blocks, and with many more tasks; here it reads a few frames",
        needs=(NUMBERS_OR_CLASSES, OBSERVED_NUMBERS, "several episodes of each of many tasks, which have a name",
               "while acting: a demonstration"),
        when="if a task is easier to show than to say, and hundreds of demonstrations of many tasks exist; new tasks "
             "succeed half as often in docs/language.md.")
def one_shot(inputs: tuple[str, ...] = (), n_frames: int = 8, horizon: int = 8, width: int = 128,
             features: Schema | None = None) -> Method:
    """One-shot imitation: a transformer that does what one given demonstration shows.

    Args:
        inputs: Observed columns of numbers that the policy reads, also of the demonstration. Empty for all that the
            data have.
        horizon: Number of actions in a chunk. Half of them are executed.
    """
    inputs = inputs or numeric_observations(features or {}) or ("observation.state",)
    show = ShowDemonstration(inputs, n_frames)
    # The policy does not read the task: it could ignore the demonstration then.
    policy = PolicyConfig(choose_head(features, Flow()), Transformer(width, 1, encoder_depth=2),
                          TokenEncoder(width), window=Window(1, horizon), inputs=(*inputs, *show.into))
    return Method(policy, RecedingHorizon(max(horizon // 2, 1)), BehaviorCloning(steps=10_000), (show,))
