"""Capturing: the same function, the parameters themselves, no side effects, merges of two, and what could not be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residua.errors import RequestError
from residua.functional import operation
from residua.graph import Captured, capture, module_path, shape_of
from residua.models import create_model


class Written(nn.Module):
    """Two layers and a forward pass that a test writes."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros(()))
        self.run = run

    def forward(self, *inputs: Any) -> Any:
        return self.run(self, *inputs)


def by_data(net: Written, x: Tensor) -> Tensor:
    return net.one(x) if float(x.sum()) > 0 else net.two(x)


def names(captured: Captured) -> list[str]:
    return [operation(node) for node in captured.module.graph.nodes if node.op == "call_function"]


def side_effects(captured: Captured) -> list[str]:
    targets = [node.target for node in captured.module.graph.nodes]
    return [str(t) for t in targets if isinstance(t, torch._ops.OpOverload) and t._schema.is_mutable]


def in_place(net: Written, x: Tensor) -> Tensor:
    y = net.one(x)
    y += x
    y[:, 0] = 0
    return net.norm(y.relu_()).mul_(2)


def through_a_view(net: Written, x: Tensor) -> Tensor:
    """A change through one name is seen through the other."""
    y = net.one(x)
    half = y[:, :2]
    half.add_(1)
    return y + net.two(y)


def stacked_and_read(net: Written, x: Tensor) -> Tensor:
    """A stack whose sum is taken, and which is read otherwise too."""
    both = torch.stack([x, net.one(x)])
    return both.sum(0) + both[1] + both.sum(1).mean()


FORWARDS: dict[str, Callable[..., Any]] = {
    "in place": in_place,
    "through a view": through_a_view,
    "a buffer counted up": lambda net, x: net.one(x) + net.count.add_(0),
    "several outputs": lambda net, x: {"one": net.one(x), "rest": [net.two(x), (x, 3)]},
    "many concatenated": lambda net, x: torch.cat([x, net.one(x), net.two(x), x * 2], 1),
    "stacked": lambda net, x: torch.stack([x, net.one(x), net.two(x)], -1),
    "stacked and added": lambda net, x: torch.stack([x, net.one(x), net.two(x)], 1).sum(-2),
    "stacked and averaged": lambda net, x: torch.stack([x, net.one(x)]).mean(0, keepdim=True),
    "stacked, added and read": stacked_and_read,
    "fused sums": lambda net, x: torch.addmm(net.one(x), x, x.t() @ x),
    "interpolated": lambda net, x: torch.lerp(x, net.one(x), torch.sigmoid(net.two(x))),
    "interpolated by hand": lambda net, x: x + torch.sigmoid(net.two(x)) * (net.one(x) - x),
    "without gradients inside": lambda net, x: net.one(x) + torch.no_grad()(net.two)(x),
    "data-dependent": by_data,
}


@pytest.mark.parametrize("run", FORWARDS.values(), ids=FORWARDS)
def test_the_graph_computes_what_the_model_does_without_side_effects(run: Callable[..., Any]) -> None:
    model, x = Written(run).double().eval(), torch.rand(3, 4, dtype=torch.float64)
    captured = capture(model, x)
    assert not side_effects(captured)
    for inputs in (x, torch.rand(3, 4, dtype=torch.float64)):
        torch.testing.assert_close(captured.module(inputs), model(inputs))


def test_the_graph_of_a_whole_network_computes_the_same_and_shares_its_parameters() -> None:
    model, x = create_model("resnet20", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    captured = capture(model, x)
    torch.testing.assert_close(captured.module(x), model(x), rtol=0, atol=0)
    own = dict(captured.module.named_parameters())
    assert own
    assert all(own[name] is parameter for name, parameter in model.named_parameters())
    assert captured.how == "export"
    assert not captured.unseen


def test_concatenations_of_many_are_folded_from_the_left_and_equal_folds_are_one() -> None:
    def run(net: Written, x: Tensor) -> Tensor:
        a, b = net.one(x), net.two(x)
        return torch.cat([torch.cat([x, a], 1), torch.cat([x, a, b], 1)], 1)

    captured = capture(Written(run), torch.rand(2, 4))
    merges = [node for node in captured.module.graph.nodes if operation(node) == "cat"]
    assert [shape_of(node)[1] for node in merges] == [8, 12, 20]
    assert merges[1].args[0][0] is merges[0]


def test_control_flow_on_the_data_is_traced_as_these_inputs_take_it_and_says_so() -> None:
    model = Written(by_data)
    captured = capture(model, torch.ones(2, 4))
    assert captured.how == "dispatch"
    assert "the one way that the example inputs take" in captured.unseen[0]
    assert {name for name, _ in captured.module.named_parameters()} == {"one.weight", "one.bias"}


def test_what_export_refuses_and_fx_can_trace_is_seen_whole() -> None:
    def run(net: Written, x: Tensor) -> Tensor:
        net.last = net.one(x)  # a tensor that is kept as an attribute
        return net.last + x

    captured = capture(Written(run), torch.rand(2, 4))
    assert captured.how in ("export", "fx")
    assert all("torch.fx showed" in sentence for sentence in captured.unseen)


def test_nodes_know_their_module() -> None:
    captured = capture(create_model("resnet20", num_classes=10), torch.randn(1, 3, 32, 32))
    paths = [module_path(node) for node in captured.module.graph.nodes if operation(node).startswith("conv")]
    assert len(paths) == len(set(paths)) == 19
    traced = capture(Written(by_data), torch.ones(2, 4))
    assert [module_path(node) for node in traced.module.graph.nodes if operation(node) in ("addmm", "mm", "linear")] == ["one"]


def test_an_argument_left_out_stays_left_out() -> None:
    def run(net: Written, x: Tensor, mask: Tensor | None, y: Tensor) -> Tensor:
        return net.one(x) + y if mask is None else x * mask

    x, y = torch.rand(2, 4), torch.rand(2, 4)
    model = Written(run).eval()
    captured = capture(model, (x, None, y))
    torch.testing.assert_close(captured.module(x, None, y), model(x, None, y))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_modules_are_named(kind: type[nn.RNNBase]) -> None:
    model = nn.Sequential(kind(4, 4, batch_first=True))
    assert capture(model, torch.rand(2, 3, 4)).recurrent == {"0"}


def test_capturing_leaves_the_model_the_generator_and_the_screen_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    model = Written(by_data).train()
    model.norm.eval()
    inputs, state = torch.ones(2, 4), torch.get_rng_state()
    capture(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in (model, model.one, model.norm)] == [True, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert capfd.readouterr() == ("", "")


def test_a_mistake_is_told_before_the_work() -> None:
    with pytest.raises(RequestError, match=r"torch\.nn\.Module, not function"):
        capture(lambda x: x, torch.rand(2))
    with pytest.raises(RequestError, match="Example inputs are needed"):
        capture(nn.Linear(4, 4), ())
    with pytest.raises(RequestError, match=r"Linear does not run on the example inputs, of shape \(2, 3\).*Give inputs"):
        capture(nn.Linear(4, 4), torch.rand(2, 3))
