"""Features, head replacement, recomputation of activations, and the order of depth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from residua import branches
from residua.layers import activation, sequence
from residua.models import create_model
from residua.network import Head, Network, Stage, imagenet_stem, small_stem
from residua.unit import SampledAdd, Unit, draw_depth, walk


def unit(width: int) -> Unit:
    """A unit with all that recomputation could disturb: batch statistics, dropout, stochastic depth."""
    branch = sequence(first=branches.basic(width, width, 1), drop=nn.Dropout(0.3))
    return Unit(branch, nn.Identity(), SampledAdd(0.4), activation())


def toy() -> Network:
    torch.manual_seed(0)
    stages = [Stage(*(unit(4) for _ in range(5))), Stage(*(unit(4) for _ in range(2)))]
    return Network(small_stem(3, 4), stages, Head(4, 3, 0.2), feature_channels=(4, 4), feature_reductions=(1, 1)).double()


def one_step(model: Network, x: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor], dict[str, int]]:
    """Output, gradients, buffers after a training step, and how often each unit's branch ran."""
    runs: dict[str, int] = {}
    handles = [
        located.unit.branch.register_forward_hook(
            lambda _m, _i, _o, path=located.path: runs.update({path: runs.get(path, 0) + 1})
        )
        for located in walk(model)
    ]
    torch.manual_seed(1)
    draw_depth([module for module in model.modules() if isinstance(module, SampledAdd)], 3)
    y = model.train()(x)
    y.square().sum().backward()
    for handle in handles:
        handle.remove()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    return y.detach(), gradients, {name: buffer.clone() for name, buffer in model.named_buffers()}, runs


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_recomputation_changes_neither_gradients_nor_statistics_nor_dropout(every: int) -> None:
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    plain, recomputed = toy(), toy()
    recomputed.recompute_every = every
    y, gradients, buffers, runs = one_step(plain, x)
    y2, gradients2, buffers2, runs2 = one_step(recomputed, x)
    assert torch.equal(y, y2)
    assert len(gradients) == len(list(plain.parameters()))
    for expected, found in zip(gradients, gradients2):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(buffers[name], buffers2[name]) for name in buffers)
    counters = [buffer for name, buffer in buffers2.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(int(counter) == 1 for counter in counters)
    assert set(runs.values()) == {1}
    assert set(runs2.values()) == {2}, "each branch runs again in the backward pass"


def test_nothing_is_recomputed_in_evaluation_or_without_gradients() -> None:
    model = toy()
    model.recompute_every = 1
    calls: list[int] = []
    model.stages[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    assert len(calls) == 2, "whole stages are called, not chunks of units"


def test_recomputation_keeps_less_for_the_backward_pass() -> None:
    def kept(every: int) -> int:
        model, sizes = toy(), {}
        model.recompute_every = every

        def note(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = model.train()(torch.randn(8, 3, 16, 16, dtype=torch.float64))
        assert y.requires_grad
        return sum(sizes.values())

    assert kept(5) < 0.6 * kept(0)


def test_features_are_one_map_a_stage_and_the_head_takes_the_last() -> None:
    model = create_model("cifar_resnet", depth=8).eval()
    x = torch.randn(2, 3, 16, 16)
    maps = model.features(x)
    step = model.stem(x)
    for stage, found in zip(model.stages, maps):
        step = stage(step)
        assert torch.equal(found, step)
    pooled = step.mean((2, 3))
    expected = pooled @ model.head.classifier.weight.T + model.head.classifier.bias
    torch.testing.assert_close(model(x), expected)


def test_a_replaced_head_is_fresh_and_all_else_stays() -> None:
    model = create_model("resnet20", dropout=0.1).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.replace_head(1000)
    after = model.state_dict()
    for name, tensor in before.items():
        if "classifier" not in name:
            assert torch.equal(after[name], tensor)
    classifier = model.head.classifier
    assert classifier.weight.dtype == torch.float64
    assert classifier.weight.shape == (1000, 64)
    assert not bool(classifier.bias.any())
    assert float(classifier.weight.detach().std()) == pytest.approx((2 / 64) ** 0.5, rel=4 / (2 * 64_000) ** 0.5)
    assert isinstance(model.head.dropout, nn.Dropout)
    assert model.eval()(torch.zeros(1, 3, 8, 8, dtype=torch.float64)).shape == (1, 1000)


@pytest.mark.parametrize("build", [lambda: create_model("resnet20"), lambda: create_model("resnet18"), toy])
def test_the_order_of_depth_has_every_parameter_once_from_stem_to_head(build: Callable[[], Network]) -> None:
    model = build()
    groups = list(model.depth_order())
    listed = [id(parameter) for group in groups for parameter in group]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(parameter) for parameter in model.parameters()}
    assert len(groups) == 2 + len(list(walk(model)))
    assert {id(p) for p in groups[0]} == {id(p) for p in model.stem.parameters()}
    assert {id(p) for p in groups[-1]} == {id(p) for p in model.head.parameters()}
    for located, group in zip(walk(model), groups[1:-1]):
        assert {id(p) for p in group} == {id(p) for p in located.unit.parameters()}


@pytest.mark.parametrize("side", [1, 2, 7, 8, 33])
def test_the_stems_reduce_by_one_and_by_four_rounded_up(side: int) -> None:
    x = torch.zeros(2, 2, side, side)
    assert small_stem(2, 5).eval()(x).shape == (2, 5, side, side)
    assert imagenet_stem(2, 5).eval()(x).shape == (2, 5, -(-side // 4), -(-side // 4))
