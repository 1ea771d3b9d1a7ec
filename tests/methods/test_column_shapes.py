"""The same numbers train the same policy, whatever the shape in which a column has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy.data.episode import Dataset, Episode
from understudy.learn.fit_method import fit_method
from understudy.learn.method import with_steps
from understudy.methods import find_method

NAMES = ("bc", "ccil", "cql", "crl", "decision-transformer", "dichotomy-of-control", "fb", "gciql", "gcivl", "hilp",
         "hiql", "iql", "qrl")


def episodes(state: tuple[int, ...], action: tuple[int, ...], dtype=np.float32) -> Dataset:
    """Episodes with columns of these shapes. Their numbers depend on the sizes alone."""
    rng = np.random.default_rng(0)

    def episode(steps: int) -> Episode:
        numbers = rng.normal(size=(steps + 1, int(np.prod(state)))).astype(np.float32)
        return Episode({"observation.state": numbers.reshape(-1, *state),
                        "action": (rng.random((steps, int(np.prod(action)))) > 0.5).astype(dtype).reshape(-1, *action),
                        "next.reward": rng.normal(size=steps).astype(np.float32),
                        "next.terminated": np.arange(steps) == steps - 1})
    return Dataset([episode(12) for _ in range(6)])


def trained(name: str, data: Dataset) -> dict[str, torch.Tensor]:
    method = with_steps(find_method(name, data.features()), 2)
    return fit_method(method, data, 0).policy.state_dict()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("state", "action"), [((), ()), ((2, 3), (2, 2))])
def test_shapes_do_not_matter(name, state, action):
    flat = trained(name, episodes((int(np.prod(state)),), (int(np.prod(action)),)))
    shaped = trained(name, episodes(state, action))
    assert flat.keys() == shaped.keys()
    for key in flat:
        torch.testing.assert_close(shaped[key].reshape(flat[key].shape), flat[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_the_numbers_0_and_1(name):
    numbers, flags = (trained(name, episodes((3,), (2,), dtype)) for dtype in (np.float32, bool))
    for key in numbers:
        torch.testing.assert_close(flags[key], numbers[key], rtol=1e-4, atol=1e-5)
