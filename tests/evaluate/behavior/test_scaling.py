"""Units of states: what varies by rounding only is ignored, and nothing else."""

import numpy as np
from fixtures.behaviors import episode

from understudy.data.episode import Dataset
from understudy.evaluate.behavior.scaling import TrajectoryScaling


def test_only_components_that_vary_by_rounding_are_ignored():
    """An offset of 1000 with deviations of 0.02 varies, and one of 0.0003, the rounding of float32, does not."""
    t = np.linspace(-1, 1, 21)
    scaling = TrajectoryScaling.from_data(Dataset([episode(np.stack([1000 + 0.02 * t, 1000 + 0.0003 * t, t], 1))]))
    np.testing.assert_allclose(scaling.scale, [0.02 * t.std(), np.inf, t.std()], rtol=1e-2)
    assert scaling.n_components == 2
