"""Transforms of batches; every draw is keyed by (seed, epoch, sample). Layer 1.

A transform changes a batch on its device: images uint8 [N, C, S, S] before `normalized`, float after it. `draws` are int64 [N],
the samples' places in their split (plus N times the occurrence where a sampler repeats them). How single images are cut
and resized before is said in `residua.views`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor
from torch.nn import functional as F

from residua import keyed, normalizing
from residua.recipe import Augment

__all__ = [
    "Mix",
    "area_factor",
    "colour_change",
    "crop_and_flip",
    "cutout",
    "flip",
    "flips",
    "mixed",
    "normalized",
    "resized",
    "scale_at",
]

CACHED = 2**19
"""Values that are normalised at a time, so that they stay in the cache on their way."""

# Eigenvalues and eigenvectors of the RGB covariance over ImageNet's training pixels in [0, 1] (Krizhevsky et al. 2012,
# section 4.1; the figures that fb.resnet.torch uses).
PCA_VALUES = (0.2175, 0.0188, 0.0045)
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


@dataclass(frozen=True)
class Key:
    """What every draw of a run's epoch starts from."""

    seed: int
    epoch: int


def _reflected(size: int, pad: int, device: torch.device) -> Tensor:
    """The places 0 .. size - 1 with `pad` < size reflected ones at either side: 2 1 0 1 2 ... (the border itself not twice)."""
    places = torch.arange(-pad, size + pad, device=device).abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


def flips(augment: Augment, key: Key, draws: Tensor) -> Tensor:
    """Which samples are mirrored, bool [N]: by a coin for each epoch, or, alternating, by one coin and then in turns."""
    if not augment.alternate:
        return _coin(key, draws, "flip")
    return _coin(Key(key.seed, 0), draws, "flip") ^ bool(key.epoch % 2)


