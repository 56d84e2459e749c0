"""Highway networks: their layer against one written out, the counts of the authors' release, gates that start closed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residua.cost import multiply_adds, num_parameters
from residua.data import open_data
from residua.errors import RequestError
from residua.models import CATALOG, create_model
from residua.models.highway import gate_activity
from residua.network import Network
from residua.unit import BranchOnly, Gate, Unit, walk

DEPTHS = (10, 20, 50, 100)


def gates(network: nn.Module) -> list[Gate]:
    return [located.unit.merge for located in walk(network) if isinstance(located.unit.merge, Gate)]


def outputs_and_gradients(function: Any, weights: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_(True)
    y = function(x)
    return y.detach(), *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum(), [x, *weights])


# ------------------------------------------------------------------------------------------------- against layers written out


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_fully_connected_net_computes_the_papers_equation(activation: str) -> None:
    """y = H(x) T(x) + x (1 - T(x)), layer by layer, with the same weights: outputs and all gradients."""
    network = create_model("highway", depth=4, width=7, image_size=5, num_classes=3, activation=activation).double()
    H = torch.relu if activation == "relu" else torch.tanh
    state = dict(network.named_parameters())

    def written(images: Tensor) -> Tensor:
        x = H(images.flatten(1) @ state["stem.layer.weight"].T + state["stem.layer.bias"])
        for index in range(3):
            unit = f"stages.0.{index}"
            T = 1 / (1 + torch.exp(-(x @ state[f"{unit}.merge.transform.weight"].T + state[f"{unit}.merge.transform.bias"])))
            x = H(x @ state[f"{unit}.branch.layer.weight"].T + state[f"{unit}.branch.layer.bias"]) * T + x * (1 - T)
        return x @ state["head.classifier.weight"].T + state["head.classifier.bias"]

    x = torch.randn(4, 1, 5, 5, dtype=torch.float64)
    for found, expected in zip(
        outputs_and_gradients(network, list(state.values()), x), outputs_and_gradients(written, list(state.values()), x)
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_convolutional_net_on_mnist_is_the_authors_definition_written_out() -> None:
    network = create_model("highway_conv_10_16", width=4).double().eval()
    state = dict(network.named_parameters())
    F = nn.functional

    def written(x: Tensor) -> Tensor:
        x = torch.relu(F.conv2d(x, state["stem.layer.weight"], state["stem.layer.bias"]))
        for stage, units in enumerate((2, 3, 3)):
            for index in range(units):
                unit = f"stages.{stage}.{index}"
                T, h = (
                    F.conv2d(x, state[f"{unit}.{layer}.weight"], state[f"{unit}.{layer}.bias"], padding=1)
                    for layer in ("merge.transform", "branch.layer")
                )
                x = torch.relu(h) * torch.sigmoid(T) + x * (1 - torch.sigmoid(T))
            x = F.max_pool2d(x, 3 if stage < 2 else 2, 2, ceil_mode=True)
        assert x.shape[1:] == (4, 3, 3)
        return x.flatten(1) @ state["head.classifier.weight"].T + state["head.classifier.bias"]

    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    for found, expected in zip(
        outputs_and_gradients(network, list(state.values()), x), outputs_and_gradients(written, list(state.values()), x)
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [10, 11, 12, 13, 17, 28, 32])
def test_the_net_on_mnist_can_be_built_for_other_sizes(size: int) -> None:
    network = create_model("mnist_highway", width=2, image_size=size).eval()
    assert network(torch.zeros(1, 1, size, size)).shape == (1, 10)


# ------------------------------------------------------------------------------------------------------------------ facts


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_fully_connected_nets_have_the_sizes_of_their_description(depth: int) -> None:
    """Section 3.1: one plain layer on 784 pixels, depth - 1 layers of width 50 (two matrices each) or 71 (one), and softmax."""
    highway, plain = CATALOG.get(f"highway_{depth}"), CATALOG.get(f"highway_plain_{depth}")
    assert highway.parameters == 784 * 50 + 50 + (depth - 1) * 2 * (50 * 50 + 50) + 50 * 10 + 10
    assert highway.multiply_adds == 784 * 50 + (depth - 1) * 2 * 50 * 50 + 50 * 10
    assert plain.parameters == 784 * 71 + 71 + (depth - 1) * (71 * 71 + 71) + 71 * 10 + 10
    assert plain.multiply_adds == 784 * 71 + (depth - 1) * 71 * 71 + 71 * 10
    assert highway.depth == plain.depth == depth == 1 + len(list(walk(create_model(f"highway_{depth}"))))


def test_a_plain_layer_of_width_71_is_as_large_as_a_highway_layer_of_width_50() -> None:
    sizes = [num_parameters(next(walk(create_model(name))).unit) for name in ("highway_10", "highway_plain_10")]
    assert sizes == [5_100, 5_112]


def test_the_convolutional_nets_have_the_parameters_that_the_authors_logs_and_tables_print() -> None:
    """151,690 and 2,256,838 are summed in the logs of the release; 39k, 151k and 2.3M are printed in tables 1 and 2."""
    small, large, deep = (CATALOG.get(f"highway_conv_{name}").parameters for name in ("10_16", "10_32", "19"))
    assert (large, deep) == (151_690, 2_256_838)
    assert small == 5 * 5 * 16 + 16 + 8 * 2 * (9 * 16 * 16 + 16) + 9 * 16 * 10 + 10
    assert round(small, -3) == 39_000
    assert large // 1_000 == 151
    assert round(deep / 1e6, 1) == 2.3


def test_the_multiply_adds_of_the_convolutional_nets_are_products_of_dimensions() -> None:
    for width in (16, 32):
        units = (24 * 24 * 2 + 12 * 12 * 3 + 6 * 6 * 3) * 2 * 9 * width * width
        assert CATALOG.get(f"highway_conv_10_{width}").multiply_adds == 24 * 24 * 25 * width + units + 9 * width * 10
    layers = [(32, 3, 9, 3 * 32), (32, 4, 18, 32 * 32), (16, 1, 9, 32 * 80), (16, 5, 18, 80 * 80), (8, 1, 9, 80 * 128)]
    layers += [(8, 5, 18, 128 * 128), (8, 1, 1, 128 * 100), (1, 1, 1, 100 * 10)]
    layers[0] = (32, 1, 9, 3 * 32)
    expected = sum(side * side * count * kernel * maps for side, count, kernel, maps in layers)
    assert CATALOG.get("highway_conv_19").multiply_adds == expected


def test_the_eleven_layer_net_that_the_sources_leave_open_is_not_in_the_catalogue() -> None:
    """The docstring states what the nearest form has; the paper prints about 236k."""
    with torch.device("meta"):
        near = create_model("cifar_highway", widths=(16, 32, 64), units=(2, 2, 2))
    assert num_parameters(near) == 225_078
    assert multiply_adds(near, (3, 32, 32)) < 100e6
    assert not [name for name in CATALOG.names() if name.startswith("highway_conv_11")]


# --------------------------------------------------------------------------------------------------------- start and gates


@pytest.mark.parametrize("name", ["highway_50", "highway_conv_10_32", "highway_conv_19"])
@pytest.mark.parametrize("bias", [-1.0, -4.0])
def test_every_gate_starts_with_the_given_bias_and_all_other_biases_at_zero(name: str, bias: float) -> None:
    network = create_model(name, gate_bias=bias)
    assert len(gates(network)) == {"highway_50": 49, "highway_conv_10_32": 8, "highway_conv_19": 14}[name]
    for path, parameter in network.named_parameters():
        if path.endswith("bias"):
            assert bool((parameter == (bias if ".merge.transform." in path else 0)).all()), path


@pytest.mark.parametrize(
    ("name", "options", "std"),
    [
        ("highway_10", {}, lambda fan_in: math.sqrt(2 / fan_in)),
        ("highway_10", {"activation": "tanh"}, lambda fan_in: math.sqrt(1 / fan_in)),
        ("highway_conv_19", {}, lambda fan_in: math.sqrt(1 / fan_in)),
    ],
)
def test_the_weights_of_layers_and_gates_start_as_stated(name: str, options: dict[str, Any], std: Any) -> None:
    torch.manual_seed(0)
    network = create_model(name, **options)
    for located in walk(network):
        for layer in (located.unit.branch.layer, located.unit.merge.transform):
            weights = layer.weight.detach().double()
            assert float(weights.std()) == pytest.approx(std(weights[0].numel()), rel=5 / math.sqrt(2 * weights.numel()))


@pytest.mark.parametrize(("bias", "activity"), [(-1, 0.2689), (-2, 0.1192), (-3, 0.0474), (-4, 0.0180)])
def test_gates_without_weights_are_open_by_the_sigmoid_of_their_bias(bias: int, activity: float) -> None:
    """The figures are those of the paper's section on the bias."""
    network = create_model("highway", depth=5, width=6, image_size=4, gate_bias=float(bias))
    for gate in gates(network):
        nn.init.zeros_(gate.transform.weight)
    found = gate_activity(network, torch.randn(8, 1, 4, 4))
    assert list(found) == [f"stages.0.{index}" for index in range(4)]
    for mean in found.values():
        torch.testing.assert_close(mean, torch.full((6,), 1 / (1 + math.exp(-bias))))
        assert float(mean[0]) == pytest.approx(activity, abs=1e-4)


