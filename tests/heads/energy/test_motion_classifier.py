"""The classifier of motions against loops over motions, with encodings of two numbers that motions are added to."""

from types import SimpleNamespace

import numpy as np
import torch

from understudy.core import Context
from understudy.heads.energy.motion_classifier import MotionClassifier

HEAD = MotionClassifier(3, 0.5)
MOTIONS = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]], [[-1.0, -1.0], [-1.0, 1.0]]])
TOKENS = torch.tensor([[[1.0, 0.5], [0.2, 3.0]], [[0.3, -2.0], [1.0, 0.1]]])  # observation and goal of two rows
CONTEXT = Context(TOKENS, torch.ones(2, 2, dtype=torch.bool))


class Adding(torch.nn.Module):
    motions = MOTIONS

    def forward(self, x, t, context):
        return x + context.flat().unsqueeze(1)


def cosines():
    after = TOKENS[:, :1].numpy() + MOTIONS.mean(1).numpy()
    return np.array([[z @ goal / np.linalg.norm(z) / np.linalg.norm(goal) for z in row]
                     for row, goal in zip(after, TOKENS[:, 1].numpy(), strict=True)])


def test_the_loss_is_that_of_the_probabilities_from_distances():
    action = torch.tensor([[[0.9, 0.2], [0.0, 0.0]], [[-0.8, -0.9], [-0.9, 0.8]]])
    mask = torch.tensor([[True, False], [True, True]])  # only the first step of row 0 counts: it is nearest to motion 0
    weights = np.exp(cosines() / 0.5)
    expected = -np.log(weights / weights.sum(1, keepdims=True))[[0, 1], [0, 2]]
    loss = HEAD.loss(Adding(), CONTEXT, action, mask, torch.Generator())
    np.testing.assert_allclose(loss, np.repeat(expected[:, None], 2, 1), rtol=1e-5)


def test_it_takes_the_motion_that_comes_nearest_to_the_goal():
    assert cosines().argmax(1).tolist() == [2, 0]
    assert torch.equal(HEAD.sample(Adding(), CONTEXT, torch.zeros(2, 2, 0)), MOTIONS[[2, 0]])


def test_a_classifier_worked_out_by_hand():
    """From (2, 0) the motions lead to (0, 3), (0, -1), (2, 0) and (3, 4). Their cosines with the goal (0, 5) are 1, -1,
    0 and 4/5, so that the logits at the temperature 1/2 are 2, -2, 0 and 1.6, and the loss of a motion is the logarithm
    of the sum of their exponentials, 2.6010, minus its own logit."""
    net, head = Adding(), MotionClassifier(4, 0.5)
    net.motions = torch.tensor([[[-2.0, 3.0]], [[-2.0, -1.0]], [[0.0, 0.0]], [[1.0, 4.0]]])
    context = Context(torch.tensor([[[2.0, 0.0], [0.0, 5.0]]]), torch.ones(1, 2, dtype=torch.bool))
    assert head.sample(net, context, torch.zeros(1, 1, 0)).tolist() == [[[-2.0, 3.0]]]
    context, mask = context.repeat(4), torch.ones(4, 1, dtype=torch.bool)
    demonstrated = net.motions + torch.tensor([0.3, -0.4])  # each is nearest to its own motion
    loss = head.loss(net, context, demonstrated, mask, torch.Generator()).flatten()
    torch.testing.assert_close(loss, torch.tensor([0.6010, 4.6010, 2.6010, 1.0010]), atol=1e-4, rtol=0)


def test_motions_are_the_centers_of_whole_chunks():
    rng, net = np.random.default_rng(0), SimpleNamespace(motions=torch.zeros(3, 2, 2))
    centers = torch.tensor(rng.normal(size=(3, 2, 2)) * 5).float()
    chunks = torch.cat([centers - 0.01, centers + 0.01, torch.full((1, 2, 2), 50.0)])
    mask = torch.ones(7, 2, dtype=torch.bool)
    mask[6, 1] = False
    HEAD.fit(net, lambda: iter([(None, chunks[:4], mask[:4]), (None, chunks[4:], mask[4:])]))
    assert torch.cdist(net.motions.flatten(1), centers.flatten(1)).min(0).values.max() < 1e-4
