"""The encoder of point clouds."""


import pytest
import torch
from fixtures.networks import rng, seeded

from understudy.core import Feature, UserError
from understudy.data.codec import Normalizer
from understudy.heads.likelihood.regression import Regression
from understudy.nets.encoders import TokenEncoder
from understudy.policy import Policy, PolicyConfig


@pytest.mark.parametrize("channels, parameters", [(3, 59_072), (6, 207_232), (4, 207_104)])
def test_a_point_cloud_is_a_set_and_the_network_is_that_of_dp3(channels, parameters):
    """A token does not depend on the order of the points, nor on the number of times that a point is there."""
    name = "observation.points"
    enc = seeded(lambda: TokenEncoder(64, point_clouds=(name,)).build({name: Feature("float32", (32, channels))}, 2))
    assert sum(p.numel() for p in enc.parameters()) == parameters
    x = torch.randn(5, 2, 32, channels, generator=rng())
    token = enc({name: x}).tokens
    order = torch.randperm(32, generator=rng(1))
    assert token.shape == (5, 2, 64)
    torch.testing.assert_close(enc({name: x[:, :, order]}).tokens, token)
    torch.testing.assert_close(enc({name: torch.cat([x[:, :, 5:], x[:, :, 5:10]], 2)}).tokens,
                               enc({name: torch.cat([x[:, :, 5:], x[:, :, 9:14]], 2)}).tokens)
    assert not torch.allclose(enc({name: x[:, :, [0] * 32]}).tokens, token)


def test_a_codec_that_scales_points_one_by_one_is_refused():
    name = "observation.points"
    features = {name: Feature("float32", (8, 3)), "action": Feature("float32", (2,))}
    encoder = TokenEncoder(8, point_clouds=(name,))
    Policy(PolicyConfig(Regression(), encoder=encoder, codec=Normalizer(unscaled=(name,))), features)
    Policy(PolicyConfig(Regression(), encoder=encoder, codec=Normalizer(obs="identity")), features)
    with pytest.raises(UserError, match=r"Normalizer\(unscaled=\('observation.points',\)\)"):
        Policy(PolicyConfig(Regression(), encoder=encoder), features)
    with pytest.raises(UserError, match="point_clouds: The policy does not read a column 'points'"):
        TokenEncoder(8, point_clouds=("points",)).build(features, 1)
    with pytest.raises(UserError, match=r"column 'action': A point cloud has the shape \(points, channels\)"):
        TokenEncoder(8, point_clouds=("action",)).build(features, 1)