def test_the_gate_activity_is_the_mean_over_samples_and_positions_and_leaves_no_trace() -> None:
    network = create_model("cifar_highway", widths=(4, 5, 6), units=(1, 1, 1)).double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    found = gate_activity(network, x)
    assert list(found) == ["stages.0.0", "stages.1.1", "stages.2.1"]
    first = next(walk(network)).unit
    inside = torch.sigmoid(first.merge.transform(network.stem(x)))
    torch.testing.assert_close(found["stages.0.0"], inside.mean((0, 2, 3)).detach())
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(mean.requires_grad for mean in found.values())
    together = (2 * gate_activity(network, x[:2])["stages.2.1"] + gate_activity(network, x[2:])["stages.2.1"]) / 3
    torch.testing.assert_close(together, found["stages.2.1"])


def test_a_plain_net_has_no_gates_and_the_gates_are_the_merges_parameters() -> None:
    highway, plain = (create_model("highway", depth=4, width=5, image_size=4, plain=plain) for plain in (False, True))
    assert gate_activity(plain, torch.zeros(1, 1, 4, 4)) == {}
    assert all(isinstance(located.unit.merge, BranchOnly) for located in walk(plain))
    own = {path: parameter.shape for path, parameter in highway.named_parameters() if ".merge." not in path}
    assert own == {path: parameter.shape for path, parameter in plain.named_parameters()}


