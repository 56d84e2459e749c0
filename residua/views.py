"""Views of single images: uint8 [C, H, W] of any size in, uint8 of the size that the network takes out. Layer 1.

A view says what is to be seen of an image once its size is known; the decoder may then hand it the image at a reduced scale
(`images.View`). The views of training are drawn, keyed by (seed, epoch, draw); all numbers of a batch are drawn at once.
Resizing is bilinear with antialiasing, in uint8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from residua import keyed
from residua.augment import Key
from residua.images import View
from residua.recipe import Augment

__all__ = ["CentralView", "SideView", "central_view", "resized", "shorter_side", "train_view", "train_views"]


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """`image` [..., C, H, W] at another size; the channels of a pixel stay side by side where they are."""
    if list(image.shape[-2:]) == [height, width]:
        return image
    if image.is_cuda:
        return V.resize(image, [height, width], antialias=True)
    single = image.dim() == 3
    if single:  # the stride of the leading axis tells torch which order in memory to keep
        image = image.movedim(0, -1).unsqueeze(0).movedim(-1, 1)
    found = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return found[0] if single else found


# ------------------------------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True)
class SideView:
    """The whole image, resized so that its shorter side is `side`, aspect ratio kept.

    Of an image more than 8 times as long as wide only the middle 8:1 is seen: a strip of 1 x 100,000 would fill the memory.
    """

    side: int

    def __call__(self, image: Tensor) -> Tensor:
        return self.show(image, *image.shape[-2:])

    def least(self, height: int, width: int) -> tuple[int, int]:
        """See `images.View`."""
        seen, target = _seen(height, width), self._target(height, width)
        return -(-target[0] * height // seen[0]), -(-target[1] * width // seen[1])

    def show(self, image: Tensor, height: int, width: int) -> Tensor:
        """See `images.View`."""
        seen = _seen(*image.shape[-2:])
        if seen != tuple(image.shape[-2:]):
            image = V.center_crop(image, list(seen))
        return resized(image, *self._target(height, width))

    def _target(self, height: int, width: int) -> tuple[int, int]:
        height, width = _seen(height, width)
        scale = self.side / min(height, width)
        return max(self.side, round(height * scale)), max(self.side, round(width * scale))


def _seen(height: int, width: int) -> tuple[int, int]:
    return min(height, 8 * width), min(width, 8 * height)


@dataclass(frozen=True)
class CentralView:
    """The middle `size` pixels square of the image whose shorter side is `size / fraction` (0.875 gives 224 of 256)."""

    size: int
    fraction: float = 1.0

    def __call__(self, image: Tensor) -> Tensor:
        return self.show(image, *image.shape[-2:])

    def least(self, height: int, width: int) -> tuple[int, int]:
        """See `images.View`."""
        return self._whole.least(height, width)

    def show(self, image: Tensor, height: int, width: int) -> Tensor:
        """See `images.View`."""
        return V.center_crop(self._whole.show(image, height, width), [self.size, self.size])

    @property
    def _whole(self) -> SideView:
        return SideView(round(self.size / self.fraction))

    def keeps(self, images: Tensor) -> bool:
        """Whether the view leaves images of this shape as they are."""
        return self.fraction == 1.0 and images.shape[-2:] == (self.size, self.size)


def shorter_side(image: Tensor, side: int) -> Tensor:
    """`image` [..., C, H, W] as `SideView` shows it."""
    return SideView(side)(image)


def central_view(image: Tensor, size: int, fraction: float = 1.0) -> Tensor:
    """`image` [..., C, H, W] as `CentralView` shows it."""
    return CentralView(size, fraction)(image)


# -------------------------------------------------------------------------------------------------------------- training


def train_views(augment: Augment, size: int, key: Key, draws: Tensor) -> list[View]:
    """The view of each draw, int64 [N], that the recipe's `crop` asks for."""
    keys = (key.seed, key.epoch, draws)
    if augment.crop == "scale-jitter":
        sides = keyed.integers(augment.min_side, augment.max_side + 1, *keys, "side").tolist()
        corners = zip(keyed.uniform(*keys, "top").tolist(), keyed.uniform(*keys, "left").tolist())
        return [_ScaleJitter(size, side, top, left) for side, (top, left) in zip(sides, corners)]
    if augment.crop == "random-resized":
        attempt, each = torch.arange(10), (key.seed, key.epoch, draws[:, None])
        areas = augment.min_area + (1 - augment.min_area) * keyed.uniform(*each, "area", attempt)
        ratios = torch.exp(math.log(4 / 3) * (2 * keyed.uniform(*each, "ratio", attempt) - 1))
        columns = (areas.tolist(), ratios.tolist(), keyed.uniform(*keys, "top").tolist(), keyed.uniform(*keys, "left").tolist())
        return [_RandomResized(size, *row) for row in zip(*columns)]
    return [CentralView(size)] * len(draws)


def train_view(image: Tensor, augment: Augment, size: int, key: Key, draw: int) -> Tensor:
    """The view of one image, uint8 [C, H, W] -> [C, size, size]."""
    return train_views(augment, size, key, torch.tensor([draw]))[0].show(image, *image.shape[-2:])


@dataclass(frozen=True)
class _ScaleJitter:
    """he2015 section 3.4: shorter side `side`, then a crop whose corner lies at the shares `top` and `left` of what is free."""

    size: int
    side: int
    top: float
    left: float

    def least(self, height: int, width: int) -> tuple[int, int]:
        return SideView(self.side).least(height, width)

    def show(self, image: Tensor, height: int, width: int) -> Tensor:
        whole = SideView(self.side).show(image, height, width)
        top = int(self.top * (whole.shape[-2] - self.size + 1))
        left = int(self.left * (whole.shape[-1] - self.size + 1))
        return whole[..., top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class _RandomResized:
    """Szegedy et al. 2015: a crop of area uniform in [min_area, 1] and aspect ratio log-uniform in [3/4, 4/3], resized.

    The first of ten `areas` (shares of the image) and `ratios` that fits, else the largest central crop within the ratios, as
    torchvision does. The crop is placed on the full image; at a reduced scale its sides are rounded to whole pixels there.
    """

    size: int
    areas: list[float]
    ratios: list[float]
    top: float
    left: float

    def least(self, height: int, width: int) -> tuple[int, int]:
        _, _, h, w = self._box(height, width)
        return -(-self.size * height // h), -(-self.size * width // w)

    def show(self, image: Tensor, height: int, width: int) -> Tensor:
        top, left, h, w = self._box(height, width)
        down, across = image.shape[-2] / height, image.shape[-1] / width
        top, bottom = round(top * down), max(round(top * down) + 1, round((top + h) * down))
        left, right = round(left * across), max(round(left * across) + 1, round((left + w) * across))
        return resized(image[..., top:bottom, left:right], self.size, self.size)

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop."""
        for share, ratio in zip(self.areas, self.ratios):
            w, h = round(math.sqrt(height * width * share * ratio)), round(math.sqrt(height * width * share / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(self.top * (height - h + 1)), int(self.left * (width - w + 1)), h, w
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
        return (height - h) // 2, (width - w) // 2, h, w
