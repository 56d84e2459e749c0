"""The units of he2016 against closed forms, plainly written twins, timm's pre-activation networks, and the paper's counts."""

from __future__ import annotations

import copy
import math
import weakref
from contextlib import nullcontext
from itertools import takewhile
from typing import Any

import pytest
import torch
from graphs import captured
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from residua.cost import multiply_adds, num_parameters
from residua.errors import RequestError
from residua.layers import Scale
from residua.models import CATALOG, create_model, list_models
from residua.models.identity_mappings import SHORTCUTS
from residua.network import Network
from residua.shortcuts import Dropped, Gated, ZeroPad
from residua.unit import Gate, Unit, walk

ORDERS = ("original", "bn-after-addition", "relu-before-addition", "relu-only-preactivation", "full-preactivation")
PREACTIVATIONS = ("relu-only-preactivation", "full-preactivation")
ALL_UNITS = (*ORDERS, *SHORTCUTS)
BRANCHES = {"basic": 14, "bottleneck": 20}
PUBLISHED = [n for n in list_models() if CATALOG.modules[n].endswith(".identity_mappings")]


def small(unit: str, branch: str = "basic", **options: Any) -> Network:
    """Two units a stage, in float64."""
    torch.manual_seed(0)
    return create_model("preact_cifar_resnet", depth=BRANCHES[branch], branch=branch, unit=unit, **options).double()


def images(count: int = 4, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def units_of(network: nn.Module) -> list[Unit]:
    return [located.unit for located in walk(network)]


def on_meta(name: str, **options: Any) -> Network:
    with torch.device("meta"):
        return create_model(name, **options)


# ------------------------------------------------------------------------------------------------------ facts


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_declared_facts_follow_from_products_of_dimensions(name: str) -> None:
    entry = CATALOG.get(name)
    parameters, cost, _ = closed_form(name)
    assert (entry.parameters, entry.multiply_adds) == (parameters, cost)


def closed_form(name: str, classes: int | None = None) -> tuple[int, int, int]:
    """(parameters, multiply-adds, parameters of convolutions and classifier only), from sections 3 to 5 and the appendix."""
    preact, one_layer = name.startswith("preact"), name.endswith("1layer")
    depth = int(name.removeprefix("preact_").removeprefix("resnet").removesuffix("_1layer"))
    stages = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
    imagenet = depth in stages
    bottleneck = depth != 110
    if imagenet:
        counts, width, side = stages[depth], 64, 56
        weights = 7 * 7 * 3 * width
        cost = 112 * 112 * weights
    else:
        n = (depth - 2) // (9 if bottleneck else 3 if one_layer else 6)
        counts, width, side = (n, n, n), 16, 32
        weights = 3 * 3 * 3 * width
        cost = 32 * 32 * weights
    channels, scales = width, 2 * width
    for stage, count in enumerate(counts):
        inner = width * 2**stage
        for place in range(count):
            before = side
            if stage and not place:
                side //= 2
            if bottleneck:  # the stride: on the 3x3 for ImageNet, on the first 1x1 for CIFAR
                layers = [
                    (1, channels, inner, before if imagenet else side),
                    (3, inner, inner, side),
                    (1, inner, 4 * inner, side),
                ]
            else:
                layers = [(3, channels, inner, side)] + [(3, inner, inner, side)] * (not one_layer)
            outer = layers[-1][2]
            projected = bottleneck and outer != channels
            if preact:  # one normalisation before each convolution; the stem's is that of the first
                scales += sum(2 * fan for _, fan, _, _ in layers) - 2 * channels * (not stage and not place)
            else:
                scales += sum(2 * out for _, _, out, _ in layers) + 2 * outer * projected
            if projected:
                layers.append((1, channels, outer, side))
            weights += sum(kernel * kernel * fan * out for kernel, fan, out, _ in layers)
            cost += sum(positions**2 * kernel * kernel * fan * out for kernel, fan, out, positions in layers)
            channels = outer
    scales += 2 * channels * preact
    classes = classes or (1000 if imagenet else 10)
    plain = weights + channels * classes + classes
    return plain + scales, cost + channels * classes, plain


@pytest.mark.parametrize(
    ("name", "classes", "with_norm", "without", "printed"),
    [
        ("preact_resnet164", 10, 1_703_258, 1_679_034, 1.7),
        ("preact_resnet1001", 10, 10_327_706, 10_178_490, 10.2),
        ("preact_resnet164", 100, 1_726_388, None, 1.7),
        ("preact_resnet1001", 100, 10_350_836, None, 10.2),
    ],
)
def test_the_parameters_are_those_of_table_4(
    name: str, classes: int, with_norm: int, without: int | None, printed: float
) -> None:
    """The printed 10.2 million of ResNet-1001 leave out the normalisations."""
    model = on_meta(name, num_classes=classes)
    weights = sum(p.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) for p in m.parameters())
    assert (num_parameters(model), weights) == (closed_form(name, classes)[0], closed_form(name, classes)[2])
    assert num_parameters(model) == with_norm
    assert without in (None, weights)
    assert round(weights / 1e6, 1) == printed


