"""Linear layers by way of the fastest products: the same numbers, gradients and layouts as torch's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retro_demo.models import layers
from retro_demo.models.layers import Linear, lay_out_for_writing, linear


@pytest.fixture(params=[True, False], ids=["oneDNN", "torch's own"])
def way(request, monkeypatch):
    """Both ways on every processor that has them."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(layers, "prefers_onednn", lambda: request.param)


@pytest.mark.parametrize("shape", [(40, 24), (3, 17, 24), (2, 3, 7, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [8, 70])
def test_a_linear_layer_and_its_gradients_are_those_of_torch(way, shape, bias, width):
    torch.manual_seed(0)
    layer, x = Linear(24, width, bias=bias), torch.randn(shape, requires_grad=True)
    out, expected = layer(x), F.linear(x, layer.weight, layer.bias)
    grad = torch.randn_like(out)

    ours = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    theirs = torch.autograd.grad(expected, [x, *layer.parameters()], grad)

    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_parts_of_a_weight_and_of_rows_are_read_right_whatever_their_strides(way):
    torch.manual_seed(0)
    layer = Linear(24, 90)
    lay_out_for_writing(layer)
    rows, (first, rest) = torch.randn(60, 5, 24)[:, :1], layer.weight.split([30, 60])
    for part in (first, rest):
        torch.testing.assert_close(linear(rows, part), rows @ part.T, rtol=1e-5, atol=1e-5)


def test_other_number_types_and_autocast_are_left_to_torch(way):
    layer, x = Linear(24, 70), torch.randn(40, 24)
    assert layer.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16


def test_laying_out_changes_no_name_shape_or_value_and_the_layer_can_still_be_trained(way):
    torch.manual_seed(0)
    model = nn.Sequential(Linear(8, 32), nn.GELU(), Linear(32, 8))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    x = torch.randn(20, 8)
    out = model(x)
    lay_out_for_writing(model)
    after = model.state_dict()

    assert {name: weight.shape for name, weight in after.items()} == {n: w.shape for n, w in before.items()}
    assert all(torch.equal(after[name], before[name]) for name in before)
    torch.testing.assert_close(model(x), out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x[:1]), out[:1], rtol=1e-5, atol=1e-6)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, lr=1e-2)
    first = model(x).square().mean()
    first.backward()
    optimizer.step()
    assert model(x).square().mean() < first


def test_a_torch_without_the_private_product_is_left_to_its_own(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: "vendor_id: AuthenticAMD")
    assert layers.prefers_onednn.__wrapped__() == hasattr(torch.ops.mkldnn, "_linear_pointwise")

    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())

    assert not layers.prefers_onednn.__wrapped__()
