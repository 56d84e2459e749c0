"""The vocabulary reaches further than classification: other skip networks said with `Unit`, each against a plainly written twin.

Every case is built from units, and as a function of the same weights without any unit. Outputs and all gradients are equal in
float64, in full and with single units switched off; `walk` finds the units with their nesting; costs are products of dimensions.
Shapes: maps [N, C, H, W], sequences [N, L, D], masks [L, L] (True where position i may look at position j).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua.cost import layer_table, multiply_adds, num_parameters
from residua.layers import conv, sequence
from residua.shortcuts import PoolingIndices
from residua.unit import Concat, Unit, Unpool, switched_off, walk

Weights = Mapping[str, Tensor]
Written = Callable[[Weights, frozenset[str], Tensor, "tuple[Tensor, ...]"], Tensor]


@dataclass
class Case:
    """A model of units; `written` computes the same from its weights by name, the paths of units that are off, and inputs."""

    model: nn.Module
    written: Written
    shape: tuple[int, ...]
    units: dict[str, tuple[int, bool]]  # path -> nesting, removable
    multiply_adds: int
    parameters: int
    extra: tuple[Tensor, ...] = field(default=())


def unless_off(path: str, off: frozenset[str], branch: Tensor) -> Tensor:
    return torch.zeros_like(branch) if path in off else branch


# -------------------------------------------------------------------------------------------- parts that these networks need


def two_convs(channels_in: int, channels: int) -> nn.Sequential:
    """Two 3x3 convolutions without padding, each with ReLU (U-Net): takes 4 off each side."""
    first, second = nn.Conv2d(channels_in, channels, 3), nn.Conv2d(channels, channels, 3)
    return sequence(conv1=first, act1=nn.ReLU(), conv2=second, act2=nn.ReLU())


class Attention(nn.Module):
    """Normalisation (or none) and multi-head self-attention with an optional mask."""

    def __init__(self, width: int, heads: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm if norm is not None else nn.Identity()
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        split = self.inputs(self.norm(x)).unflatten(2, (3, self.heads, -1))  # [N, L, 3, heads, D / heads]
        q, k, v = split.permute(2, 0, 3, 1, 4)
        return self.output(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A unit of attention, to which the mask goes, and a unit of two layers."""

    def __init__(self, attention: Unit, mlp: Unit) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.mlp(self.attention(x, mask))


class Recurrent(nn.Module):
    """An LSTM layer that gives its outputs; a state to begin with may be handed in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: Tensor, *state: Tensor) -> Tensor:
        return self.lstm(x, state or None)[0]


# ------------------------------------------------------------------------------------------------------ the networks and twins


def unet() -> Case:
    """Ronneberger et al. 2015, two levels: convolutions without padding, the encoder's map cropped and concatenated."""
    inner = Unit(
        sequence(pool=nn.MaxPool2d(2), bottom=two_convs(4, 8), up=nn.ConvTranspose2d(8, 4, 2, 2)),
        nn.ZeroPad2d(-4),
        Concat(),
        two_convs(8, 4),
    )
    outer = Unit(
        sequence(pool=nn.MaxPool2d(2), down=two_convs(2, 4), inner=inner, up=nn.ConvTranspose2d(4, 2, 2, 2)),
        nn.ZeroPad2d(-16),
        Concat(),
        two_convs(4, 2),
    )
    model = sequence(first=two_convs(1, 2), outer=outer, score=nn.Conv2d(2, 3, 1))

    def written(w: Weights, off: frozenset[str], x: Tensor, _extra: tuple[Tensor, ...]) -> Tensor:
        def twice(name: str, x: Tensor) -> Tensor:
            for layer in ("conv1", "conv2"):
                x = torch.relu(F.conv2d(x, w[f"{name}.{layer}.weight"], w[f"{name}.{layer}.bias"]))
            return x

        def up(name: str, x: Tensor) -> Tensor:
            return F.conv_transpose2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride=2)

        first = twice("first", x)
        second = twice("outer.branch.down", F.max_pool2d(first, 2))
        third = twice("outer.branch.inner.branch.bottom", F.max_pool2d(second, 2))
        below = unless_off("outer.branch.inner", off, up("outer.branch.inner.branch.up", third))
        below = twice("outer.branch.inner.post", torch.cat((second[:, :, 4:-4, 4:-4], below), 1))
        below = unless_off("outer", off, up("outer.branch.up", below))
        last = twice("outer.post", torch.cat((first[:, :, 16:-16, 16:-16], below), 1))
        return F.conv2d(last, w["score.weight"], w["score.bias"])

    layers = [(42, 1, 2, 9), (40, 2, 2, 9), (18, 2, 4, 9), (16, 4, 4, 9), (6, 4, 8, 9), (4, 8, 8, 9)]  # side, in, out, taps
    layers += [(8, 8, 4, 1), (6, 8, 4, 9), (4, 4, 4, 9), (8, 4, 2, 1), (6, 4, 2, 9), (4, 2, 2, 9), (4, 2, 3, 1)]
    # An up-convolution has four taps, of which each position of its output takes one.
    weights = sum(i * o * taps for _, i, o, taps in layers) + 3 * (8 * 4 + 4 * 2)
    return Case(
        model, written, (1, 44, 44), {"outer": (0, False), "outer.branch.inner": (1, False)},
        sum(side * side * i * o * taps for side, i, o, taps in layers), weights + sum(o for _, _, o, _ in layers),
    )  # fmt: skip