def test_resnet_200_has_64_7_million_parameters_in_66_units() -> None:
    model = on_meta("preact_resnet200")
    assert round(num_parameters(model) / 1e6, 1) == 64.7
    assert [sum(isinstance(module, Unit) for module in stage) for stage in model.stages] == [3, 24, 36, 3]


@pytest.mark.parametrize("name", PUBLISHED)
def test_depth_counts_the_weight_layers_outside_shortcuts(name: str) -> None:
    weighted = [path for path, module in on_meta(name).named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sum("shortcut" not in path for path in weighted) == CATALOG.get(name).depth


def test_skipping_one_layer_instead_of_two_changes_neither_depth_nor_size() -> None:
    one, two = on_meta("resnet110_1layer"), on_meta("resnet110")
    assert (len(units_of(one)), len(units_of(two))) == (108, 54)
    assert num_parameters(one) == num_parameters(two)
    assert multiply_adds(one, (3, 32, 32)) == multiply_adds(two, (3, 32, 32))


# ------------------------------------------------------------------------------------------ which unit is which


def kinds(module: nn.Module) -> str:
    """The layers of a chain in order: conv, norm, act."""
    names = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.ReLU: "act"}
    return " ".join(names[type(leaf)] for leaf in module.modules() if type(leaf) in names)


@pytest.mark.parametrize(
    ("unit", "inside", "post", "before", "projection"),
    [
        ("original", "conv norm act conv norm", "act", "", "conv norm"),
        ("bn-after-addition", "conv norm act conv", "norm act", "", "conv"),
        ("relu-before-addition", "conv norm act conv norm act", "", "", "conv norm"),
        ("relu-only-preactivation", "act conv norm act conv norm", "", "act", "conv norm"),
        ("full-preactivation", "norm act conv norm act conv", "", "norm act", "conv"),
    ],
)
def test_norm_and_activation_stand_where_figure_4_and_the_appendix_have_them(
    unit: str, inside: str, post: str, before: str, projection: str
) -> None:
    network = small(unit, shortcut="B")
    assert kinds(network.stem) == "conv norm act"
    for index, stage in enumerate(network.stages):
        modules = list(stage)
        if before and index:
            assert kinds(modules.pop(0)) == before
        if before and index == 2:
            assert kinds(modules.pop()) == before
        first, second = modules
        assert kinds(first.branch) == inside.removeprefix(before).strip(), "its activation stands before the unit"
        assert kinds(second.branch) == inside
        assert kinds(first.post) == kinds(second.post) == post
        assert isinstance(second.shortcut, nn.Identity)
        assert kinds(first.shortcut) == (projection if index else "")
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_original_unit_is_that_of_the_resnets(layers: int) -> None:
    found = same_seed("preact_cifar_resnet", depth=3 * layers * 2 + 2, layers=layers, unit="original")
    expected = same_seed("cifar_resnet", depth=3 * layers * 2 + 2, layers=layers)
    assert_same_network(found, expected)


@pytest.mark.parametrize(("depth", "options"), [(18, {}), (50, {}), (50, {"stride_on": "1x1", "shortcut": "C"})])
def test_the_original_imagenet_networks_are_the_resnets(depth: int, options: dict[str, Any]) -> None:
    found = same_seed("preact_imagenet_resnet", depth=depth, unit="original", **options)
    assert_same_network(found, same_seed("imagenet_resnet", depth=depth, **options))


