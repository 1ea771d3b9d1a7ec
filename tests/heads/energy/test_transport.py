"""Pick and place in an image: what turns with what, and the angles that frequencies tell."""

import math

import pytest
import torch

from understudy.core import ConfigError, Context, Feature, HeadSpec, UserError
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.heads.energy.transport import Transport
from understudy.nets.pixels import PixelEncoder
from understudy.nets.rotation import RotationConvNet, conv_net, disc_mask, rotation_operators
from understudy.nets.transformer import Transformer
from understudy.policy import PolicyConfig
from understudy.testing import check_encoder, check_head

SIDE, IMAGE = 16, "observation.images.top"
TARGET, INPUTS = Feature("float32", (5,)), {IMAGE: Feature("uint8", (SIDE, SIDE, 3), "image")}
FOURIER = Transport(7, 8, 3, 24, hidden=(2,), features=2, kernel=3)
PLAIN = Transport(7, 12, None, 12, equivariant=False, hidden=(4,), features=2, kernel=3)
SPEC = HeadSpec(1, SIDE * SIDE, 3)


def build(head, seed=0):
    torch.manual_seed(seed)
    return head.build(Transformer(), 5, SPEC).eval()


def turned_pixel(pixel):
    """Where a pixel goes if the image is turned by 90 degrees counterclockwise."""
    row, column = pixel // SIDE, pixel % SIDE
    return (SIDE - 1 - column) * SIDE + row


@pytest.mark.parametrize("head", [FOURIER, PLAIN])
def test_contract(head):
    config = PolicyConfig(head, encoder=PixelEncoder(), codec=Normalizer(target="identity"), window=Window(1, 1),
                          inputs=(IMAGE,))
    check_head(config, TARGET, INPUTS)


def test_encoder():
    check_encoder(PixelEncoder(), INPUTS)
    image = torch.randint(0, 256, (2, 1, SIDE, SIDE, 3), dtype=torch.uint8)
    tokens = PixelEncoder().build(INPUTS, 1)({IMAGE: image}).tokens
    torch.testing.assert_close(tokens[0, 2 * SIDE + 5], 1 - image[0, 0, 2, 5] / 255)
    with pytest.raises(UserError, match="reads one square image"):
        PixelEncoder().build({IMAGE: Feature("uint8", (8, 9, 3), "image")}, 1)


def test_rotations_are_matrices_of_the_group():
    operators = rotation_operators(9, 8)
    x = torch.randn(9, 9, generator=torch.Generator().manual_seed(0)) * disc_mask(9)
    for quarter in range(4):
        assert torch.equal((operators[2 * quarter] @ x.flatten()).view(9, 9), x.rot90(quarter, (0, 1)))
    smooth = torch.exp(-((torch.arange(9) - 5.0)[:, None] ** 2 + (torch.arange(9) - 4.5) ** 2) / 4)
    twice = operators[1] @ (operators[1] @ smooth.flatten())
    middle = disc_mask(9).flatten() & (torch.arange(81) % 9 - 4).abs().le(2) & (torch.arange(81) // 9 - 4).abs().le(2)
    assert (twice - operators[2] @ smooth.flatten()).abs()[middle].max() < 0.2  # 45 degrees: interpolated


def test_features_turn_with_the_image():
    """f(R x) = R f(x): exact for 90 degrees, near for 45."""
    torch.manual_seed(0)
    net = RotationConvNet(3, (4, 4), 2, 8, 5)
    x = torch.randn(2, 3, 17, 17)
    for quarter in (1, 2, 3):
        torch.testing.assert_close(net(x.rot90(quarter, (2, 3))), net(x).rot90(quarter, (2, 3)), atol=1e-5, rtol=0)
    at = torch.arange(17) - 8.0
    blob = torch.exp(-((at[:, None] - 2) ** 2 / 8 + (at + 1) ** 2 / 3)).expand(1, 3, 17, 17)
    eighth = rotation_operators(17, 8)[1]

    def turn(images):
        return (images.flatten(2) @ eighth.T).view(images.shape)

    def error(some):
        difference = (some(turn(blob)) - turn(some(blob)))[..., 4:13, 4:13]
        return difference.abs().mean() / some(blob)[..., 4:13, 4:13].std()
    with_rotations = sum(error(RotationConvNet(3, (4, 4), 2, 8, 5)) for _ in range(8)) / 8
    assert with_rotations < 0.7 * sum(error(conv_net(3, (32, 32), 2, 5)) for _ in range(8)) / 8  # interpolated kernels


@pytest.mark.parametrize("head, is_equivariant", [(FOURIER, True), (PLAIN, False)])
def test_scores_turn_with_the_scene(head, is_equivariant):
    """Turning the whole scene turns the scores of picks and of places, and leaves the angle as it is."""
    net, rng = build(head), torch.Generator().manual_seed(0)
    scene, pick = torch.rand(2, 3, SIDE, SIDE, generator=rng), torch.tensor([5 * SIDE + 6, 9 * SIDE + 10])
    turned = scene.rot90(1, (2, 3))
    with torch.no_grad():
        picks = [net.pick_logits(s).view(2, SIDE, SIDE) for s in (scene, turned)]
        places = [net.place_logits(s, p).unflatten(2, (SIDE, SIDE)) for s, p in
                  ((scene, pick), (turned, turned_pixel(pick)))]
    for before, after, axes in ((*picks, (1, 2)), (*places, (2, 3))):
        same = torch.allclose(before.rot90(1, axes), after, atol=1e-5)
        assert same == is_equivariant


@pytest.mark.parametrize("head", [FOURIER, PLAIN])
def test_an_object_fits_the_slot_that_shows_it_turned(head):
    """With pixels as features, scores are correlations: 4 pixels of the object match 4 of a slot twice as bright.

    The slot is at row 11 and column 10, and shows the object turned by 270 degrees counterclockwise.
    """
    net, scene = build(head), torch.zeros(1, 1, SIDE, SIDE)
    net.crop_net = net.scene_net = torch.nn.Identity()
    shape = torch.tensor([[0.0, 1, 0], [0, 1, 0], [0, 1, 1]])  # an L around its middle
    scene[0, 0, 3:6, 4:7], scene[0, 0, 10:13, 9:12] = shape, 2 * torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]])
    scores = net.place_logits(scene, torch.tensor([4 * SIDE + 5])).view(-1, SIDE, SIDE) * 7  # divided by sqrt(7 * 7)
    turn = len(scores) * 3 // 4
    assert scores.argmax().item() == (turn * SIDE + 11) * SIDE + 10
    if head is PLAIN:  # of the angles of the copies alone
        assert scores[turn, 11, 10].item() == pytest.approx(8, abs=1e-4)
        assert scores[0, 4, 5].item() == pytest.approx(4, abs=1e-4)