# --------------------------------------------------------------------------------------------------------------- training


def loss_after(network: Network, steps: int, lr: float) -> float:
    """Mean cross-entropy of the last ten of `steps` updates on batches of 128 digits."""
    samples = open_data("digits").splits["train"]
    images, labels = samples.images.float(), torch.as_tensor(samples.labels)
    images = (images - images.mean()) / images.std()
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    losses = []
    for step in range(steps):
        batch = torch.arange(128 * step, 128 * (step + 1)) % len(labels)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-10:]) / 10


def test_fifty_highway_layers_start_to_learn_where_fifty_plain_ones_do_not() -> None:
    """The claim of both papers, small, on the embedded digits; the plain net also has a gentler rate to choose."""
    torch.manual_seed(0)
    assert loss_after(create_model("highway_50", image_size=8), 60, 0.1) < 0.4
    assert min(loss_after(create_model("highway_plain_50", image_size=8), 60, lr) for lr in (0.1, 0.02)) > 1.2


# ---------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("highway", {"depth": 1}, "depth .* at least 2, not 1"),
        ("highway_10", {"width": 0}, "width .* at least 1"),
        ("highway_10", {"activation": "gelu"}, "'gelu' is none of 'relu', 'tanh'"),
        ("highway_conv_10_16", {"image_size": 9}, "at least 10 pixels"),
        ("highway_conv_10_16", {"dropout": [0.5]}, "four probabilities"),
        ("highway_conv_19", {"dropout": 0.5}, "four probabilities"),
        ("highway_conv_19", {"widths": [16, 32]}, "three numbers"),
        ("highway_10", {"start": "rezero"}, "no unit that adds"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        create_model(name, **options)


def test_dropout_can_be_taken_out() -> None:
    network = create_model("highway_conv_19", dropout=[0, 0, 0, 0])
    assert not any(isinstance(module, nn.Dropout) for module in network.modules())
    rates = [module.p for module in create_model("highway_conv_10_32").modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.2, 0.3, 0.4, 0.5]


def test_a_unit_is_the_gate_over_the_identity() -> None:
    unit = next(walk(create_model("highway_10"))).unit
    assert isinstance(unit, Unit)
    assert isinstance(unit.shortcut, nn.Identity)
    assert isinstance(unit.merge, Gate)
    assert isinstance(unit.post, nn.Identity)
