"""Row 281: the loss is calm, the behaviour is not, and an average of the weights calms it."""

from dataclasses import replace

from ..data.window import Window
from ..execute.chunked import Receding
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.ema import Constant, Decay, Polynomial
from ..nets.encoders import Flat
from ..policy import Recipe
from .base import Above, Arm, Claim, Every, Exceeds, Experiment, Part, Recorded, Sabotage
from .measures import oscillation


def arm(name: str, ema: Decay) -> Arm:
    """The very same updates, looked at raw and averaged. Constant rate, as in the paper's plain runs."""
    recipe = Recipe(Regression(), encoder=Flat(), window=Window())
    learn = Cloning(steps=6000, batch=256, ema=ema, optim=Optim(rate=1e-3, schedule="constant"))
    return Arm(name, (Method(recipe, Receding(1), learn),))


def short(experiment: Experiment) -> Experiment:
    return replace(experiment, options=(("max_episode_steps", 10),))


HOPPER = Experiment(Recorded("cs285/hopper_expert.npz"), "Hopper-v4", (
    arm("raw", Constant(0.0)), arm("averaged", Polynomial())),
    oscillation, tuned_by="mean", episodes=10, tuning_episodes=10, options=(("max_episode_steps", 1000),))

CLAIM = Claim(
    name="ema-oscillation", rows=("281",),
    paper="Block et al. 2024, Butterfly Effects of SGD Noise: Error Amplification in Behavior Cloning and "
          "Autoregression, arXiv 2310.11428",
    statement="We observe that minibatch SGD updates to the policy network during training result in sharp "
              "oscillations in long-horizon rewards, despite negligibly affecting the behavior cloning loss.",
    here="Hopper-v4, two episodes of a trained agent, an MLP of 256 x 2 blocks, 6,000 updates at a constant rate; the "
         "last 10 checkpoints, 200 updates apart, 10 starts each. The return differs more from checkpoint to "
         "checkpoint, relative to its mean, than the loss does, relative to its beginning; the average of the weights "
         "lowers the swing of the return, and not its mean by more than 186, 5 % of the agent's.",
    parts=(Part("hopper", HOPPER, Every((
        Exceeds("log_swing_over_loss", "raw", 0.0), Above("log_swing", "raw", "averaged"),
        Above("mean", "averaged", "raw", -186.0)))),),
    sabotage=Sabotage("episodes of 10 steps in place of 1,000", short, "hopper"),
    needs=("the sim extra", "recorded demonstrations (UNDERSTUDY_DATA)"),
)
