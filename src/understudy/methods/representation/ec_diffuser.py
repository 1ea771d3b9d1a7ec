from __future__ import annotations

from typing import Annotated

from ...core import AtLeast, Context, Unsupported, UserError, part
from ...data.codec import Normalizer
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.denoising.diffusion import Diffusion
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.objectives.representation_objectives import NetworkObjective
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder, EncoderNet
from ...nets.encoders import check_inputs, check_unscaled, observed_column
from ...nets.feed_forward import feed_forward_layers
from ...nets.linear import Linear
from ...nets.object_attention import check_objects
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS, OBJECTS
from ..registry import method


@part
class ObjectEncoder(Encoder):
    """Encoder with a token for each object, from one network for all. A row of zeros holds no object.

    With a `Transformer` whose context is not ordered, a policy does not depend on the order of the objects, and acts
    with other numbers of them than in its data.

    Args:
        objects: Column of shape (objects, features), the only one that the policy reads. The codec must leave it as it
            is: ``Normalizer(unscaled=...)``. Numbers far from -1 to 1 are learned slowly.
    """

    width: Annotated[int, AtLeast(1)] = 128
    objects: str = "observation.objects"

    def build(self, features, n_obs_steps):
        check_inputs(features, (self.objects,), "ObjectEncoder.objects")
        check_objects(features[self.objects], self.objects, "ObjectEncoder.objects")
        if others := sorted(features.keys() - {self.objects}):
            raise UserError(f"the objects are all that is read, but the policy reads {others[0]!r} too",
                            where="ObjectEncoder", hint=f"name the inputs: --policy.inputs {self.objects}, and put "
                            "what concerns all objects into each row")
        return _ObjectEncoderNet(self, features[self.objects], n_obs_steps)

    def check_policy(self, codec, augmentations):
        check_unscaled(codec, (self.objects,), "each row of", "the order of the objects would matter",
                       "ObjectEncoder.objects")


class _ObjectEncoderNet(EncoderNet):
    def __init__(self, config, feature, n_obs_steps):
        super().__init__()
        self.objects, (self.tokens, size), self.width = config.objects, feature.shape, config.width
        self.token_obs_steps = (n_obs_steps - 1,) * self.tokens
        self.layers = feed_forward_layers((n_obs_steps * size, config.width, config.width), "silu")

    def forward(self, obs, rng=None):
        """Returns a token for each object, from all observation steps."""
        objects, present = observed_column(obs, self.objects)
        exists = (objects[:, -1] != 0).any(-1) & present[:, -1:]
        return Context(self.layers(objects.float().transpose(1, 2).flatten(2)), exists)


@part
class NextObjects(NetworkObjective):
    """Auxiliary loss that predicts the objects after the chunk from a transformer's tokens.

    The loss is the mean absolute error over the numbers of the objects that exist.
    """

    objects: str = "observation.objects"
    weight: Annotated[float, AtLeast(0)] = 1.0
    captures, next_obs = ("memory",), True

    def networks(self, policy):
        trunk = policy.config.trunk
        if not isinstance(trunk, Transformer) or trunk.attention != "joint" or trunk.causal:
            raise Unsupported("the objects do not read the actions", where="NextObjects",
                              hint='use the trunk Transformer(attention="joint", causal=False)')
        return {"layer": Linear(trunk.width, policy.features[self.objects].shape[1])}

    def loss(self, networks, policy, batch, rng, captured):
        now, later = (obs[self.objects][:, -1].float() for obs in (batch.obs, batch.next))
        exists = (now != 0).any(-1) & batch.mask[:, -1:]  # nothing comes after a chunk that the episode cuts off
        memory = captured["memory"].unflatten(0, (len(batch), -1))  # (B, draws of noise, objects, D)
        error = (networks.layer(memory) - later.unsqueeze(1)).abs().mean((1, 3)) * exists
        return self.weight * error.sum(1) / exists.sum(1).clamp(min=1)


@method("Qi et al. 2024, arXiv 2412.18907, with given objects, whose goals are features, and which are predicted by "
        "regression", rows=("265",), needs=(NUMBERS, OBJECTS),
        when="if observations are a set of objects, whose number or order differs while acting.")
def ec_diffuser(objects: str = "observation.objects", width: int = 128) -> Method:
    """Diffusion policy that reads objects as a set, and also predicts each of them after the chunk.

    The last step of an episode is learned only if an observation follows it.

    Args:
        objects: Column of shape (objects, features). Rows of zeros hold no object.
    """
    trunk = Transformer(width, 3, 4, "joint", ordered_context=False)
    policy = PolicyConfig(Diffusion(n_steps=5, n_train_steps=5, prediction="sample"), trunk,
                          ObjectEncoder(width, objects), Normalizer(unscaled=(objects,)), Window(1, 1),
                          inputs=(objects,))
    learner = BehaviorCloning(5000, 128, OptimizerConfig(lr=1e-3), auxiliary_losses=(NextObjects(objects),))
    return Method(policy, RecedingHorizon(1), learner)
