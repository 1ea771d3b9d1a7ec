"""QRL: an embedding whose distances are quasimetric."""

import torch

from understudy.methods.goal_conditioned.qrl import IntervalQuasimetric, union_length


def test_union_length_counts_an_overlap_once():
    x, y = torch.tensor([[0.0, 1.0, 5.0, 9.0], [0.0, 0.0, 0.0, 2.0]]), torch.tensor([[2.0, 4.0, 6.0, 3.0], [1.0] * 4])
    assert union_length(x, y).tolist() == [5.0, 1.0]  # 0 to 4 and 5 to 6; the last interval of each row is empty


def test_distances_obey_the_axioms_of_quasimetrics():
    torch.manual_seed(0)
    x, y, z = torch.randn(3, 5000, 16).double()
    for mix in (-3.0, 0.0, 3.0):
        distance = IntervalQuasimetric(4).double()
        distance.mix.data.fill_(mix)
        assert (distance(x, z) <= distance(x, y) + distance(y, z) + 1e-12).all()
        assert (distance(x, y) >= 0).all() and (distance(x, x) == 0).all()
        assert ((distance(x, y) - distance(y, x)).abs() > 1e-3).float().mean() > 0.9  # a distance with a direction