def same_seed(name: str, **options: Any) -> Network:
    torch.manual_seed(5)
    return create_model(name, **options)


def assert_same_network(found: Network, expected: Network) -> None:
    own, other = found.state_dict(), expected.state_dict()
    assert list(own) == list(other)
    assert all(torch.equal(own[path], other[path]) for path in own)
    x = images(2, 32).float()
    assert torch.equal(found(x), expected(x))


def test_table_1_modifies_every_shortcut_and_leaves_the_branches_alone() -> None:
    expected = [kinds(unit.branch) for unit in units_of(small("original"))]
    for unit in SHORTCUTS:
        assert [kinds(found.branch) for found in units_of(small(unit))] == expected
    assert all(isinstance(found.merge, Gate) for found in units_of(small("exclusive-gating")))
    assert all(isinstance(found.shortcut, Gated) for found in units_of(small("shortcut-only-gating")))
    assert all(kinds(found.shortcut) == "conv norm" for found in units_of(small("conv-shortcut")))
    for unit, part in (("constant-scaling", Scale), ("dropout-shortcut", Dropped)):
        for found in units_of(small(unit)):
            assert found.shortcut is not None
            assert sum(isinstance(module, part) for module in found.shortcut.modules()) == 1


def test_gates_start_at_their_bias_whatever_initialises_the_weights() -> None:
    for unit in ("exclusive-gating", "shortcut-only-gating"):
        for bias, options in ((-6.0, {}), (0.0, {"gate_bias": 0}), (-10.0, {"gate_bias": -10, "initializer": "orthogonal"})):
            gates = [m.transform.conv for m in small(unit, **options).modules() if isinstance(m, (Gate, Gated))]
            assert len(gates) == 6
            assert all(bool((gate.bias == bias).all()) for gate in gates)
            assert all(bool(gate.weight.any()) for gate in gates)


def test_fixup_leaves_the_bias_of_the_gates_alone() -> None:
    network = small("shortcut-only-gating", normalization="none", start="fixup", gate_bias=-4)
    assert all(bool((m.transform.conv.bias == -4).all()) for m in network.modules() if isinstance(m, Gated))


def test_dropped_shortcuts_have_the_rate_and_form_that_were_asked_for() -> None:
    for form, inverted, whole in (("unscaled", False, False), ("inverted", True, False), ("whole", False, True)):
        found = [m for m in small("dropout-shortcut", drop_form=form, drop=0.3).modules() if isinstance(m, Dropped)]
        assert [(m.rate, m.inverted, m.whole) for m in found] == [(0.3, inverted, whole)] * 6
    default = [m for m in small("dropout-shortcut").modules() if isinstance(m, Dropped)]
    assert {(m.rate, m.inverted, m.whole) for m in default} == {(0.5, False, False)}


# ------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("normalization", ["batch", "none"])
@pytest.mark.parametrize("unit", ALL_UNITS)
def test_a_zeroed_branch_makes_a_unit_equal_its_shortcut(unit: str, branch: str, normalization: str) -> None:
    network = small(unit, branch, normalization=normalization).eval()
    for found in units_of(network):
        for parameter in found.branch.parameters():
            nn.init.zeros_(parameter)
    inputs: dict[Unit, tuple[Tensor, Tensor]] = {}
    for found in units_of(network):
        found.register_forward_hook(lambda unit, args, out: inputs.update({unit: (args[0], out)}))
    with torch.no_grad():
        network(images())
        for found, (x, out) in inputs.items():
            assert found.shortcut is not None
            h = found.shortcut(x)
            if isinstance(found.merge, Gate):
                h = (1 - torch.sigmoid(found.merge.transform(h))) * h
            assert torch.equal(out, found.post(h))
    assert len(inputs) == 6


