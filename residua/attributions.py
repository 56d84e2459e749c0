"""Which pixels a network's score rests on: Grad-CAM and integrated gradients, computed by captum. Layer 1.

Any network will do: the map for Grad-CAM is found by watching one forward pass, and is told apart by module and call, so that one
ReLU that is used everywhere does not matter; captum is given a tap of ours on a copy of that map, so that neither does an
operation in place. Only hooks are used, for the time of the computation, and the model is left as it was.

Shapes: images [N, C, H, W], normalised, so that zero is the mean colour; targets int64 [N].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from captum import attr  # type: ignore[import-untyped]
from torch import Tensor, nn

__all__ = ["Integrated", "Place", "grad_cam", "integrated_gradients", "last_map"]


@dataclass(frozen=True)
class Place:
    """Where a map of features stands: the module that gives it, its path, which of its calls (from 0), the map's [C, H, W]."""

    path: str
    module: nn.Module
    call: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients: `values` like the images; `completeness` float64 [N], their sum less the change of the score from the
    baseline to the image, which is 0 for an exact integral; `change` float64 [N], that change; `steps` of the integral."""

    values: Tensor
    completeness: Tensor
    change: Tensor
    steps: int

    def error(self) -> float:
        """The mean of |completeness| over the mean of |change|."""
        return float(self.completeness.abs().mean() / self.change.abs().mean().clamp_min(1e-300))


def last_map(model: nn.Module, image: Tensor) -> Place | None:
    """The last map [N, C, H, W] of more than one position that a module gives for `image` [1, C, H, W]; None where there is none
    (a network of vectors or sequences)."""
    found: list[Place] = []
    calls: dict[nn.Module, int] = {}
    paths = {module: path for path, module in model.named_modules()}

    def see(module: nn.Module, _: Any, output: Any) -> None:
        call = calls.get(module, 0)
        calls[module] = call + 1
        if isinstance(output, Tensor) and output.dim() == 4 and output.is_floating_point() and output[0, 0].numel() > 1:
            found[:] = [Place(paths[module], module, call, tuple(output.shape[1:]))]  # type: ignore[arg-type]

    handles = [module.register_forward_hook(see) for module in paths if module is not model]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


class _Tap(nn.Module):
    """Hands on what it is given, and counts the calls of the module that it stands behind."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return x


@contextmanager
def _tapped(place: Place) -> Iterator[_Tap]:
    """Within the block a tap hands on the map of `place`, and what comes after it works on a copy. `calls` is to be set to 0
    before each forward pass."""
    tap = _Tap()

    def pass_on(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        tap.calls += 1
        return tap(output).clone() if tap.calls == place.call + 1 else None

    handle = place.module.register_forward_hook(pass_on)
    try:
        yield tap
    finally:
        handle.remove()


def grad_cam(model: nn.Module, images: Tensor, targets: Tensor, place: Place) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2): the map of `place`, each channel weighed by the mean gradient of the
    target's score, summed, its positive part, bilinearly at the size of the images: [N, H, W], of at least 0."""
    with _tapped(place) as tap, torch.enable_grad():

        def forward(x: Tensor) -> Tensor:
            tap.calls = 0
            return model(x)

        maps = attr.LayerGradCam(forward, tap).attribute(images, target=targets, relu_attributions=True)
        large = attr.LayerAttribution.interpolate(maps, tuple(images.shape[-2:]), interpolate_mode="bilinear")
    return large[:, 0].detach()


def integrated_gradients(model: nn.Module, images: Tensor, targets: Tensor, steps: int = 64, batch: int = 64) -> Integrated:
    """Integrated gradients of the target's score along the straight line from the mean colour (Sundararajan et al. 2017, equation
    1), by Gauss-Legendre quadrature with `steps` points, at most `batch` images at a time."""
    baseline = torch.zeros_like(images)
    with torch.enable_grad():
        values, apart = attr.IntegratedGradients(model).attribute(
            images, baseline, target=targets, n_steps=steps, internal_batch_size=max(batch, len(images)),
            return_convergence_delta=True,
        )  # fmt: skip
    with torch.no_grad():
        chosen = torch.arange(len(images), device=images.device)
        change = model(images)[chosen, targets].double() - model(baseline)[chosen, targets].double()
    return Integrated(values.detach(), apart.detach().double(), change, steps)