def hourglass() -> Case:
    """Newell et al. 2016, two levels: a unit on the shortcut, and on the branch pooling, a unit, the inner level, a unit,
    nearest-neighbour upsampling; added."""

    def residual() -> Unit:
        return Unit(sequence(act1=nn.ReLU(), conv1=conv(4, 6, 1), act2=nn.ReLU(), conv2=conv(6, 4, 3)), nn.Identity())

    def level(inside: nn.Module) -> Unit:
        up = nn.Upsample(scale_factor=2, mode="nearest")
        return Unit(sequence(pool=nn.MaxPool2d(2), before=residual(), inside=inside, after=residual(), up=up), residual())

    model = level(level(residual()))

    def written(w: Weights, off: frozenset[str], x: Tensor, _extra: tuple[Tensor, ...]) -> Tensor:
        def small(path: str, x: Tensor) -> Tensor:
            f = F.conv2d(torch.relu(x), w[f"{path}.branch.conv1.weight"])
            f = F.conv2d(torch.relu(f), w[f"{path}.branch.conv2.weight"], padding=1)
            return x + unless_off(path, off, f)

        def doubled(x: Tensor) -> Tensor:
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

        half = small("branch.before", F.max_pool2d(x, 2))
        quarter = small("branch.inside.branch.before", F.max_pool2d(half, 2))
        quarter = small("branch.inside.branch.after", small("branch.inside.branch.inside", quarter))
        half = small("branch.inside.shortcut", half) + unless_off("branch.inside", off, doubled(quarter))
        return small("shortcut", x) + unless_off("", off, doubled(small("branch.after", half)))

    units = {"": (0, False), "branch.before": (1, True), "branch.inside": (1, False), "branch.inside.branch.before": (2, True)}
    units |= {"branch.inside.branch.inside": (2, True), "branch.inside.branch.after": (2, True)}
    units |= {"branch.inside.shortcut": (2, True), "branch.after": (1, True), "shortcut": (1, True)}
    each = 4 * 6 + 6 * 4 * 9
    return Case(model, written, (4, 8, 8), units, (8 * 8 + 3 * 4 * 4 + 3 * 2 * 2) * each, 7 * each)


