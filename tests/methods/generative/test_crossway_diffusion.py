"""crossway-diffusion: the bottleneck of the U-Net must hold the observation, and acting needs no decoder."""

from dataclasses import replace

import pytest
import torch
from fixtures.learning import call_step
from torch import nn

from understudy.core import Feature, Unsupported
from understudy.data.augment import RandomShift
from understudy.data.codec import Normalizer
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.objectives.observation_decoders import PictureDecoder
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.generative.crossway_diffusion import BottleneckReconstruction
from understudy.nets.base import capture_intermediates
from understudy.nets.encoders import TokenEncoder
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.nets.vision import SmallConv
from understudy.policy import Policy
from understudy.testing import check_learner, random_dataset

TOP, STATE, WORDS = "observation.images.top", "observation.state", "observation.task"
FEATURES = {TOP: Feature("uint8", (12, 10, 3), "image"), STATE: Feature("float32", (3,)),
            WORDS: Feature("int64", (1,), "discrete", num_classes=(4,)), "action": Feature("float32", (2,))}
DATA = random_dataset(FEATURES, episodes=2, steps=12)
RAW = Normalizer("identity", "identity")


def small(name="crossway-diffusion", **changes):
    method = find_method(name)
    policy = {"trunk": UNet((8, 16), 3, 4, 8), "encoder": TokenEncoder(8, vision=SmallConv((8,) * 4, 4)), "codec": RAW,
              "augmentations": (RandomShift(TOP, 2),), **changes}
    return replace(method, policy=replace(method.policy, **policy))


def new_learner(name="crossway-diffusion", *losses, draws=1, **changes):
    method = small(name, **changes)
    torch.manual_seed(0)
    policy = Policy(method.policy, DATA.features()).fit_statistics(DATA)
    config = replace(method.learner, n_noise_samples=draws, **({"auxiliary_losses": losses} if losses else {}))
    return config.build(policy, 0, 10, DATA)


def seeded():
    return torch.Generator().manual_seed(3)


def windows(learner, present=True):
    batch = learner.batch_sampler(DATA).batch(5, 0)
    return replace(batch, obs={**batch.obs, TOP + "?": torch.tensor([[present, True]]).expand(5, 2)})


