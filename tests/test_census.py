"""The census on modules made to mislead it: the right count, or an unknown with its reason; and what it leaves as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hostile_modules import RIGHT, UNKNOWN, Net, in_a_loop, one_relu
from torch import Tensor, nn

from residua.census import Census, census, wired
from residua.graph import capture


def taken(model: nn.Module | Callable[[Net, Tensor], Any], *inputs: Tensor) -> Census:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model if isinstance(model, nn.Module) else Net(model)
        return census(capture(model, inputs or (torch.randn(2, 4, 8, 8),)))


def counts(found: Census) -> dict[str, int]:
    return {f"{kind}, {way}": number for (kind, way), number in found.by_kind.items()}


@pytest.mark.parametrize(("run", "expected"), [pytest.param(run, expected, id=name) for name, run, expected in RIGHT])
def test_the_count_is_right(run: Callable[[Net, Tensor], Any], expected: dict[str, int]) -> None:
    found = taken(run)
    assert counts(found) == expected
    assert not found.unknown
    assert all(skip.proven and skip.span for skip in found.skips)


@pytest.mark.parametrize(("run", "reason"), [pytest.param(run, reason, id=name) for name, run, reason in UNKNOWN])
def test_what_cannot_be_decided_or_proven_is_unknown_with_its_reason(run: Callable[[Net, Tensor], Any], reason: str) -> None:
    found = taken(run)
    assert not found.skips
    assert len(found.unknown) == 1
    assert reason in found.unknown[0].reason


def test_a_branch_that_depends_on_the_data_is_taken_as_the_inputs_take_it() -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return x + net.a(x) if x.sum() > 0 else net.b(x)

    ones = torch.ones(1, 4, 8, 8)
    positive, negative = taken(run, ones), taken(run, -ones)
    assert (counts(positive), counts(negative)) == ({"add, identity": 1}, {})
    assert positive.captured.how == "dispatch"
    assert "depends on the data" in positive.captured.unseen[0]


def test_hooks_are_part_of_what_a_module_does() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model[1].register_forward_hook(lambda _module, inputs, output: output + inputs[0])
    assert counts(taken(model)) == {"add, identity": 1}


@pytest.mark.parametrize("normalized", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_layer_whose_weights_are_computed_is_a_weight_layer(normalized: Callable[[nn.Module], nn.Module]) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = normalized(nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(x)

    assert counts(taken(Around())) == {"add, identity": 1}


def test_embeddings_of_words_and_positions_are_no_skip() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.layer = nn.Embedding(10, 8), nn.Embedding(6, 8), nn.Linear(8, 8)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.words(tokens) + self.places(torch.arange(6))
            return x + self.layer(x)

    found = taken(Words(), torch.randint(10, (2, 6)))
    assert counts(found) == {"add, identity": 1}
    assert not found.unknown


def test_nothing_is_left_changed() -> None:
    model = Net(one_relu).train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs, state = torch.randn(2, 4, 8, 8), torch.get_rng_state()
    assert census(capture(model, inputs)).skips
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert (model.training, model.relu.training, model.norm.training) == (True, True, False)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_the_proof_nothing_is_called_proven() -> None:
    found = census(capture(Net(in_a_loop), torch.randn(1, 4, 8, 8)), proof=False)
    assert [skip.proven for skip in found.skips] == [False] * 3


def test_factors_of_the_wired_module_switch_ways_off() -> None:
    net = Net(in_a_loop).eval()
    x = torch.randn(2, 4, 8, 8)
    module = wired(census(capture(net, x)))
    torch.testing.assert_close(module(x), net(x))
    with torch.no_grad():
        module.factors[1] = torch.tensor([1.0, 0.0])
        torch.testing.assert_close(module(x), (x + net.a(x)) + net.c(x + net.a(x)))
        module.factors[1] = torch.tensor([0.0, 1.0])
        y = net.b(x + net.a(x))
        torch.testing.assert_close(module(x), y + net.c(y))


def test_a_skip_says_where_it_is_and_what_it_spans() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.inner = Net(lambda net, x: x + net.b(net.relu(net.a(x))))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return y + self.last(self.inner(y))

    inner, outer = taken(Outer()).skips
    assert (inner.source, inner.merge, inner.span, inner.level) == ("first", "inner", 2, 1)
    assert (outer.source, outer.span, outer.level) == ("first", 3, 0)