def stretch(unit: str, length: int = 4, **options: Any) -> tuple[nn.Sequential, list[Tensor], Tensor]:
    """Units that keep the shape, in training mode; a list that collects what their branches give; an input."""
    torch.manual_seed(2)
    network = create_model("preact_cifar_resnet", depth=6 * (length + 1) + 2, unit=unit, **options).double()
    chain = nn.Sequential(*[module for module in network.stages[1] if isinstance(module, Unit)][1:])
    given: list[Tensor] = []
    for found in chain:
        found.branch.register_forward_hook(lambda _m, _i, out: given.append(out))
    x = torch.randn(3, 32, 6, 6, dtype=torch.float64, requires_grad=True)
    return chain, given, x


def closeness(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("unit", [*PREACTIVATIONS, "relu-before-addition", "original", "bn-after-addition"])
def test_equations_4_and_5_hold_where_the_addition_is_followed_by_nothing(unit: str) -> None:
    chain, given, x = stretch(unit)
    y = chain(x)
    expected = x + torch.stack(given).sum(0)
    g = torch.randn_like(y)
    (whole,) = torch.autograd.grad(y, x, g, retain_graph=True)
    through_branches = torch.autograd.grad(given, x, [g] * len(given))[0]
    forward, backward = closeness(y, expected), closeness(whole, g + through_branches)
    if unit in ("original", "bn-after-addition"):
        assert min(forward, backward) > 1e-3
    else:
        assert max(forward, backward) < 1e-12


def test_constant_scaling_multiplies_to_the_product_of_the_lambdas() -> None:
    """Equations 6 and 7, f the identity."""
    chain, given, x = stretch("constant-scaling", scaling=(0.5, 1))
    lambdas = [0.5, 1.3, 0.9, -0.4]
    for found, factor in zip(chain, lambdas):
        found.post = nn.Identity()
        found.shortcut.weight.fill_(factor)
    y = chain(x)
    factors = [math.prod(lambdas[index + 1 :]) for index in range(4)]
    product = math.prod(lambdas)
    assert closeness(y, product * x + sum(factor * f for factor, f in zip(factors, given))) < 1e-12
    g = torch.randn_like(y)
    (whole,) = torch.autograd.grad(y, x, g, retain_graph=True)
    through_branches = torch.autograd.grad(given, x, [factor * g for factor in factors])[0]
    assert closeness(whole, product * g + through_branches) < 1e-12


@pytest.mark.parametrize(("on_shortcut", "on_branch"), [(0.5, 0.5), (0.5, 1), (0, 1), (1.25, 1)])
def test_scaled_networks_without_branches_give_the_padded_stem_times_the_product(on_shortcut: float, on_branch: float) -> None:
    scaled, original = small("constant-scaling", scaling=(on_shortcut, on_branch)).eval(), small("original").eval()
    for network in (scaled, original):
        for found in units_of(network):
            found.branch.norm2.weight.data.zero_()
    x = images()
    for index, (found, expected) in enumerate(zip(scaled.features(x), original.features(x))):
        torch.testing.assert_close(found, on_shortcut ** (2 * index + 2) * expected, rtol=1e-12, atol=0)


def test_scaling_by_zero_is_the_plain_network_and_by_one_the_original() -> None:
    x = images()
    assert torch.equal(small("constant-scaling", scaling=(1, 1))(x), small("original")(x))
    torch.manual_seed(0)
    plain = create_model("cifar_resnet", depth=14, plain=True).double()
    assert torch.equal(small("constant-scaling", scaling=[0, 1])(x), plain(x))


def test_the_branch_is_scaled_after_its_last_layer() -> None:
    chain, given, x = stretch("constant-scaling", length=1, scaling=(0.25, 3))
    plain = nn.Sequential(*list(chain[0].branch)[:-1])
    assert torch.equal(chain(x), torch.relu(0.25 * x + 3 * plain(x)))
    assert torch.equal(given[0], 3 * plain(x))


def test_a_closed_exclusive_gate_is_the_identity_and_an_open_one_the_plain_layer() -> None:
    x = images()
    closed, open_ = small("exclusive-gating", gate_bias=-math.inf), small("exclusive-gating", gate_bias=math.inf)
    expected = closed.stem(x)
    for stage in closed.stages:
        for found in stage:
            expected = found.shortcut(expected)
            if not isinstance(found.shortcut, ZeroPad):
                assert torch.equal(found(expected), expected)
    assert torch.equal(closed.features(x)[-1], expected)
    for found in units_of(open_):
        signal = torch.rand(2, found.branch.conv1.in_channels, 4, 4, dtype=torch.float64)
        assert torch.equal(found(signal), torch.relu(found.branch(signal)))


def test_gates_weigh_shortcut_and_branch_with_a_1x1_convolution_of_the_units_input() -> None:
    """Figure 2 (c) and (d), written plainly, at the change of shape too."""
    for unit in ("exclusive-gating", "shortcut-only-gating"):
        network = small(unit, gate_bias=-1)
        for found in units_of(network):
            gate = (found.merge if unit == "exclusive-gating" else found.shortcut).transform.conv
            x = torch.rand(2, found.branch.conv1.in_channels, 6, 6, dtype=torch.float64)
            stride = found.branch.conv1.stride[0]
            g = torch.sigmoid(nn.functional.conv2d(x, gate.weight, gate.bias, stride=stride))
            h = x[:, :, ::stride, ::stride]
            h = torch.cat((h, torch.zeros(2, len(gate.bias) - h.shape[1], *h.shape[2:], dtype=h.dtype)), 1)
            f = found.branch(x)
            expected = (1 - g) * h + (g * f if unit == "exclusive-gating" else f)
            torch.testing.assert_close(found(x), torch.relu(expected))


def test_a_closed_gate_on_the_shortcut_only_leaves_the_original_unit() -> None:
    gated, original = small("shortcut-only-gating", gate_bias=-math.inf), small("original")
    own = {path: tensor for path, tensor in gated.state_dict().items() if "transform" not in path}
    original.load_state_dict(own)
    assert torch.equal(gated(images()), original(images()))


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("unit", PREACTIVATIONS)
def test_an_activation_after_the_addition_that_acts_on_the_branch_only_is_pre_activation(unit: str, branch: str) -> None:
    """Figure 5: the same weights grouped as original units, whose last activation the shortcut goes round."""
    preactivated = small(unit, branch)
    grouped = copy.deepcopy(preactivated)
    x = images()
    y, twin = preactivated(x), after_addition_on_the_branch_only(grouped, x)
    assert closeness(twin, y) < 1e-12
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    for output in (y, twin):
        (output * weights).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in preactivated.parameters())
    for (path, own), other in zip(preactivated.named_parameters(), grouped.parameters()):
        torch.testing.assert_close(other.grad, own.grad, rtol=1e-9, atol=1e-12 * largest, msg=path)


