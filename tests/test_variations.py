"""Initialisers and the starts of branches: variances, identities at the start, gradients, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residua.errors import RequestError
from residua.layers import Scale, Shift, conv, sequence
from residua.models import create_model
from residua.network import Head, Network, Stage
from residua.unit import SampledAdd, Unit, draw_depth, walk
from residua.variations import INITIALIZERS, STARTS, vary

EXACT = tuple(start for start in STARTS if start != "layerscale")
NETWORKS: dict[str, dict[str, Any]] = {
    "cifar_resnet": {"depth": 8},
    "cifar_resnet with option B": {"depth": 8, "shortcut": "B"},
    "cifar_resnet of single layers": {"depth": 8, "layers": 1},
    "preact_cifar_resnet": {"depth": 14},
    "preact_cifar_resnet of bottlenecks": {"depth": 20, "branch": "bottleneck"},
    "preact_cifar_resnet of scaled shortcuts": {"depth": 8, "unit": "constant-scaling", "scaling": (0.9, 0.7)},
    "preact_cifar_resnet of gated shortcuts": {"depth": 8, "unit": "shortcut-only-gating"},
    "cifar_wide_resnet": {"depth": 10},
}


def built(network: str, **options: Any) -> Network:
    torch.manual_seed(0)
    return create_model(network.partition(" ")[0], **NETWORKS[network], **options).double()


def without_norm(start: str) -> dict[str, str]:
    return {"normalization": "none"} if start in ("skipinit", "fixup") else {}


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def units_of(network: nn.Module) -> list[Unit]:
    return [located.unit for located in walk(network)]


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {path: p.detach() for path, p in network.named_parameters() if p.ndim > 1}


# -------------------------------------------------------------------------------------------------- initialisers


def with_groups() -> Network:
    """A network whose branch has a grouped convolution and whose layers have biases."""
    branch = sequence(conv1=conv(96, 96, 3, groups=4, bias=True), act=nn.ReLU(), conv2=conv(96, 96, 1, bias=True))
    stage = Stage(Unit(branch, nn.Identity()))
    return Network(sequence(conv=conv(3, 96, 5)), [stage], Head(96, 40), feature_channels=[96], feature_reductions=[1])


def fans(module: nn.Module) -> tuple[int, int]:
    """Inputs an output, and outputs an input, of a convolution or matrix."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    positions = math.prod(module.kernel_size)
    return module.in_channels // module.groups * positions, module.out_channels // module.groups * positions


@pytest.mark.parametrize("kind", INITIALIZERS)
def test_an_initializer_has_its_distribution_on_every_layer_and_leaves_biases_alone(kind: str) -> None:
    network = with_groups()
    biases = {path: p.clone() for path, p in network.named_parameters() if p.ndim == 1}
    before = {path: weight.clone() for path, weight in weights_of(network).items()}
    torch.manual_seed(3)
    vary(network, initializer=kind)
    assert all(torch.equal(p, biases[path]) for path, p in network.named_parameters() if p.ndim == 1)
    layers = {path: module for path, module in network.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert len(layers) == 4
    for path, layer in layers.items():
        weight = layer.weight.detach().double()
        assert not torch.equal(weight, before[f"{path}.weight"].double())
        fan_in, fan_out = fans(layer)
        count = weight.numel()
        if kind == "orthogonal":
            matrix = weight.flatten(1)
            gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
            torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=1e-5)
            continue
        variance = {"he": 2 / fan_in, "lecun": 1 / fan_in, "glorot": 2 / (fan_in + fan_out), "gaussian": 1e-4}[kind]
        spread = 0.8 if kind == "glorot" else 2  # (fourth moment / variance^2) - 1: of uniform and normal numbers
        assert abs(float(weight.square().mean()) / variance - 1) < 5 * (spread / count) ** 0.5
        assert abs(float(weight.mean())) < 5 * (variance / count) ** 0.5
        if kind == "glorot":
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.95 * bound < float(weight.abs().max()) <= bound * (1 + 1e-6)
        else:
            inside = float((weight.abs() < variance**0.5).double().mean())
            assert abs(inside - 0.6827) < 5 * (0.6827 * 0.3173 / count) ** 0.5


def test_he_is_what_the_builders_do_themselves() -> None:
    torch.manual_seed(0)
    own = weights_of(create_model("resnet20"))
    torch.manual_seed(0)
    varied = weights_of(create_model("resnet20", initializer="he"))
    for path, weight in own.items():
        ratio = float(varied[path].square().mean() / weight.square().mean())
        assert abs(ratio - 1) < 5 * (4 / weight.numel()) ** 0.5


def test_normalisations_and_gains_are_left_alone_by_an_initializer() -> None:
    network = create_model("resnet20", initializer="orthogonal")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert not bool(module.bias.any())


