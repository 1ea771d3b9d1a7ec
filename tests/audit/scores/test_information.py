"""Mutual information."""

import numpy as np
import pytest
from fixtures.scored import data, episode
from scipy.special import digamma

from understudy.audit.scores import (
    MutualInformation,
)
from understudy.audit.scores.information import mutual_information_terms


@pytest.mark.parametrize("r", [0.0, 0.6, 0.9])
def test_mutual_information_of_gaussians(r):
    """-log(1 - r^2) / 2 in nats."""
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal((2, 1500, 1))
    assert mutual_information_terms(x, r * x + np.sqrt(1 - r * r) * e).mean() == pytest.approx(
        -0.5 * np.log(1 - r * r), abs=0.06
    )


def test_the_estimator_is_the_published_formula():
    """Kraskov et al. 2004, equation 8, written out for each point."""
    x, y = np.random.default_rng(0).standard_normal((2, 14, 2))
    for i, term in enumerate(mutual_information_terms(x, y, (3,))):
        others = [j for j in range(14) if j != i]
        far_x, far_y = ([abs(v[j] - v[i]).max() for j in others] for v in (x, y))
        reach = sorted(map(max, zip(far_x, far_y, strict=True)))[2]
        n_x, n_y = (sum(d < reach for d in distances) for distances in (far_x, far_y))
        assert term == pytest.approx(digamma(3) - digamma(n_x + 1) - digamma(n_y + 1) + digamma(14))


def test_varied_and_predictable_is_informative():
    rng = np.random.default_rng(1)
    states = [rng.standard_normal(60) for _ in range(8)]
    d = data([episode(s, s if i < 4 else rng.standard_normal(60)) for i, s in enumerate(states)])
    scores = MutualInformation()(d)
    assert scores[:4].min() > scores[4:].max() + 0.3
    assert (MutualInformation()(d) == scores).all()