def crop_and_flip(images: Tensor, pad: int, mirrored: Tensor | None, fill: Tensor | None, key: Key, draws: Tensor) -> Tensor:
    """Pads by `pad` pixels of colour `fill` (uint8 [C]; None: by reflection at the border), crops at a random place, mirrors
    those of the images that `mirrored`, bool [N], says.

    The padding of he2015 section 4.2 is zero after the mean is subtracted: `fill` is the mean colour. The wide residual
    networks pad by reflection.
    """
    n, channels, height, width = images.shape
    if fill is None:
        down, across = (_reflected(size, pad, images.device) for size in (height, width))
        padded = images[:, :, down][:, :, :, across]
    else:
        padded = F.pad(images, (pad, pad, pad, pad)) if pad else images
    if pad and fill is not None and bool(fill.any()):
        inside = torch.zeros(padded.shape[-2:], dtype=torch.bool, device=images.device)
        inside[pad : pad + height, pad : pad + width] = True
        padded = torch.where(inside, padded, fill.view(1, -1, 1, 1))
    top, left = _corner(pad, key, draws)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    if mirrored is not None:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = left[:, None] + columns
    index = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(n, 1, -1).expand(n, channels, -1)
    return padded.flatten(2).gather(2, index).view(n, channels, height, width)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirrors the images that `mirrored`, bool [N], says."""
    if images.is_cuda or not images.is_contiguous(memory_format=torch.channels_last):
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    rows, found = mirrored.nonzero().flatten(), images.clone()
    found.permute(0, 2, 3, 1).index_copy_(
        0, rows, images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2).flip(-1).permute(0, 2, 3, 1)
    )
    return found


def normalized(images: Tensor, normalization: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """(pixel / 255 - mean) / std; a per-pixel mean of another size than the images is replaced by its mean colour."""
    mean, std = normalization["mean"].to(images.device), normalization["std"].to(images.device)
    if mean.shape[-2:] not in ((1, 1), tuple(images.shape[-2:])):
        mean = mean.mean((-2, -1), keepdim=True)
    offset, scale = -mean / std, 1 / (255 * std)
    if offset.shape[-2:] != (1, 1) or not images.is_contiguous(memory_format=torch.channels_last):
        return torch.addcmul(offset, images, scale).to(dtype)
    n, channels, height, width = images.shape  # a row of pixels at a time: three channels alone are too short for vectors
    row_offset, row_scale = (values.expand(channels, 1, width).permute(1, 2, 0).reshape(-1) for values in (offset, scale))
    rows = images.permute(0, 2, 3, 1).reshape(n, height, -1)
    found = torch.empty(rows.shape, dtype=torch.result_type(images, row_scale), device=images.device)
    few = max(1, n if images.is_cuda else CACHED // max(1, channels * height * width))
    for part, room in zip(rows.split(few), found.split(few)):  # torch turns bytes into floats of their own before it adds them
        torch.addcmul(row_offset, part, row_scale, out=room)
    return found.view(n, height, width, channels).permute(0, 3, 1, 2).to(dtype)


def colour_change(images: Tensor, strength: float, std: Tensor, key: Key, draws: Tensor) -> Tensor:
    """Adds a multiple of each principal component of RGB to all pixels of an image (Krizhevsky et al. 2012, section 4.1).

    `images` float, normalised by `std`; `strength` is the standard deviation of the three factors (0.1 in the papers). Grey
    images get the mean of the three channels' change.
    """
    component = torch.arange(3, device=images.device)
    factors = strength * keyed.normal(key.seed, key.epoch, draws[:, None], "colour", component[None])
    values = torch.tensor(PCA_VALUES, dtype=torch.float64, device=images.device)
    vectors = torch.tensor(PCA_VECTORS, dtype=torch.float64, device=images.device)
    change = (factors * values) @ vectors.T
    if images.shape[1] == 1:
        change = change.mean(1, keepdim=True)
    return images + (change[:, :, None, None] / std.to(images.device)).to(images.dtype)


def cutout(images: Tensor, side: int, key: Key, draws: Tensor) -> Tensor:
    """Sets a square of `side` pixels, centred anywhere in the image, to zero, which is the mean (DeVries and Taylor 2017)."""
    height, width = images.shape[-2:]
    inside = _box(images, side, side, keyed.integers(0, height, key.seed, key.epoch, draws, "cutout-row"),
                  keyed.integers(0, width, key.seed, key.epoch, draws, "cutout-column"))  # fmt: skip
    return images.masked_fill(inside[:, None], 0)


def transformed(
    images: Tensor, augment: Augment, normalization: Mapping[str, Tensor], key: Key, draws: Tensor
) -> tuple[Tensor, Mix | None]:
    """All batch-wise transforms of a recipe in their order: uint8 [N, C, S, S] -> float32, and how labels were mixed.

    `augment` is resolved (no None). A padding crop and the mirror image are one gather; views have been cut before.
    """
    coins = flips(augment, key, draws) if augment.flip else None
    pad, fill = augment.pad if augment.crop == "pad" and augment.pad else 0, None
    if pad and augment.padding == "mean":
        fill = (normalization["mean"].mean((-2, -1)) * 255).round().to(images.device, torch.uint8)
    if _in_one_pass(images, normalization):
        x = _shown(images, normalization, pad, coins, fill, key, draws)
    else:
        if pad:
            images = crop_and_flip(images, pad, coins, fill, key, draws)
        elif coins is not None:
            images = flip(images, coins)
        x = normalized(images, normalization)
    if augment.colour:
        x = colour_change(x, augment.colour, normalization["std"], key, draws)
    if augment.cutout:
        x = cutout(x, augment.cutout, key, draws)
    if augment.mixup or augment.cutmix:
        return mixed(x, augment.mixup, augment.cutmix, key, draws)
    return x, None


def _in_one_pass(images: Tensor, normalization: Mapping[str, Tensor]) -> bool:
    """Whether the loop of our own takes these images."""
    ordered = images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)
    plain = images.device.type == "cpu" and images.dtype == torch.uint8 and len(images) > 0 and ordered
    return plain and normalization["mean"].shape[-2:] == (1, 1) and normalizing.obstacle() is None


def _shown(
    images: Tensor, normalization: Mapping[str, Tensor], pad: int, coins: Tensor | None, fill: Tensor | None, key: Key,
    draws: Tensor,
) -> Tensor:  # fmt: skip
    """What `crop_and_flip`, or `flip`, and `normalized` make of images."""
    channels = images.shape[1]
    every = torch.arange(256, dtype=torch.uint8).expand(channels, 256).view(1, channels, 1, 256)
    tables = normalized(every, normalization).reshape(channels, 256)
    if not pad:
        return normalizing.normalized(images, tables, coins)
    top, left = _corner(pad, key, draws)
    outside = None if fill is None else tables.gather(1, fill.long()[:, None])[:, 0]
    return normalizing.normalized(images.contiguous(), tables, coins, top=top, left=left, pad=pad, outside=outside)


def _corner(pad: int, key: Key, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Where the crops from padded images begin, down and across, int64 [N]."""
    down, across = (keyed.integers(0, 2 * pad + 1, key.seed, key.epoch, draws, name) for name in ("top", "left"))
    return down, across


