"""One-hot coding of several components."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from understudy.data.one_hot import decode_classes, encode_classes, map_components


@pytest.mark.parametrize(("num_classes", "classes", "coded"), [
    ((3,), [2], [0, 0, 1]),
    ((2, 2), [1, 0], [0, 1, 1, 0]),
    ((2, 3), [1, 1], [0, 1, 0, 1, 0]),
])
def test_classes_are_coded_side_by_side(num_classes, classes, coded):
    encoded = encode_classes(torch.tensor(classes), num_classes)
    assert encoded.dtype == torch.float32 and encoded.tolist() == coded
    assert decode_classes(encoded, num_classes).tolist() == classes


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 1000))
def test_components_are_independent(num_classes, seed):
    """Equal numbers of classes are computed at once; the result is that of each component by itself."""
    scores = torch.randn(2, 3, sum(num_classes), generator=torch.Generator().manual_seed(seed))
    parts = scores.split(num_classes, -1)
    assert torch.equal(decode_classes(scores, num_classes), torch.stack([p.argmax(-1) for p in parts], -1))
    mapped = map_components(lambda x: x.log_softmax(-1), scores, num_classes)
    torch.testing.assert_close(mapped, torch.cat([p.log_softmax(-1) for p in parts], -1))
    classes = decode_classes(scores, num_classes)
    assert torch.equal(decode_classes(encode_classes(classes, num_classes), num_classes), classes)