# -------------------------------------------------------------------------------------------------------- starts


def shares(network: Network) -> list[tuple[Tensor, Tensor]]:
    """For each unit what it gives, and what its shortcut alone would give."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(unit: Unit, args: tuple[Tensor, ...], out: Tensor) -> None:
        assert unit.shortcut is not None
        found.append((out, unit.post(unit.shortcut(args[0]))))

    handles = [unit.register_forward_hook(note) for unit in units_of(network)]
    with torch.no_grad():
        network.train()(images())
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("start", EXACT)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_additive_unit_starts_as_its_shortcut(network: str, start: str) -> None:
    with_start = shares(built(network, start=start, **without_norm(start)))
    assert all(torch.equal(out, shortcut) for out, shortcut in with_start)
    usual = shares(built(network, **without_norm(start)))
    assert len(usual) == len(with_start) >= 3
    assert not any(torch.equal(out, shortcut) for out, shortcut in usual)


@pytest.mark.parametrize("network", NETWORKS)
def test_layerscale_starts_near_the_shortcut(network: str) -> None:
    """The first unit, whose input is that of the network without it: its branch is smaller by the factor."""
    scaled, usual = built(network, start="layerscale"), built(network)
    first, other = units_of(scaled)[0], units_of(usual)[0]
    x = scaled.stem(images())
    torch.testing.assert_close(first.branch(x), 0.1 * other.branch(x), rtol=1e-6, atol=1e-12)
    assert first.branch.scale.weight.shape == first.branch(x).shape[1:2]


@pytest.mark.parametrize(("depth", "value"), [(38, 0.1), (44, 1e-5), (50, 1e-5), (56, 1e-6)])
def test_layerscales_factor_falls_with_the_number_of_units(depth: int, value: float) -> None:
    network = create_model("cifar_resnet", depth=depth, start="layerscale")
    assert all(bool((unit.branch.scale.weight == torch.tensor(value)).all()) for unit in units_of(network))


@pytest.mark.parametrize("start", [*STARTS, None])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_gets_a_gradient_within_two_steps(network: str, start: str | None) -> None:
    """In three under fixup, whose classifier starts at zero as well: the first step moves it, the second the last layers."""
    model = built(network, start=start, **without_norm(start or "")).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    waiting = dict(model.named_parameters())
    steps = 0
    while waiting and steps < 5:
        steps += 1
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()
        for path, parameter in list(waiting.items()):
            assert parameter.grad is not None, path
            assert bool(parameter.grad.isfinite().all()), path
            if bool(parameter.grad.any()):
                del waiting[path]
        optimizer.step()
    expected = {None: 1, "layerscale": 1, "fixup": 3}.get(start, 2)
    assert not waiting, f"no gradient reaches {list(waiting)}"
    assert steps == expected


@pytest.mark.parametrize(
    ("start", "parts"), [("rezero", {"scale": ()}), ("skipinit", {"scale": ()}), ("layerscale", {"scale": (16,)})]
)
def test_a_factor_is_learned_at_the_end_of_each_branch(start: str, parts: dict[str, tuple[int, ...]]) -> None:
    plain, network = (built("cifar_resnet", **options, **without_norm(start)) for options in ({}, {"start": start}))
    added = {path: tuple(p.shape) for path, p in network.named_parameters()}
    for path in dict(plain.named_parameters()):
        del added[path]
    assert {path: shape for path, shape in added.items() if path.startswith("stages.0")} == {
        f"stages.0.0.branch.{name}.weight": shape for name, shape in parts.items()
    }
    assert len(added) == 3
    assert all(isinstance(list(unit.branch)[-1], Scale) for unit in units_of(network))


def test_zero_gamma_changes_nothing_but_the_last_layer_of_each_branch() -> None:
    for network, last in (("cifar_resnet", "norm2"), ("preact_cifar_resnet", "conv2"), ("cifar_wide_resnet", "conv2")):
        plain, zeroed = built(network).state_dict(), built(network, start="zero_gamma").state_dict()
        assert list(plain) == list(zeroed)
        changed = {path for path in plain if not torch.equal(plain[path], zeroed[path])}
        assert changed == {path for path in plain if path.endswith(f"branch.{last}.weight")}
        assert changed
        assert not any(bool(zeroed[path].any()) for path in changed)


def test_a_constant_of_the_branch_survives_a_learned_factor() -> None:
    name = "preact_cifar_resnet of scaled shortcuts"
    unit = units_of(built(name, start="rezero"))[0]
    assert [type(part) for part in list(unit.branch)[-2:]] == [Scale, Scale]
    unit.branch.scale.weight.data.fill_(2)
    other = units_of(built(name))[0]
    x = torch.rand(2, 16, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(unit.branch(x), 2 * other.branch(x), rtol=1e-12, atol=0)


def test_a_start_given_to_a_branch_that_has_a_layer_of_that_name_adds_a_second_one() -> None:
    network = with_groups()
    unit = network.stages[0][0]
    unit.branch.add_module("scale", Scale(0.3, learned=False))
    expected = unit.branch(torch.ones(1, 96, 2, 2))
    vary(network, start="rezero")
    unit.branch.scale.weight.data.fill_(2)
    torch.testing.assert_close(unit.branch(torch.ones(1, 96, 2, 2)), 2 * expected)


# --------------------------------------------------------------------------------------------------------- fixup


@pytest.mark.parametrize(
    ("name", "options", "units", "layers"),
    [
        ("cifar_resnet", {"depth": 20}, 9, 2),
        ("cifar_resnet", {"depth": 20, "layers": 3}, 6, 3),
        ("cifar_resnet", {"depth": 26, "layers": 4}, 6, 4),
        ("cifar_resnet", {"depth": 8, "layers": 1}, 6, 1),
        ("preact_cifar_resnet", {"depth": 20, "branch": "bottleneck"}, 6, 3),
        ("cifar_resnet", {"depth": 20, "initializer": "orthogonal"}, 9, 2),
    ],
)
def test_fixup_scales_the_layers_of_a_branch_by_the_power_of_their_number(
    name: str, options: dict[str, Any], units: int, layers: int
) -> None:
    """Rule 2: L^(-1 / (2m - 2)); rule 1: zeros in the last layer of each branch and in the classifier."""
    torch.manual_seed(4)
    plain = weights_of(create_model(name, normalization="none", **options))
    torch.manual_seed(4)
    started = create_model(name, normalization="none", start="fixup", **options)
    weights = weights_of(started)
    seen = 0
    for path, weight in plain.items():
        if path.startswith("head") or path.endswith(f"branch.conv{layers}.weight"):
            assert not bool(weights[path].any())
        elif ".branch." in path:
            torch.testing.assert_close(weights[path], weight * units ** (-1 / (2 * layers - 2)))
            seen += 1
        else:  # stem, and projections, whose path has one level more where they were a bare layer
            assert torch.equal(weights[path], weight)
    assert seen == units * (layers - 1)
    assert len(units_of(started)) == units
    assert not bool(started.head.classifier.bias.any())


def test_fixup_has_a_bias_before_each_layer_and_activation_and_a_factor_a_branch() -> None:
    """Rule 3: four scalar biases and a factor in a basic unit, one bias in the stem and one before the classifier."""
    network = built("cifar_resnet", normalization="none", start="fixup")
    assert [sum(isinstance(m, Shift) for m in unit.modules()) for unit in units_of(network)] == [4, 4, 4]
    assert [sum(isinstance(m, Scale) for m in unit.modules()) for unit in units_of(network)] == [1, 1, 1]
    assert sum(isinstance(m, Shift) for m in network.modules()) == 3 * 4 + 1 + 1
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))
    assert all(float(m.bias.detach()) == 0 for m in network.modules() if isinstance(m, Shift))
    assert all(float(m.weight.detach()) == 1 for m in network.modules() if isinstance(m, Scale))


def test_a_fixup_network_computes_what_the_paper_writes() -> None:
    """With random numbers in the place of all zeros and ones."""
    network = built("cifar_resnet with option B", normalization="none", start="fixup")
    torch.manual_seed(6)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = images()
    stem, head = network.stem, network.head
    y = torch.relu(nn.functional.conv2d(x, stem.conv.weight, padding=1) + stem.shift_act.bias)
    for unit in units_of(network):
        layers, stride = unit.branch, unit.branch.conv1.stride[0]
        f = nn.functional.conv2d(y + layers.shift_conv1.bias, layers.conv1.weight, stride=stride, padding=1)
        f = torch.relu(f + layers.shift_act1.bias)
        f = nn.functional.conv2d(f + layers.shift_conv2.bias, layers.conv2.weight, padding=1)
        f = f * layers.scale.weight + layers.shift.bias
        h = y
        if not isinstance(unit.shortcut, nn.Identity):
            h = nn.functional.conv2d(y + unit.shortcut.shift_conv.bias, unit.shortcut.conv.weight, stride=stride)
        y = torch.relu(h + f)
    expected = (y.mean((2, 3)) + head.dropout.shift.bias) @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(network(x), expected, rtol=1e-10, atol=1e-12)


def test_fixup_puts_a_bias_before_the_activation_that_shortcut_and_branch_share() -> None:
    network = built("preact_cifar_resnet", normalization="none", start="fixup")
    shared = [module for stage in network.stages for module in stage if not isinstance(module, Unit)]
    assert len(shared) == 3
    assert all(sum(isinstance(m, Shift) for m in module.modules()) == 1 for module in shared)


# --------------------------------------------------------------------------------- stochastic depth, combinations


def test_exactly_so_many_units_are_kept_each_equally_often_and_evaluation_takes_the_mean() -> None:
    network = built("preact_cifar_resnet", kept_units=2)
    merges = [module for module in network.modules() if isinstance(module, SampledAdd)]
    assert len(merges) == 6
    kept = []
    for step in range(1_000):
        draw_depth(merges, 5, step)
        kept.append([float(merge.keep) for merge in merges])
    assert all(sum(row) == 2 for row in kept)
    shares = torch.tensor(kept).mean(0)
    assert bool(((shares - 1 / 3).abs() < 4.5 * (2 / 9 / 1_000) ** 0.5).all())
    assert len({tuple(row) for row in kept}) == math.comb(6, 2)
    h, f = torch.ones(3), torch.full((3,), 6.0)
    torch.testing.assert_close(merges[0].eval()(h, f), torch.full((3,), 3.0))


def test_start_and_stochastic_depth_go_together() -> None:
    network = built("cifar_resnet", start="rezero", stochastic_depth=0.5, initializer="lecun")
    assert [unit.merge.drop for unit in units_of(network)] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert all(isinstance(unit.merge, SampledAdd) and isinstance(list(unit.branch)[-1], Scale) for unit in units_of(network))
    with torch.no_grad():
        x = images()
        assert torch.equal(network.eval()(x), built("cifar_resnet", start="rezero", initializer="lecun").eval()(x))


def test_without_options_nothing_changes() -> None:
    network = with_groups()
    before = {path: tensor.clone() for path, tensor in network.state_dict().items()}
    vary(network)
    assert all(torch.equal(before[path], tensor) for path, tensor in network.state_dict().items())


class Parallel(nn.Module):
    """Two convolutions side by side, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(4, 4, 3), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) + self.right(x)


