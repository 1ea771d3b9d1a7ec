"""The linear layer gives what PyTorch's gives, whichever library works it out."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from understudy.nets import linear as module
from understudy.nets.linear import Linear, linear


@pytest.fixture(autouse=True)
def both_ways(monkeypatch):
    """Wherever this runs, and however small the matrices."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    monkeypatch.setattr(module, "MKL_IS_SLOW", True)
    monkeypatch.setattr(module, "MIN_MULTIPLICATIONS", 0)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def slopes(function, x, weight, bias):
    """The value, its slopes, and slopes of those."""
    leaves = [t.clone().requires_grad_() for t in (x, weight) + (() if bias is None else (bias,))]
    y = function(*leaves, *([None] if bias is None else []))
    first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
    return y, *first, *torch.autograd.grad(sum(f.square().sum() for f in first), leaves[:2])


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (2, 1, 3, 7), (1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_slopes(shape, bias):
    x, weight, b = drawn(*shape), drawn(4, 7), drawn(4) if bias else None
    for ours, plain in zip(slopes(linear, x, weight, b), slopes(F.linear, x, weight, b), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_without_slopes_it_is_asked_once_and_gives_the_same(monkeypatch):
    asked = []
    real = module._onednn
    monkeypatch.setattr(module, "_onednn", lambda *a: asked.append(a) or real(*a))
    layer, x = Linear(7, 4), drawn(5, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert len(asked) == 1


def test_parts_of_matrices_low_precision_and_transforms_go_the_plain_way(monkeypatch):
    monkeypatch.setattr(module, "_onednn", None)
    x, weight = drawn(5, 7), drawn(4, 9)
    torch.testing.assert_close(linear(x, weight[:, :7]), F.linear(x, weight[:, :7]))
    assert linear(x.double(), drawn(4, 7).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, drawn(4, 7)).dtype == torch.bfloat16
    ours, tangent = torch.func.jvp(lambda v: linear(v, drawn(4, 7)), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, torch.ones_like(x) @ drawn(4, 7).t())
    plain = drawn(4, 7)
    torch.testing.assert_close(torch.vmap(lambda v: linear(v, plain))(x), F.linear(x, plain))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(linear(dual, drawn(4, 7))).tangent is not None


@pytest.mark.slow
def test_compiled_it_is_the_same():
    layer, x = Linear(64, 32), drawn(16, 64)
    torch.testing.assert_close(torch.compile(layer)(x), F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)


def test_products_in_a_graph_have_the_values_and_slopes_of_pytorch():
    def traced(a, b):
        a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
        y = a @ b.mT
        return y, *torch.autograd.grad(y.sin().sum(), (a, b))
    a, b = drawn(2, 5, 7), drawn(2, 4, 7)
    graph = make_fx(traced, {torch.ops.aten.bmm.default: module.products}, tracing_mode="real")(a, b)
    assert [node.target for node in graph.graph.nodes].count(torch.ops.understudy.products.default) == 3
    torch.testing.assert_close(graph(a, b), traced(a, b))
    assert module.products(a.double(), b.mT.double()) is module.products(a[..., :4], b[:, :, :4].mT) is NotImplemented


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, 0, None), (0, None, 0), (None, 0, 0)])
def test_in_a_graph_vmap_batches_layers(axes):
    inputs = [value if axis == 0 else value[0] for value, axis in zip(
        (drawn(3, 6, 5, 7), drawn(3, 4, 7), drawn(3, 4)), axes, strict=True)]
    result = torch.vmap(torch.ops.understudy.linear, axes)(*inputs)
    torch.testing.assert_close(result, torch.vmap(F.linear, axes)(*inputs))


@pytest.mark.parametrize("axes", [(0, 0), (None, 0)])
def test_in_a_graph_vmap_batches_products(axes):
    a, b = drawn(3, 2, 5, 7), drawn(3, 2, 7, 4)
    a = a if axes[0] == 0 else a[0]
    torch.testing.assert_close(torch.vmap(torch.ops.understudy.products, axes)(a, b), a @ b)