def after_addition_on_the_branch_only(network: Network, x: Tensor) -> Tensor:
    """Units of the form: convolutions, addition, activation; what comes out is (sum, activated sum)."""
    modules = [module for stage in network.stages for module in stage]
    bodies, activations = [], []
    for module in modules:
        if not isinstance(module, Unit):
            activations.append(module)
            continue
        layers = dict(module.branch.named_children())
        leading = [layers.pop(name) for name in takewhile(lambda name: name != "conv1", list(layers))]
        if leading:
            activations.append(nn.Sequential(*leading))
        bodies.append((nn.Sequential(*layers.values()), module.shortcut))
    assert len(activations) == len(bodies), "one after each addition; the stem ends with its own"
    y = a = network.stem(x)
    for (body, shortcut), activation in zip(bodies, activations):
        y = (y if isinstance(shortcut, nn.Identity) else shortcut(a)) + body(a)
        a = activation(y)
    return network.head(a)


# --------------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(
    ("depth", "training"),
    [
        (50, True),
        (50, False),
        *(pytest.param(depth, training, marks=pytest.mark.slow) for depth in (101, 152) for training in (True, False)),
    ],
)
def test_outputs_and_gradients_equal_timms_with_the_same_weights(depth: int, training: bool) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = create_model("preact_imagenet_resnet", depth=depth, stem="pool-first").double().train(training)
    theirs = timm.create_model(f"resnetv2_{depth}", num_classes=1000).double().train(training)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias)
    own, other = ours.state_dict(), theirs.state_dict()
    names = {name: of_timm(name, len(ours.stages[3]) - 1) for name in other}
    assert sorted(names.values()) == sorted(own)
    theirs.load_state_dict({name: own[names[name]].clone().view_as(tensor) for name, tensor in other.items()})
    x = torch.randn(3, 3, 40, 40, dtype=torch.float64)
    found, expected = ours(x), theirs(x)
    assert closeness(found, expected) < 1e-9
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    for output in (found, expected):
        (output * weights).sum().backward()
    gradients = {names[name]: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert closeness(parameter.grad.flatten(), gradients[name].flatten()) < 1e-9, name
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[names[name]].view_as(tensor), tensor)


