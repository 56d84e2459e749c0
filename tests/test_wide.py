"""Networks in float64: their own weights where they have some, drawn ones where not, and layer by layer the same as at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from residua.census import census
from residua.graph import Captured, capture
from residua.wide import Ways, wide_input, widened


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        units = [
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 5, bias=False),
        ]
        nn.init.normal_(units[1].bias)  # what is all zero would be drawn anew
        return nn.Sequential(*units).eval()


def run(captured: Captured, x: Tensor, attempt: int, **options: int) -> tuple[Tensor, Tensor]:
    """The output, and its sum's derivative with respect to the input."""
    x = wide_input(x, 0).requires_grad_()
    with widened(captured, [], lambda value, _row, _column: value, attempt, **options) as module:
        (y,) = module(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


def test_it_is_the_network_in_float64() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    y, _ = run(capture(model, x), x, 0)
    torch.testing.assert_close(y, model.double()(x.double()).detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("attempt", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_by_layer_it_is_the_same_with_weights_kept_narrow(attempt: int, dtype: torch.dtype) -> None:
    model, x = network().to(dtype), torch.randn(2, 3, 8, 8, dtype=dtype)
    captured = capture(model, x)
    for sparing, whole in zip(run(captured, x, attempt, many=0), run(captured, x, attempt)):
        assert sparing.dtype == torch.float64
        torch.testing.assert_close(sparing, whole, rtol=0, atol=0)
    with widened(captured, [], lambda value, _row, _column: value, attempt, many=0) as module:
        holder = module.__self__
        assert {parameter.dtype for parameter in holder.parameters() if parameter.dim() > 1} == {dtype}
        assert list(holder.buffers())
    assert not list(holder.buffers())
    assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_parameters_that_are_zero_are_drawn_and_others_only_with_a_further_attempt() -> None:
    model, x = network(), torch.randn(2, 3, 8, 8)
    nn.init.zeros_(model[4].weight)
    captured = capture(model, x)
    outputs = [run(captured, x, attempt)[0] for attempt in (0, 0, 1, 2)]
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[0].abs().min() > 0
    assert not torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[2], outputs[3])
    assert not model[4].weight.any()


def test_the_operands_of_a_merge_are_weighed() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x

    model, x = Around().eval(), torch.randn(2, 4)
    captured = capture(model, x)
    (skip,) = census(captured).skips
    ways: Ways = (skip.merge_node, *skip.ways)
    with widened(captured, [ways], lambda value, _row, column: value * (10, 1)[column], 0) as module:
        (y,) = module(x.double())
    torch.testing.assert_close(y, 10 * x.double() + model.double().layer(x.double()).detach())
