from ...core import Schema
from ...data.codec import Normalizer
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.diffusion import Diffusion
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.point_cloud import point_cloud_columns
from ...nets.unet import UNet
from ...policy import PolicyConfig
from ..needs import NUMBERS, POINT_CLOUDS
from ..registry import method


@method("Ze et al. 2024, arXiv 2403.03954, with the widths of its small variant (Simple DP3) and a linear layer in "
        "place of the MLP over the state", needs=(NUMBERS, POINT_CLOUDS),
        when="if the observations are point clouds.")
def dp3(features: Schema | None = None, n_obs_steps: int = 2, horizon: int = 4, n_action_steps: int = 3,
        point_clouds: tuple[str, ...] = ()) -> Method:
    """3D Diffusion Policy: a diffusion policy that observes point clouds, which a small PointNet encodes.

    Args:
        point_clouds: Columns of shape (points, channels) that are point clouds. By default those of shape (points, 3)
            or (points, 6), and those with more channels that are named like `observation.point_cloud`.
    """
    clouds = tuple(point_clouds) or point_cloud_columns(features)
    policy = PolicyConfig(
        Diffusion(prediction="sample"), UNet((128, 256, 384)), TokenEncoder(point_clouds=clouds),
        Normalizer(obs="minmax", unscaled=clouds), Window(n_obs_steps, horizon, action_offset=1 - n_obs_steps))
    optimizer = OptimizerConfig(lr=1e-4, weight_decay=1e-6, betas=(0.95, 0.999), warmup_steps=500)
    return Method(policy, RecedingHorizon(n_action_steps, skip=n_obs_steps - 1),
                  BehaviorCloning(4000, batch_size=128, optimizer=optimizer))