def test_the_angle_turns_with_what_is_picked():
    """Turning only the crop by 90 degrees shifts the scores by 90 degrees, and the places stay."""
    net, rng = build(FOURIER), torch.Generator().manual_seed(0)
    crops, scene = torch.rand(2, 3, 7, 7, generator=rng), torch.rand(2, 3, SIDE, SIDE, generator=rng)
    scores = []
    with torch.no_grad():
        for turned_crops in (crops, crops.rot90(1, (2, 3))):
            net.crops = lambda scene, pick, shown=turned_crops: shown
            scores.append(net.place_logits(scene, torch.zeros(2, dtype=torch.long)))
    torch.testing.assert_close(scores[1], scores[0].roll(-6, 1), atol=1e-5, rtol=0)  # 6 of 24 angles


def test_the_transform_interpolates_between_the_copies():
    """At the angles of the copies nothing is lost of a function with low frequencies, and others are between."""
    net = build(Transport(7, 8, 3, 48, hidden=(2,), features=2))
    copies, angles = (2 * math.pi * torch.arange(n) / n for n in (8, 48))

    def wave(at):
        return 0.3 + (at - 0.4).cos() - 0.5 * (3 * at).sin()
    torch.testing.assert_close(net.synthesis @ net.analysis @ wave(copies), wave(angles), atol=1e-5, rtol=0)


def test_pixels_and_positions():
    net = build(FOURIER)
    assert net.pixel(torch.tensor([[-0.99, 0.99], [0.99, -0.99]])).tolist() == [0, SIDE * SIDE - 1]
    pixels = torch.arange(SIDE * SIDE)
    assert torch.equal(net.pixel(net.position(pixels)), pixels)
    scene = torch.rand(1, 3, SIDE, SIDE)
    crop = net.crops(scene, torch.tensor([5 * SIDE + 6]))
    assert torch.equal(crop, scene[:, :, 2:9, 3:10])
    corner = net.crops(scene, torch.tensor([0]))
    assert torch.equal(corner[:, :, 3:, 3:], scene[:, :, :4, :4]) and not corner[:, :, :3].any()


def test_a_plan_is_the_maximum_of_the_scores():
    net = build(FOURIER)
    net.pick_logits = lambda scene: torch.nn.functional.one_hot(torch.tensor([40]), SIDE * SIDE).float()
    best = torch.zeros(1, 24, SIDE * SIDE)
    best[0, 18, 77] = 1
    net.place_logits = lambda scene, pick: best if pick.item() == 40 else None
    context = Context(torch.rand(1, SIDE * SIDE, 3), torch.ones(1, SIDE * SIDE, dtype=torch.bool))
    plan = FOURIER.sample(net, context, torch.zeros(1, 1, 0))[0, 0]
    assert plan[4] == -0.5  # 18 of 24 is 270 degrees counterclockwise
    assert net.pixel(plan[None, :2]).item() == 40 and net.pixel(plan[None, 2:4]).item() == 77
    action = plan.view(1, 1, 5)
    loss = FOURIER.loss(net, context, action, torch.ones(1, 1, dtype=torch.bool), torch.Generator())
    pixels = SIDE * SIDE
    expected = math.log(math.e + pixels - 1) + math.log(math.e + 24 * pixels - 1) - 2
    assert loss.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("build, problem", [
    (lambda: Transport(8), "must be odd"), (lambda: Transport(max_frequency=4), "do not determine"),
    (lambda: Transport(max_frequency=None), "cannot score 48 angles"),
    (lambda: FOURIER.build(Transformer(), 4, SPEC), "4 components"),
    (lambda: FOURIER.build(Transformer(), 5, HeadSpec(2, 256, 3)), "2 steps"),
    (lambda: FOURIER.build(Transformer(), 5, HeadSpec(1, 250, 3)), "not a square image"),
])
def test_errors(build, problem):
    with pytest.raises(ConfigError, match=problem):
        build()