def of_timm(name: str, last: int) -> str:
    """Our name of timm's tensor."""
    first, _, rest = name.partition(".")
    if first == "norm":
        return f"stages.3.{last}.norm.{rest}"
    if first == "head":
        return "head.classifier." + rest.rpartition(".")[2]
    if first == "stem":
        return name
    stage, _, block, part, *leaf = rest.split(".")
    if part == "norm1" and block == "0":
        return ".".join(["stem.norm" if stage == "0" else f"stages.{stage}.0.norm", *leaf])
    path = f"stages.{stage}.{int(block) + (stage != '0')}"
    return ".".join([path, "shortcut", *leaf] if part == "downsample" else [path, "branch", part, *leaf])


def test_pooling_first_differs_from_the_papers_stem_in_its_statistics_only() -> None:
    """Pooling commutes with what rises, such as a normalisation of positive scale by fixed statistics, and ReLU."""
    paper, timms = (same_seed("preact_imagenet_resnet", depth=18, stem=stem).double() for stem in ("imagenet", "pool-first"))
    timms.load_state_dict(paper.state_dict())
    x = images(3, 40)
    with torch.no_grad():
        assert closeness(timms.eval()(x), paper.eval()(x)) < 1e-12
        assert closeness(timms.train()(x), paper.train()(x)) > 1e-3


# -------------------------------------------------------------------------------------------- every unit works


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("normalization", ["batch", "group", "none"])
@pytest.mark.parametrize("unit", ALL_UNITS)
def test_every_unit_gives_every_parameter_a_gradient_with_any_normalization(unit: str, branch: str, normalization: str) -> None:
    network = small(unit, branch, normalization=normalization)
    nn.functional.cross_entropy(network(images()), torch.arange(4)).backward()
    for path, parameter in network.named_parameters():
        assert parameter.grad is not None, path
        assert bool(parameter.grad.isfinite().all()), path
        assert bool(parameter.grad.any()), path
    biases = [m.bias is not None for path, m in network.named_modules() if isinstance(m, nn.Conv2d) and "transform" not in path]
    assert set(biases) == {normalization == "none"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("unit", ALL_UNITS)
def test_every_unit_is_captured_in_one_graph_that_computes_the_same(unit: str, training: bool) -> None:
    model = create_model("preact_cifar_resnet", depth=8, unit=unit).train(training)
    twin = copy.deepcopy(model)
    x = images(2).float()
    torch.manual_seed(3)
    y, graphs = captured(model, x)
    assert graphs == 1
    torch.manual_seed(3)
    torch.testing.assert_close(y, twin(x), rtol=0, atol=0)


@pytest.mark.parametrize("unit", ALL_UNITS)
def test_recomputation_changes_nothing(unit: str) -> None:
    """Dropped shortcuts are dropped again in the same places."""
    results = []
    for every in (0, 2):
        network = small(unit)
        network.recompute_every = every
        torch.manual_seed(4)
        y = network(images())
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in network.parameters()), *network.buffers()])
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# ----------------------------------------------------------------------------------------------- layers a unit


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("builder", ["cifar_resnet", "preact_cifar_resnet"])
def test_a_unit_has_one_to_four_layers(builder: str, layers: int) -> None:
    depth = 3 * layers * 2 + 2
    network = on_meta(builder, depth=depth, layers=layers)
    assert [sum(isinstance(m, nn.Conv2d) for m in unit.branch.modules()) for unit in units_of(network)] == [layers] * 6
    weighted = [path for path, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in path]
    assert len(weighted) == depth


