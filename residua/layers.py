"""Convolution, normalisation and activation in one to three dimensions, and the initialisers. Layer 0: torch only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = [
    "AtLeast", "Scale", "Shift", "Towers", "Whitening",
    "activation", "conv", "conv_norm_act", "global_pool", "he_normal_", "max_pool", "norm", "sequence",
]  # fmt: skip

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


def conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = False, dims: int = 2
) -> nn.Module:
    """A convolution that keeps the size at stride 1 (padding (kernel - 1) / 2, `kernel` odd); without bias by default,
    since a normalisation follows."""
    return _CONV[dims](in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def norm(channels: int, *, kind: str = "batch", dims: int = 2, eps: float = 1e-5) -> nn.Module:
    """A normalisation over `channels`: `batch` (momentum 0.1), `group` (8 groups, or as many as divide), `none`; `eps` is added
    to the variance.

    Only `batch` ties the samples of a batch together; use `group` where each sample must stand alone.
    """
    if kind == "batch":
        return _BATCH[dims](channels, eps=eps)
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels, eps=eps)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm {kind!r} is none of 'batch', 'group', 'none'")


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    *,
    pad: bool = True,
    bias: bool = False,
    normalization: str = "batch",
    eps: float = 1e-5,
) -> nn.Sequential:
    """A convolution of kernel (height, width) or a square one, its normalisation, ReLU: the layer of VGG and of the Inceptions.

    `pad` keeps the size at stride 1; without it only positions that the kernel covers whole are computed. Without normalisation
    the convolution has a bias, else if `bias` asks for it.
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2) if pad else 0
    return sequence(
        conv=nn.Conv2d(in_channels, out_channels, (height, width), stride, padding, bias=bias or normalization == "none"),
        norm=norm(out_channels, kind=normalization, eps=eps),
        act=activation(),
    )


def activation(inplace: bool = False) -> nn.Module:
    """ReLU. Not in place by default: analyses read the signals before and after it."""
    return nn.ReLU(inplace=inplace)


def max_pool(kernel: int, stride: int, *, dims: int = 2) -> nn.Module:
    """Max pooling with padding (kernel - 1) / 2."""
    return _MAX_POOL[dims](kernel, stride, padding=kernel // 2)


def global_pool(x: Tensor) -> Tensor:
    """The mean over all positions, [N, C, ...] -> [N, C]; [N, C] stays as it is."""
    return x if x.dim() == 2 else x.flatten(2).mean(2)


class Scale(nn.Module):
    """x times a number, or with `channels` one number a channel (axis `axis`); learned, or constant if `learned` is off."""

    weight: Tensor

    def __init__(self, value: float, channels: int | None = None, *, axis: int = 1, learned: bool = True) -> None:
        super().__init__()
        self.axis = axis
        start = torch.full(() if channels is None else (channels,), float(value))
        if learned:
            self.weight = nn.Parameter(start)
        else:
            self.register_buffer("weight", start, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.weight.dim():
            return x * self.weight
        return x * self.weight.view(-1, *(1,) * (x.dim() - 1 - self.axis % x.dim()))

    def extra_repr(self) -> str:
        return f"shape={tuple(self.weight.shape)}, learned={isinstance(self.weight, nn.Parameter)}"


class Shift(nn.Module):
    """x plus one learned number, 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Whitening(nn.Module):
    """A convolution without padding whose fixed filters make the image's patches white; only its bias is learned (Page 2018, "How
    to train your ResNet" 8; Jordan 2024, section 3.2).

    [N, C, H, W] -> [N, 2 C k k, H - k + 1, W - k + 1]: the eigenvectors v_i of the patches' covariance over the roots of their
    eigenvalues, and the same with the other sign, so that a ReLU keeps both halves. Before `fit` the filters are the
    patches' own pixels. It takes the place of a layer that would have to learn this in its first hundreds of updates.
    """

    weight: Tensor

    def __init__(self, in_channels: int, kernel: int = 2) -> None:
        super().__init__()
        size = in_channels * kernel**2
        self.register_buffer("weight", torch.cat((torch.eye(size), -torch.eye(size))).view(-1, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(2 * size))

    @torch.no_grad()
    def fit(self, images: Tensor, eps: float = 5e-4) -> None:
        """Sets the filters by `images`, float [N, C, H, W], normalised; `eps` is added to the eigenvalues."""
        size, channels, kernel = len(self.weight) // 2, *self.weight.shape[1:3]
        covariance = torch.zeros(size, size, dtype=torch.float64)
        count = 0
        for part in images.split(500):
            patches = part.double().unfold(2, kernel, 1).unfold(3, kernel, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, size)
            covariance += patches.T @ patches
            count += len(patches)
        values, vectors = torch.linalg.eigh(covariance / count)
        largest = vectors.abs().argmax(0)  # the sign of an eigenvector is arbitrary: its largest part is taken as positive
        vectors = vectors * vectors[largest, torch.arange(size)].sign()
        filters = (vectors / (values + eps).sqrt()).T.view(size, channels, kernel, kernel)
        self.weight.copy_(torch.cat((filters, -filters)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {len(self.weight)}, kernel_size={tuple(self.weight.shape[2:])}"


class AtLeast(nn.Module):
    """x, its map brought to `side` positions where it has fewer (each new position the mean of those under it).

    It lets a layer whose kernel is made for the published size take smaller images.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height >= self.side and width >= self.side:
            return x
        return nn.functional.adaptive_avg_pool2d(x, (max(height, self.side), max(width, self.side)))

    def extra_repr(self) -> str:
        return f"side={self.side}"


class Towers(nn.Module):
    """Parallel towers over the same input, their outputs concatenated along the channels (Szegedy et al. 2014, figure 2b).

    [N, C, H, W] -> [N, sum of the towers' channels, H', W']; the towers must agree in H' and W'.
    """

    def __init__(self, *towers: nn.Module) -> None:
        super().__init__()
        for place, tower in enumerate(towers, 1):
            self.add_module(f"tower{place}", tower)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([tower(x) for tower in self._modules.values() if tower is not None], dim=1)


def sequence(**layers: nn.Module) -> nn.Sequential:
    """A chain of named layers, in the order of the arguments."""
    chain = nn.Sequential()
    for name, layer in layers.items():
        chain.add_module(name, layer)
    return chain


def he_normal_(model: nn.Module) -> nn.Module:
    """Initialises in place as He et al. 2015b ("Delving deep into rectifiers", equation 10), used by he2015 sections 3.4 and 4.2.

    Weights of convolutions and of the classifier: zero-mean Gaussian of standard deviation sqrt(2 / fan_in), where fan_in
    is inputs per output (kernel size times input channels per group). Biases 0; normalisation scale 1, offset 0.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model
