from ...core import Schema
from ...data.codec import Normalizer
from ...heads.energy.transport import Transport
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.pixels import PixelEncoder
from ...policy import PolicyConfig, camera_sizes
from ..needs import NUMBERS, ONE_MOTION
from ..registry import method


@method("Huang et al. 2024 (FourTran), arXiv 2401.12046, here in the plane, with a gripper without an angle of its "
        "own", rows=("351",), needs=(NUMBERS, ONE_MOTION),
        when="if each action is one pick and one place in an image from above, and there are few demonstrations.")
def fourier_transporter(crop: int = 17, n_angles: int = 72, features: Schema | None = None) -> Method:
    """Fourier transporter: picks and places in an image, by networks that turn with it, from few demonstrations.

    Args:
        crop: Width and height in pixels of the crop around the pick, odd. It contains what is picked.
        n_angles: Number of angles by which it may be turned.
    """
    policy = PolicyConfig(Transport(crop, n_angles=n_angles), encoder=PixelEncoder(),
                          codec=Normalizer(target="identity"), inputs=tuple(camera_sizes(features or {})))
    learner = BehaviorCloning(steps=1000, batch_size=8, optimizer=OptimizerConfig(lr=3e-3))
    return Method(policy, learner=learner)