@pytest.mark.parametrize("builder", ["imagenet_resnet", "preact_imagenet_resnet"])
@pytest.mark.parametrize(("depth", "layers", "units"), [(18, 1, 16), (18, 4, 4), (34, 1, 32)])
def test_imagenet_networks_of_basic_units_keep_their_layers(builder: str, depth: int, layers: int, units: int) -> None:
    network = on_meta(builder, depth=depth, layers=layers)
    assert len(units_of(network)) == units
    assert num_parameters(network) == num_parameters(on_meta(builder, depth=depth))
    assert network.feature_channels == (64, 128, 256, 512)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("preact_resnet110", {"unit": "preactivation"}, "'full-preactivation'"),
        ("preact_resnet110", {"gate_bias": -6}, "exclusive-gating and shortcut-only-gating"),
        ("preact_resnet110", {"unit": "exclusive-gating", "gate_bias": "low"}, "a number"),
        ("preact_resnet110", {"unit": "exclusive-gating", "scaling": (1, 1)}, "constant-scaling"),
        ("preact_resnet110", {"unit": "constant-scaling", "scaling": (1, 1, 1)}, "two finite numbers"),
        ("preact_resnet110", {"unit": "constant-scaling", "scaling": 0.5}, "two finite numbers"),
        ("preact_resnet110", {"unit": "constant-scaling", "scaling": (math.inf, 1)}, "two finite numbers"),
        ("preact_resnet110", {"unit": "dropout-shortcut", "drop": 1.0}, "[0, 1)"),
        ("preact_resnet110", {"unit": "dropout-shortcut", "drop_form": "paper"}, "'unscaled', 'inverted' or 'whole'"),
        ("preact_resnet110", {"shortcut": "D"}, "'A', 'B', 'C'"),
        ("preact_resnet110", {"stem": "tiny"}, "'pool-first'"),
        ("preact_resnet110", {"normalization": "layer"}, "'batch', 'group', 'none'"),
        ("preact_resnet164", {"stride_on": "5x5"}, "'1x1', '3x3'"),
        ("preact_resnet164", {"layers": 3}, "three layers"),
        ("preact_resnet152", {"layers": 1}, "three layers"),
        ("resnet152", {"layers": 1}, "three layers"),
        ("preact_cifar_resnet", {"depth": 20, "branch": "wide"}, "'basic', 'bottleneck'"),
        ("preact_cifar_resnet", {"depth": 165, "branch": "bottleneck"}, "164 and 173"),
        ("preact_cifar_resnet", {"depth": 110, "layers": 5}, "1, 2, 3 or 4"),
        ("cifar_resnet", {"depth": 20, "layers": 4}, "14 and 26"),
        ("imagenet_resnet", {"depth": 34, "layers": 4}, "6, 8, 12, 6"),
        ("preact_imagenet_resnet", {"depth": 51}, "152, 200"),
    ],
)
def test_what_cannot_be_built_is_refused_with_what_can(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        create_model(name, **options)
    assert words in str(refused.value)


# -------------------------------------------------------------------------------------------------------- memory


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors made within the block that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def peak_of_training(name: str, every: int, batch: int, real: bool = False, **options: Any) -> int:
    """The most bytes that tensors take in two steps of SGD with momentum: parameters, gradients, momenta, images and activations.

    Nothing is computed unless `real`: fake tensors have the sizes and lifetimes of real ones. The interpreter, torch itself and
    what convolutions use inside are not counted, as in `torch.cuda.max_memory_allocated`.
    """
    with nullcontext() if real else FakeTensorMode(), Live() as live:
        network = create_model(name, **options).train()
        network.recompute_every = every
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        x, labels = torch.randn(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.long)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), labels).backward()
            optimizer.step()
    return live.peak


def test_fake_tensors_take_the_bytes_of_real_ones() -> None:
    for every in (0, 1, 2):
        fake, real = (peak_of_training("preact_cifar_resnet", every, 8, real, depth=20) for real in (False, True))
        assert real > 1e6
        assert abs(fake / real - 1) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), [("resnet1202", 14), ("preact_resnet1001", 6)])
def test_the_deepest_networks_train_with_128_images_within_2_gigabytes(name: str, every: int) -> None:
    assert peak_of_training(name, every, 128) < 2e9
    assert peak_of_training(name, 0, 128) > 8e9, "without recomputation they do not"