def fcn8s() -> Case:
    """Long et al. 2015: scores of pool4 and then pool3, by 1x1 convolutions, added to the upsampled coarser ones."""

    def stage(channels_in: int, channels: int) -> nn.Sequential:
        return sequence(conv=conv(channels_in, channels, 3), act=nn.ReLU(), pool=nn.MaxPool2d(2))

    def up(factor: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(3, 3, 2 * factor, factor, padding=factor // 2, bias=False)

    sixteen = Unit(sequence(stage5=stage(6, 8), score=conv(8, 3, 1), up=up(2)), conv(6, 3, 1))
    eight = Unit(sequence(stage4=stage(4, 6), inner=sixteen, up=up(2)), conv(4, 3, 1))
    model = sequence(stage1=stage(1, 2), stage2=stage(2, 2), stage3=stage(2, 4), eight=eight, up=up(8))

    def written(w: Weights, off: frozenset[str], x: Tensor, _extra: tuple[Tensor, ...]) -> Tensor:
        def stage(path: str, x: Tensor) -> Tensor:
            return F.max_pool2d(torch.relu(F.conv2d(x, w[f"{path}.conv.weight"], padding=1)), 2)

        def up(path: str, x: Tensor, factor: int) -> Tensor:
            return F.conv_transpose2d(x, w[f"{path}.weight"], stride=factor, padding=factor // 2)

        pool3 = stage("stage3", stage("stage2", stage("stage1", x)))
        pool4 = stage("eight.branch.stage4", pool3)
        pool5 = stage("eight.branch.inner.branch.stage5", pool4)
        coarse = up("eight.branch.inner.branch.up", F.conv2d(pool5, w["eight.branch.inner.branch.score.weight"]), 2)
        scores16 = F.conv2d(pool4, w["eight.branch.inner.shortcut.weight"]) + unless_off("eight.branch.inner", off, coarse)
        finer = unless_off("eight", off, up("eight.branch.up", scores16, 2))
        return up("up", F.conv2d(pool3, w["eight.shortcut.weight"]) + finer, 8)

    stages = 64**2 * 9 * 1 * 2 + 32**2 * 9 * 2 * 2 + 16**2 * 9 * 2 * 4 + 8**2 * 9 * 4 * 6 + 4**2 * 9 * 6 * 8
    scores = 8**2 * 4 * 3 + 4**2 * 6 * 3 + 2**2 * 8 * 3
    ups = (2**2 + 4**2) * 3 * 3 * 4**2 + 8**2 * 3 * 3 * 16**2  # each input position spreads over the whole kernel
    weights = 9 * (1 * 2 + 2 * 2 + 2 * 4 + 4 * 6 + 6 * 8) + (4 + 6 + 8) * 3 + 2 * 9 * 4**2 + 9 * 16**2
    units = {"eight": (0, False), "eight.branch.inner": (1, False)}
    return Case(model, written, (1, 64, 64), units, stages + scores + ups, weights)


def segnet() -> Case:
    """Badrinarayanan et al. 2017, two levels: the shortcut hands over where each largest value stood, and no signal."""

    def block(channels_in: int, channels: int) -> nn.Sequential:
        return sequence(conv=conv(channels_in, channels, 3), act=nn.ReLU())

    inner = Unit(
        sequence(pool=nn.MaxPool2d(2), down=block(4, 6), up=block(6, 4)), PoolingIndices(2), Unpool(2), block(4, 2)
    )  # fmt: skip
    outer = Unit(sequence(pool=nn.MaxPool2d(2), down=block(2, 4), inner=inner), PoolingIndices(2), Unpool(2), block(2, 3))
    model = sequence(first=block(1, 2), outer=outer)

    def written(w: Weights, off: frozenset[str], x: Tensor, _extra: tuple[Tensor, ...]) -> Tensor:
        def block(path: str, x: Tensor) -> Tensor:
            return torch.relu(F.conv2d(x, w[f"{path}.conv.weight"], padding=1))

        def windows(x: Tensor) -> Tensor:
            n, c, height, width = x.shape
            return x.view(n, c, height // 2, 2, width // 2, 2).transpose(3, 4).flatten(4)

        def back(x: Tensor, value: Tensor) -> Tensor:
            """`value` of each window where x has its largest there, written without pooling."""
            places = F.one_hot(windows(x).argmax(4), 4).to(x) * value[..., None]
            return places.unflatten(4, (2, 2)).transpose(3, 4).reshape(x.shape)

        first = block("first", x)
        second = block("outer.branch.down", windows(first).amax(4))
        third = block("outer.branch.inner.branch.down", windows(second).amax(4))
        third = block("outer.branch.inner.branch.up", third)
        second_up = back(second, unless_off("outer.branch.inner", off, third))
        first_up = back(first, unless_off("outer", off, block("outer.branch.inner.post", second_up)))
        return block("outer.post", first_up)

    layers = [(8, 1, 2), (4, 2, 4), (2, 4, 6), (2, 6, 4), (4, 4, 2), (8, 2, 3)]
    return Case(
        model, written, (1, 8, 8), {"outer": (0, False), "outer.branch.inner": (1, False)},
        sum(side * side * 9 * i * o for side, i, o in layers), sum(9 * i * o for _, i, o in layers),
    )  # fmt: skip


WIDTH, HEADS, LENGTH = 8, 2, 5
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
ATTENTION = LENGTH * WIDTH * 4 * WIDTH + 2 * LENGTH * LENGTH * WIDTH
MLP = LENGTH * 2 * WIDTH * 3 * WIDTH
BLOCK_PARAMETERS = 4 * WIDTH * WIDTH + 4 * WIDTH + 2 * WIDTH * 3 * WIDTH + 3 * WIDTH + WIDTH + 2 * 2 * WIDTH


def attention_written_out(w: Weights, path: str, x: Tensor, mask: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d) where the mask allows) V, head by head (Vaswani et al. 2017, equation 1)."""
    size = WIDTH // HEADS
    q, k, v = (x @ w[f"{path}.inputs.weight"].T + w[f"{path}.inputs.bias"]).split(WIDTH, 2)
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, :, part] @ k[:, :, part].transpose(1, 2) / math.sqrt(size)
        odds = torch.exp(scores) * mask
        heads.append(odds / odds.sum(2, keepdim=True) @ v[:, :, part])
    return torch.cat(heads, 2) @ w[f"{path}.output.weight"].T + w[f"{path}.output.bias"]


def normalized(w: Weights, path: str, x: Tensor) -> Tensor:
    centred = x - x.mean(2, keepdim=True)
    return centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt() * w[f"{path}.weight"] + w[f"{path}.bias"]


def mlp_written_out(w: Weights, path: str, x: Tensor) -> Tensor:
    hidden = torch.relu(x @ w[f"{path}.layer1.weight"].T + w[f"{path}.layer1.bias"])
    return hidden @ w[f"{path}.layer2.weight"].T + w[f"{path}.layer2.bias"]


def mlp(**norm: nn.Module) -> nn.Sequential:
    return sequence(**norm, layer1=nn.Linear(WIDTH, 3 * WIDTH), act=nn.ReLU(), layer2=nn.Linear(3 * WIDTH, WIDTH))


def pre_norm() -> Case:
    """GPT-2 and ViT: x + F(LayerNorm(x)); the causal mask is an extra input, which goes to the branch."""
    model = Block(
        Unit(Attention(WIDTH, HEADS, nn.LayerNorm(WIDTH)), nn.Identity()), Unit(mlp(norm=nn.LayerNorm(WIDTH)), nn.Identity())
    )

    def written(w: Weights, off: frozenset[str], x: Tensor, extra: tuple[Tensor, ...]) -> Tensor:
        f = attention_written_out(w, "attention.branch", normalized(w, "attention.branch.norm", x), *extra)
        x = x + unless_off("attention", off, f)
        return x + unless_off("mlp", off, mlp_written_out(w, "mlp.branch", normalized(w, "mlp.branch.norm", x)))

    units = {"attention": (0, True), "mlp": (0, True)}
    return Case(model, written, (LENGTH, WIDTH), units, ATTENTION + MLP, BLOCK_PARAMETERS, (CAUSAL,))


def post_norm() -> Case:
    """The Transformer of 2017 and BERT: LayerNorm(x + F(x)), the normalisation as post."""
    model = Block(
        Unit(Attention(WIDTH, HEADS), nn.Identity(), post=nn.LayerNorm(WIDTH)),
        Unit(mlp(), nn.Identity(), post=nn.LayerNorm(WIDTH)),
    )

    def written(w: Weights, off: frozenset[str], x: Tensor, extra: tuple[Tensor, ...]) -> Tensor:
        f = attention_written_out(w, "attention.branch", x, *extra)
        x = normalized(w, "attention.post", x + unless_off("attention", off, f))
        return normalized(w, "mlp.post", x + unless_off("mlp", off, mlp_written_out(w, "mlp.branch", x)))

    units = {"attention": (0, True), "mlp": (0, True)}
    return Case(model, written, (LENGTH, WIDTH), units, ATTENTION + MLP, BLOCK_PARAMETERS, (CAUSAL,))


def residual_lstm() -> Case:
    """GNMT (Wu et al. 2016, equation 6): the layer's input is added to its output, and the sum goes to the next layer."""
    model = nn.Sequential(Unit(Recurrent(4), nn.Identity()), Unit(Recurrent(4), nn.Identity()))

    def written(w: Weights, off: frozenset[str], x: Tensor, _extra: tuple[Tensor, ...]) -> Tensor:
        for unit in ("0", "1"):
            path = f"{unit}.branch.lstm"
            h = c = x.new_zeros(len(x), 4)
            outputs = []
            for step in range(x.shape[1]):
                gates = x[:, step] @ w[f"{path}.weight_ih_l0"].T + w[f"{path}.bias_ih_l0"]
                gates = gates + h @ w[f"{path}.weight_hh_l0"].T + w[f"{path}.bias_hh_l0"]
                into, forget, new, out = gates.split(4, 1)
                c = torch.sigmoid(forget) * c + torch.sigmoid(into) * torch.tanh(new)
                h = torch.sigmoid(out) * torch.tanh(c)
                outputs.append(h)
            x = x + unless_off(unit, off, torch.stack(outputs, 1))
        return x

    parameters = 2 * (2 * 4 * 4 * 4 + 2 * 4 * 4)
    return Case(model, written, (6, 4), {"0": (0, True), "1": (0, True)}, 2 * 6 * (4 + 4) * 4 * 4, parameters)


CASES = [unet, hourglass, fcn8s, segnet, pre_norm, post_norm, residual_lstm]


@pytest.fixture(params=CASES, ids=lambda build: build.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    """The model in float64, its normalisations with scales and offsets of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built: Case = request.param()
        for module in built.model.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        built.model.double()
    return built


def inputs(case: Case) -> Tensor:
    return torch.randn(2, *case.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outputs_and_gradients(function: Callable[[Tensor], Tensor], weights: list[Tensor], x: Tensor) -> list[Tensor | None]:
    x = x.clone().requires_grad_(True)
    y = function(x)
    pull = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad((y * pull).sum(), [x, *weights], allow_unused=True)]


def check_equal(case: Case, off: frozenset[str]) -> list[Tensor | None]:
    """Compares outputs and gradients of model and twin while the units at `off` are off; gives them."""
    weights = dict(case.model.named_parameters())
    x = inputs(case)
    with switched_off(*(located.unit for located in walk(case.model) if located.path in off)):
        found = outputs_and_gradients(lambda x: case.model(x, *case.extra), list(weights.values()), x)
    expected = outputs_and_gradients(lambda x: case.written(weights, off, x, case.extra), list(weights.values()), x)
    for name, ours, theirs in zip(["output", "input", *weights], found, expected):
        both = [tensor if tensor is not None else torch.zeros(()) for tensor in (ours, theirs)]
        if ours is None or theirs is None:
            assert not any(bool(tensor.any()) for tensor in both), name
        else:
            torch.testing.assert_close(*both, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    return found


def test_outputs_and_gradients_equal_the_plainly_written_twin(case: Case) -> None:
    found = check_equal(case, frozenset())
    assert all(tensor is not None and bool(tensor.any()) for tensor in found), "every weight has a part in it"


def test_switching_a_unit_off_leaves_what_the_twin_has_without_that_branch(case: Case) -> None:
    before = case.model(inputs(case), *case.extra)
    for path in case.units:
        found = check_equal(case, frozenset({path}))[0]
        assert found is not None
        assert found.shape == before.shape
        assert not torch.allclose(found, before.detach()), f"the branch of {path!r} should matter"
    check_equal(case, frozenset(case.units))
    assert torch.equal(case.model(inputs(case), *case.extra), before)


def test_the_walk_finds_every_unit_outer_before_inner(case: Case) -> None:
    located = list(walk(case.model))
    assert {unit.path: (unit.depth, unit.removable) for unit in located} == case.units
    assert [unit.path for unit in located] == [path for path, _ in case.model.named_modules() if path in case.units]


def test_the_costs_are_products_of_dimensions(case: Case) -> None:
    assert num_parameters(case.model) == case.parameters
    assert multiply_adds(case.model, case.shape, *case.extra) == case.multiply_adds
    rows = layer_table(case.model, case.shape, *case.extra)
    assert sum(row.parameters for row in rows) == case.parameters
    assert len({row.path for row in rows}) == len(rows)


def test_attention_products_have_a_row_of_their_own() -> None:
    built = pre_norm()
    rows = {row.path: row for row in layer_table(built.model, built.shape, *built.extra)}
    assert rows["attention.branch"].multiply_adds == 2 * LENGTH * LENGTH * WIDTH
    assert rows["attention.branch"].parameters == 0
    assert rows["attention.branch.inputs"].multiply_adds == LENGTH * WIDTH * 3 * WIDTH


def test_the_mask_reaches_the_branch_and_the_past_does_not_see_the_future() -> None:
    built = pre_norm()
    model = built.model.double()
    x = inputs(built)
    changed = x.clone()
    changed[:, -1] *= -1
    with torch.no_grad():
        assert torch.equal(model(x, CAUSAL)[:, :-1], model(changed, CAUSAL)[:, :-1])
        everywhere = torch.ones_like(CAUSAL)
        assert not torch.allclose(model(x, everywhere)[:, :-1], model(changed, everywhere)[:, :-1])


def test_a_state_for_a_recurrent_branch_is_an_extra_input() -> None:
    unit = residual_lstm().model[0].double()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        _, (h, c) = unit.branch.lstm(x[:, :3])
        torch.testing.assert_close(unit(x[:, 3:], h, c), unit(x)[:, 3:], rtol=1e-12, atol=1e-12)