def scale_at(scales: Sequence[tuple[float, float]], progress: float) -> float:
    """The part of its side to which a batch is resized after the share `progress` of the run."""
    return next((scale for share, scale in reversed(scales) if progress >= share), 1.0)


def area_factor(scales: Sequence[tuple[float, float]]) -> float:
    """The mean number of pixels of a run's images over that of images of full size."""
    ends = [share for share, _ in scales[1:]] + [1.0]
    scaled = sum((end - start) * scale**2 for (start, scale), end in zip(scales, ends))
    return scaled + (scales[0][0] if scales else 1.0)


def resized(images: Tensor, scale: float) -> Tensor:
    """Float images [N, C, H, W] at `scale` times their height and width, rounded; bilinear, smoothed; same memory format."""
    size = [max(1, round(scale * side)) for side in images.shape[-2:]]
    if size == list(images.shape[-2:]):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


@dataclass(frozen=True)
class Mix:
    """Soft targets of a mixed batch: sample i counts `weight[i]` for its own label and the rest for `partner[i]`'s."""

    partner: Tensor
    weight: Tensor


def mixed(images: Tensor, mixup: float, cutmix: float, key: Key, draws: Tensor) -> tuple[Tensor, Mix]:
    """Mixes neighbours 2i and 2i + 1 of the batch with each other; a last one without neighbour stays as it is.

    mixup (Zhang et al. 2018): weight w ~ Beta(mixup, mixup), x = w x_i + (1 - w) x_j. cutmix (Yun et al. 2019): a box of area
    1 - w from the neighbour, w then set to the exact share of pixels kept. With both on, each pair tosses a fair coin.
    """
    n = len(images)
    partner = torch.arange(n, device=images.device) ^ 1
    partner = torch.where(partner < n, partner, torch.arange(n, device=images.device))
    leader = torch.minimum(draws, draws[partner])
    cuts = _coin(key, leader, "mix") if mixup and cutmix else torch.full((n,), cutmix > 0, device=images.device)
    weight = _beta(mixup or 1.0, cutmix or 1.0, cuts, keyed.uniform(key.seed, key.epoch, leader, "weight"))
    height, width = images.shape[-2:]
    share = (1 - weight).sqrt()
    inside = _box(images, (share * height).round().long(), (share * width).round().long(),
                  keyed.integers(0, height, key.seed, key.epoch, leader, "row"),
                  keyed.integers(0, width, key.seed, key.epoch, leader, "column"))  # fmt: skip
    kept = 1 - inside.double().mean((1, 2))
    alone = partner == torch.arange(n, device=images.device)
    weight = torch.where(alone, 1.0, torch.where(cuts, kept, weight)).to(images.dtype)
    blend = torch.where(cuts[:, None, None], (~inside).to(images.dtype), weight[:, None, None])[:, None]
    blend = torch.where(alone[:, None, None, None], torch.ones_like(blend), blend)
    return images * blend + images[partner] * (1 - blend), Mix(partner, weight)


def _beta(mixup: float, cutmix: float, cuts: Tensor, uniform: Tensor) -> Tensor:
    """Beta draws by inverse distribution function, on the CPU in double precision, so that they agree on all devices."""
    alpha = torch.where(cuts, cutmix, mixup).double().cpu().numpy()
    return torch.from_numpy(betaincinv(alpha, alpha, uniform.cpu().numpy())).to(uniform.device)


def _coin(key: Key, draws: Tensor, name: str) -> Tensor:
    return keyed.uniform(key.seed, key.epoch, draws, name) < 0.5


def _box(images: Tensor, height: int | Tensor, width: int | Tensor, row: Tensor, column: Tensor) -> Tensor:
    """bool [N, H, W]: true inside the box of `height` x `width` around (row, column), clipped at the border."""
    rows = torch.arange(images.shape[-2], device=images.device)
    columns = torch.arange(images.shape[-1], device=images.device)
    top, left = row - height // 2, column - width // 2
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]
