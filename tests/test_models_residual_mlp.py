"""Fully connected residual networks against equations 1 and 2 of he2015 written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import captured
from torch import Tensor, nn

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.models import create_model
from residua.network import Network
from residua.unit import switched_off, walk


def small(**options: Any) -> Network:
    """Widths 5, 5 and 8."""
    default = {"widths": (5, 8), "units": (2, 1), "image_size": 3, "num_classes": 4}
    return create_model("residual_mlp", **{**default, **options}).double()


X = torch.randn(6, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def gradients(function: Any, weights: list[Tensor]) -> tuple[Tensor, ...]:
    x = X.clone().requires_grad_(True)
    y = function(x)
    return y.detach(), *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum(), [x, *weights])


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("shortcut", ["A", "B", "C", "plain"])
def test_each_unit_computes_the_papers_equations(layers: int, shortcut: str) -> None:
    """s(F + x), s(F + W_s x) with a rectangular or square W_s, or s(F), with F = W_n s(... s(W_1 x)): outputs and gradients."""
    network = small(layers=layers, **({"plain": True} if shortcut == "plain" else {"shortcut": shortcut}))
    state = dict(network.named_parameters())

    def affine(path: str, x: Tensor) -> Tensor:
        return x @ state[f"{path}.weight"].T + state[f"{path}.bias"]

    def written(images: Tensor) -> Tensor:
        x = torch.relu(affine("stem.layer", images.flatten(1)))
        for unit, width in (("stages.0.0", 5), ("stages.0.1", 5), ("stages.1.0", 8)):
            f = x
            for layer in range(1, layers + 1):
                f = affine(f"{unit}.branch.layer{layer}", torch.relu(f) if layer > 1 else f)
            if shortcut == "C" or (shortcut == "B" and width != x.shape[1]):
                f = f + x @ state[f"{unit}.shortcut.weight"].T
            elif shortcut != "plain":
                f = f + torch.cat((x, torch.zeros(len(x), width - x.shape[1], dtype=x.dtype)), 1)
            x = torch.relu(f)
        return affine("head.classifier", x)

    with_matrix = {"B": ["1.0"], "C": ["0.0", "0.1", "1.0"]}.get(shortcut, [])
    assert sorted(path for path in state if ".shortcut." in path) == [f"stages.{unit}.shortcut.weight" for unit in with_matrix]
    for found, expected in zip(gradients(network, list(state.values())), gradients(written, list(state.values()))):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_costs_are_products_of_dimensions(layers: int) -> None:
    """No unit of n layers costs more than its matrices; the identity and the zero padding cost nothing."""
    inside = 3 * 3 * 3 * 5 + 2 * layers * 5 * 5 + 5 * 8 + (layers - 1) * 8 * 8 + 8 * 4
    biases = 5 + 2 * layers * 5 + layers * 8 + 4
    square, rectangular = 2 * 5 * 5, 5 * 8
    for options, extra in (
        ({"plain": True}, 0),
        ({"shortcut": "A"}, 0),
        ({"shortcut": "B"}, rectangular),
        ({"shortcut": "C"}, square + rectangular),
    ):
        network = small(layers=layers, **options).float()
        assert num_parameters(network) == inside + biases + extra
        assert multiply_adds(network, (3, 3, 3)) == inside + extra


def test_features_are_one_vector_a_stage_and_units_of_kept_width_are_removable() -> None:
    network = small()
    assert [found.shape for found in network.features(X)] == [(6, 5), (6, 8)]
    assert [located.removable for located in walk(network)] == [True, True, False]
    assert not any(located.removable for located in walk(small(shortcut="C")))
    assert network.feature_reductions == (3, 3)


def test_units_that_are_off_leave_the_shortcuts() -> None:
    network = small()
    with torch.no_grad(), switched_off(*(located.unit for located in walk(network))):
        x = network.stem(X)
        expected = network.head(torch.relu(x @ network.stages[1][0].shortcut.weight.T))
        torch.testing.assert_close(network(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalization", ["none", "batch", "group"])
def test_every_layer_is_normalized_or_none_is_and_the_network_learns(normalization: str) -> None:
    torch.manual_seed(0)
    network = small(normalization=normalization)
    norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.GroupNorm))]
    assert len(norms) == (0 if normalization == "none" else 1 + 3 * 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(X), torch.arange(6) % 4)
        loss.backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_recomputation_and_the_ways_to_start_a_branch_work_on_vectors_too() -> None:
    torch.manual_seed(0)
    kept = small(normalization="batch")
    again = small(normalization="batch")
    again.load_state_dict(kept.state_dict())
    again.recompute_every = 1
    for found, expected in zip(gradients(again, list(again.parameters())), gradients(kept, list(kept.parameters()))):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for options in ({"start": "rezero"}, {"start": "fixup"}, {"start": "zero_gamma"}, {"initializer": "orthogonal"}):
        assert small(**options)(X).shape == (6, 4)
    zero = small(start="rezero")
    x = zero.stem(X)
    assert torch.equal(zero.stages[0](x), x), "branches of zero between non-negative signals"


def test_it_is_captured_in_one_graph() -> None:
    network = small(shortcut="C", normalization="batch")
    _, graphs = captured(network, X)
    assert graphs == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 0}, "layers .* at least 1"),
        ({"widths": []}, "widths .* at least 1"),
        ({"units": [1]}, "differ in number"),
        ({"shortcut": "D"}, "'D' is none of 'A', 'B', 'C'"),
        ({"normalization": "layer"}, "'layer' is none of"),
        ({"widths": [8, 5], "shortcut": "A"}, "must not fall"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        small(**options)
