import functools

import pytest


@pytest.fixture(scope="package", autouse=True)
def one_table_of_operators():
    """PyTorch builds its table of ONNX operators for every export, which is a third of the work of a small one."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    with pytest.MonkeyPatch.context() as patch:
        made = functools.cache(registration.ONNXRegistry.from_torchlib)
        patch.setattr(registration.ONNXRegistry, "from_torchlib", staticmethod(made))
        yield
