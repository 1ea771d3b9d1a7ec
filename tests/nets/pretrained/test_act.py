"""The transformer of ACT."""


import pytest
import torch
from fixtures.networks import arguments, built, rng

from understudy.core import Context, HeadSpec, Unsupported, UserError
from understudy.nets.pretrained.act import ACTTransformer


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_the_transformer_of_act(pre_norm):
    trunk = ACTTransformer(16, 2, 24, encoder_depth=1, depth=2, posterior_depth=1, pre_norm=pre_norm, grids=((1, 2),),
                           state_size=3)
    net, (x, t, context) = built(trunk, times=0), arguments(times=0)
    out = net(x, t, context)
    assert out.shape == (5, 6, 5) and not torch.allclose(out[:, 0], out[:, 1]), "steps have positions"
    one = net(x[1:2], t[1:2], Context(context.tokens[1:2], context.mask[1:2]))
    torch.testing.assert_close(one[0], out[1], rtol=1e-4, atol=1e-5)
    hidden = torch.where(context.mask.unsqueeze(-1), context.tokens, 50.0)
    torch.testing.assert_close(net(x, t, Context(hidden, context.mask)), out)
    plain, swapped = (net(x, t, Context(tokens, torch.ones_like(context.mask)))
                      for tokens in (context.tokens, context.tokens.flip(1)))
    assert not torch.allclose(plain, swapped), "tokens have positions"
    assert not torch.allclose(net(x + 1, t, context), out), "the latent is read"
    assert torch.equal(net(torch.cat([x[:, :1], x[:, 1:] + 1], 1), t, context), out), "of the first step"

    posterior = trunk.build_posterior(2, 8, HeadSpec(6, 4, 7)).eval()
    state = Context(context.tokens, context.mask, {"observation.state": torch.randn(5, 3, generator=rng(3))})
    action, present = torch.randn(5, 6, 2, generator=rng(4)), torch.ones(5, 6, 1)
    present[:, 4:] = 0
    q = posterior(torch.cat([action, present], -1), t, state)
    assert q.shape == (5, 6, 8) and torch.equal(q[:, 0], q[:, 5])
    spoiled = torch.where(present > 0, action, 9.0)
    torch.testing.assert_close(posterior(torch.cat([spoiled, present], -1), t, state), q)
    assert not torch.allclose(posterior(torch.cat([action, torch.ones(5, 6, 1)], -1), t, state), q)
    with pytest.raises(UserError, match="does not pass on 'observation.state'"):
        posterior(torch.cat([action, present], -1), t, context)


def test_what_the_transformer_of_act_cannot_do():
    with pytest.raises(Unsupported, match="no time embedding"):
        built(ACTTransformer(16, 2, 24), times=1)
    with pytest.raises(UserError, match="6 cells, but the context has 4 tokens"):
        built(ACTTransformer(16, 2, 24, grids=((2, 3),)), times=0)
    with pytest.raises(UserError, match="not a multiple of heads=3"):
        built(ACTTransformer(16, 3, 24), times=0)
