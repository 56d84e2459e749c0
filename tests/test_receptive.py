"""Receptive fields against published ones, and against the positions to which a gradient really goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua.census import census
from residua.graph import capture
from residua.models import create_model
from residua.receptive import Receptive, Whole, effective_field, receptive_field
from residua.unit import Concat, Unit, switched_off, walk


def field_of(model: nn.Module, x: Tensor) -> Receptive:
    captured = capture(model, x)
    field = receptive_field(captured, {skip.merge_node for skip in census(captured, proof=False).skips})
    assert isinstance(field, Receptive), field
    return field


def reached(model: nn.Module, x: Tensor) -> tuple[int, ...]:
    """How wide the gradient of the centre of the output is along each axis, with weights that cannot cancel."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().add_(1e-3)
    x = torch.rand(x.shape, dtype=torch.float64, requires_grad=True)
    output = model(x)
    (gradient,) = torch.autograd.grad(output[(slice(None), slice(None), *(size // 2 for size in output.shape[2:]))].sum(), x)
    width = []
    for axis in range(2, x.dim()):
        others = [other for other in range(x.dim()) if other != axis]
        places = gradient.abs().sum(others).nonzero().flatten()
        width.append(int(places[-1] - places[0]) + 1)
    return tuple(width)


class Cropped(nn.Module):
    """The middle of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, 3:-3]


class ChannelsLast(nn.Module):
    """A map whose channels come last, normalised over them, as in Swin transformers."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.LayerNorm(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Shuffled(nn.Module):
    """Channels in groups that change places, and positions that come last for a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.last = nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 4), nn.Conv2d(4, 4, (3, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.last(self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


CASES = {
    "strides and dilation": (
        nn.Sequential(nn.Conv1d(2, 3, 5, stride=2), nn.Conv1d(3, 3, 3, dilation=4), nn.AvgPool1d(3, 2), nn.Conv1d(3, 1, 2)),
        (1, 2, 96),
    ),
    "axes apart": (nn.Sequential(nn.Conv2d(1, 2, (3, 5), (1, 2)), nn.AvgPool2d((2, 1)), nn.Conv2d(2, 1, 3)), (1, 1, 40, 60)),
    "three axes": (nn.Sequential(nn.Conv3d(1, 2, 3), nn.AvgPool3d(2), nn.Conv3d(2, 1, (1, 2, 3))), (1, 1, 16, 16, 16)),
    "a unit": (Unit(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)), nn.Identity()), (1, 2, 20, 20)),
    "a cropped shortcut": (
        Unit(nn.Sequential(nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 5)), Cropped(), Concat()), (1, 2, 30),
    ),
    "rearranged axes": (Shuffled(), (1, 4, 20, 20)),
    "nearest up": (nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Upsample(scale_factor=2), nn.Conv2d(2, 1, 1)), (1, 1, 31, 31)),
    "adaptive pooling": (nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.AdaptiveAvgPool2d(4), nn.Conv2d(2, 2, 2)), (1, 1, 16, 16)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_longest_field_is_where_the_gradient_goes(case: str) -> None:
    model, shape = CASES[case]
    x = torch.zeros(shape)
    assert field_of(model, x).longest == reached(model, x)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv1d(1, 2, 3, 2, 1), nn.ConvTranspose1d(2, 1, 4, 2, 1)),
        nn.Sequential(nn.Conv1d(1, 2, 3, 2, 1), nn.Upsample(scale_factor=2, mode="linear"), nn.Conv1d(2, 1, 3)),
    ],
    ids=["transposed", "interpolated"],
)
def test_fields_of_upsampling_are_upper_bounds_by_less_than_a_jump(model: nn.Module) -> None:
    x = torch.zeros(1, 1, 40)
    (most,), (seen,) = field_of(model, x).longest, reached(model, x)
    assert seen <= most <= seen + 2


def test_the_shortest_field_is_that_of_the_network_without_its_branches() -> None:
    network = create_model("resnet20", shortcut="B")
    x = torch.zeros(1, 3, 32, 32)
    field = field_of(network, x)
    body = nn.Sequential(network.stem, *network.stages)
    with switched_off(*(found.unit for found in walk(network))):
        assert field.shortest == reached(body, x) == (3, 3)


@pytest.mark.parametrize(
    ("name", "side", "published"),
    [("vgg16", 224, 212), ("alexnet", 224, 195), ("inception_v3", 128, 1311), ("resnet50", 64, 427), ("resnet20", 32, 81)],
)
def test_fields_of_known_networks_are_the_published_ones(name: str, side: int, published: int) -> None:
    """Araujo, Norris and Sim 2019, table 1, for VGG-16, AlexNet and Inception-v3; the residual networks by hand.

    ResNet-50 with its stride on the 3x3 convolutions: 7 at the stem, 11 after pooling, then 8 x 3, 8 + 16 x 3, 16 + 32 x 5 and
    32 + 64 x 2 more. ResNet-20: 3, 2 x 6, 2 + 4 x 5, 4 + 8 x 5 more.
    """
    import torchvision

    own = {"vgg16": torchvision.models.vgg16, "alexnet": torchvision.models.alexnet}
    if name == "inception_v3":
        model: nn.Module = torchvision.models.inception_v3(init_weights=False)
    else:
        model = own[name]() if name in own else create_model(name)
    assert field_of(model, torch.zeros(1, 3, side, side)).longest == (published, published)


def test_a_gate_that_sees_everything_is_said_and_left_aside() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.conv(x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1))))

    field = field_of(Squeezed(), torch.zeros(1, 2, 12, 12))
    assert field.longest == (5, 5)
    assert len(field.gates) == 1
    assert field.whole is None


def test_what_follows_is_said_where_positions_meet() -> None:
    field = field_of(create_model("resnet20"), torch.zeros(1, 3, 32, 32))
    assert field.path.startswith("stages.2.2")
    assert field.whole is not None
    assert field.whole.path.startswith("head")


def test_a_network_without_positions_says_so() -> None:
    assert isinstance(receptive_field(capture(nn.Linear(3, 2), torch.zeros(1, 3))), Whole)


def test_the_effective_field_of_averages_is_known_and_that_of_a_stack_is_smaller_than_the_theoretical_one() -> None:
    """One average of 9 x 9 weighs all 81 alike; eleven averages of 3 x 3 make nearly a normal distribution, whose variance is
    2 / 3 a layer along each axis: it falls to 4.55 % of its height at 2.486 standard deviations, 6.73 pixels."""
    x = torch.zeros(1, 1, 41, 41)
    one = capture(nn.Sequential(nn.AvgPool2d(9, 1, 4)), x)
    field = receptive_field(one)
    assert isinstance(field, Receptive)
    assert effective_field(one, field).side == 9
    stack = capture(nn.Sequential(*(nn.AvgPool2d(3, 1, 1) for _ in range(11))), x)
    field = receptive_field(stack)
    assert isinstance(field, Receptive)
    assert field.longest == (23, 23)
    assert effective_field(stack, field).side == pytest.approx((torch.pi * 6.73**2) ** 0.5, rel=0.03)


def test_the_effective_field_does_not_depend_on_the_place_of_the_channels() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    for batch in (1, 2):
        x = torch.zeros(batch, 3, 16, 24)
        sides = []
        for model in (conv, ChannelsLast(conv)):
            captured = capture(model, x)
            field = receptive_field(captured)
            assert isinstance(field, Receptive)
            assert field.longest == (3, 3)
            sides.append(effective_field(captured, field).side)
        assert sides == [3, 3]