def of_parallel_branches() -> Network:
    stage = Stage(Unit(Parallel(), nn.Identity()))
    return Network(sequence(conv=conv(3, 4, 3)), [stage], Head(4, 2), feature_channels=[4], feature_reductions=[1])


@pytest.mark.parametrize("start", ["zero_gamma", "fixup"])
def test_branches_that_are_no_chains_are_refused_where_their_last_layer_must_be_known(start: str) -> None:
    with pytest.raises(RequestError, match="branches that"):
        vary(of_parallel_branches(), start=start)


@pytest.mark.parametrize("start", ["rezero", "skipinit"])
def test_a_learned_factor_follows_any_branch(start: str) -> None:
    network = of_parallel_branches()
    vary(network, start=start)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(network.stages[0](x), x)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet20", {"initializer": "xavier"}, "'glorot'"),
        ("resnet20", {"start": "zero"}, "'zero_gamma'"),
        ("resnet20", {"start": "skipinit"}, "normalization='none'"),
        ("resnet20", {"start": "fixup"}, "normalization='none'"),
        ("preact_resnet110", {"start": "fixup", "normalization": "group"}, "normalization='none'"),
        ("plain20", {"start": "rezero"}, "no unit that adds"),
        ("plain20", {"stochastic_depth": 0.2}, "no unit that adds"),
        ("resnet20", {"stochastic_depth": -0.1}, "[0, 1)"),
        ("plain20", {"kept_units": 2}, "no unit that adds"),
        ("resnet20", {"kept_units": 10}, "1 to 9"),
        ("resnet20", {"kept_units": 4, "stochastic_depth": 0.5}, "one of them"),
        ("preact_resnet110", {"unit": "exclusive-gating", "start": "rezero"}, "no unit that adds"),
        ("preact_resnet110", {"unit": "relu-before-addition", "start": "zero_gamma"}, "rezero"),
    ],
)
def test_what_a_network_cannot_be_varied_by_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        create_model(name, **options)
    assert words in str(refused.value)


def test_recomputation_is_asked_for_by_name_and_leaves_gradients_as_they_are() -> None:
    def gradients(**options: object) -> list[Tensor]:
        torch.manual_seed(0)
        model = create_model("cifar_resnet", depth=14, **options).double().train()
        model(torch.ones(2, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    for found, expected in zip(gradients(recompute_every=2), gradients(), strict=True):
        torch.testing.assert_close(found, expected)
    for found, expected in zip(gradients(recompute_every=2, recompute_stages=1), gradients(), strict=True):
        torch.testing.assert_close(found, expected)
    assert create_model("resnet20", recompute_every=3).recompute_every == 3
    for stages in (0, 4, True, "1"):
        with pytest.raises(RequestError, match="recompute_stages"):
            create_model("resnet20", recompute_every=3, recompute_stages=stages)
    for wrong in (-1, 1.5):
        with pytest.raises(RequestError, match="recompute_every"):
            create_model("resnet20", recompute_every=wrong)