def test_the_loss_reaches_the_encoder_and_the_way_down_alone():
    learner = new_learner()
    call_step(learner, "policy_loss", windows(learner), seeded())[1].sum().backward()
    reached = {name for name, p in learner.policy.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert all(name in reached for name, _ in learner.policy.named_parameters() if name.startswith(
        ("encoder.", "net.time_mlp", "net.down", "net.middle")) and not name.endswith("resize.bias"))
    assert not any(name.startswith(("net.up", "net.output_layer")) for name in reached)


@pytest.mark.parametrize("present", [True, False])
def test_the_loss_of_known_decoders_has_a_closed_form(present):
    """A decoder of constants, and one that copies what it reads, over two draws of noise: without shifts and crops."""
    learner = new_learner("crossway-diffusion", BottleneckReconstruction(weight=0.5), draws=2)
    (loss,), batch = learner.nets.auxiliary_losses, windows(learner, present)
    pictures, numbers = loss.decoders
    nn.init.zeros_(pictures.fine.weight)
    pictures.fine.bias.data = torch.tensor([0.2, -0.4, 1.0])
    copied = nn.Linear(8, 3, bias=False)
    copied.weight.data = torch.eye(3, 8)
    loss.decoders[1] = copied
    with capture_intermediates(("trunk_bottleneck",)) as captured:
        learner.policy.loss(batch, seeded(), n_noise_samples=2)
    bottleneck = captured["trunk_bottleneck"]
    assert bottleneck.shape == (10, 8, 16)
    wrong = bottleneck[:, 0].view(5, 2, 2, 8)[..., :3] - batch.obs[STATE].unsqueeze(1)
    of_pictures = (batch.obs[TOP] / 127.5 - 1 - torch.tensor([0.2, -0.4, 1.0])).square().mean((2, 3, 4))
    expected = wrong.square().mean((1, 2, 3)) + (of_pictures.mean(1) if present else of_pictures[:, 1])
    torch.testing.assert_close(loss(learner.policy, batch, seeded(), captured), 0.5 * expected)
    assert learner.policy.training  # shifts would change what the encoder reads
    torch.testing.assert_close(call_step(learner, "policy_loss", batch, seeded())[1], 0.5 * expected)


def test_the_loss_of_diffusion_stays_as_it_is():
    crossway, plain = new_learner(), new_learner("diffusion-policy")
    assert len(crossway.nets.auxiliary_losses) == 1 and not plain.nets.auxiliary_losses
    batch = windows(plain)
    losses = [call_step(learner, "policy_loss", batch, seeded())[0] for learner in (crossway, plain)]
    assert torch.equal(*losses)


def test_the_policy_that_acts_and_is_saved_has_no_decoder(tmp_path):
    fitted = fit_method(replace(small(), learner=replace(small().learner, steps=2, batch_size=4)), DATA, 0)
    plain = Policy(small("diffusion-policy").policy, DATA.features())
    assert fitted.policy.state_dict().keys() == plain.state_dict().keys()
    assert fitted.modules.keys() == {"policy"}
    fitted.policy.save(tmp_path / "saved")
    assert "decoder" not in "".join(f.read_bytes().decode("latin1") for f in (tmp_path / "saved").rglob("*.*"))


def test_a_decoder_draws_what_its_vectors_tell():
    """Two pictures with a bright square at different places. Each is told by one number."""
    torch.manual_seed(0)
    decoder, vectors = PictureDecoder(8, (7, 6, 1), 8), torch.eye(2, 8)
    pictures = -torch.ones(2, 1, 7, 6)
    pictures[0, :, :3, :3] = pictures[1, :, 4:, 3:] = 1
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.03)
    for _ in range(40):
        loss = (decoder(vectors) - pictures).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 < pictures.var() / 4
    decoder = PictureDecoder(8, (48, 48, 1), 8)
    drawn = decoder(torch.ones(1, 8))[..., 16:36, 16:36]  # far from the edges, where vectors alone would repeat
    assert (drawn[..., 4:] - drawn[..., :-4]).abs().max() > 1e-2 * drawn.std()


def test_large_pictures_are_rebuilt_smaller():
    decoder = PictureDecoder(8, (480, 640, 3), 4)
    assert decoder(torch.zeros(1, 8)).shape == (1, 3, 72, 96)
    features = {**FEATURES, TOP: Feature("uint8", (100, 192, 3), "image")}
    policy = Policy(small(augmentations=()).policy, features)
    loss = BottleneckReconstruction(width=4).build(policy)
    nn.init.zeros_(loss.decoders[0].fine.weight)
    batch = random_dataset(features, episodes=1, steps=3)
    batch = policy.windows(batch).batch(1, 0)
    first = torch.zeros(1, 1, 16)
    bias = loss.decoders[0].fine.bias
    target = (batch.obs[TOP] / 127.5 - 1).unflatten(3, (96, 2)).unflatten(2, (50, 2)).mean((3, 5))
    wrong = (bias - target).square().mean() + (loss.decoders[1](torch.zeros(8)) - batch.obs[STATE]).square().mean()
    torch.testing.assert_close(loss(policy, batch, seeded(), {"trunk_bottleneck": first}), 0.1 * wrong[None])


@pytest.mark.slow
def test_the_contract():
    policy = replace(small(augmentations=()).policy, inputs=(STATE,))
    check_learner(BehaviorCloning(batch_size=8, optimizer=OptimizerConfig(lr=1e-3),
                                  auxiliary_losses=(BottleneckReconstruction(),)), [policy])


def test_what_cannot_be_rebuilt_is_refused():
    def build(**changes):
        BottleneckReconstruction().build(Policy(small(**changes).policy, FEATURES))
    with pytest.raises(Unsupported, match=r"Transformer has no bottleneck(.|\n)*UNet\(\)"):
        build(trunk=Transformer(8, 1, 2))
    with pytest.raises(Unsupported, match="no numbers or pictures to rebuild in observation.task"):
        build(inputs=(WORDS,), augmentations=())
