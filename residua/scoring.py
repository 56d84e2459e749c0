"""A network's scores on batches of images, by one of the protocols of the papers. Layer 3.

    centre     one crop from the middle
    ten-crop   four corners, the middle, and the mirror images of these five (Krizhevsky et al. 2012, section 4.1)
    six-view   the centre, and it shifted by one pixel up-left and down-right, with their mirror images (Jordan 2024, section 3.5)
    dense      the whole image, the head applied at every place of the last map (he2015 section 3.4; Simonyan and Zisserman 2015)

Shapes: views are uint8 [C, S, S] (centre), [V, C, S, S] (crops) or [C, H, W] of any size (dense); probabilities float32 [N, K].
Nothing here draws from a global generator, changes a network, or leaves one in another mode than it was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from residua.augment import normalized
from residua.batches import Batch, CentralView, evaluation_batches
from residua.dataset import Samples
from residua.errors import RequestError
from residua.infer import Prepared, ready
from residua.network import Head, Network
from residua.recipe import Recipe
from residua.tasks import classify
from residua.views import SideView

__all__ = [
    "CropsView", "DenseScorer", "Scorer", "Scores", "ShiftedView", "SideView", "autocast_for", "averaged", "chosen_device",
    "dense_logits", "dense_scales", "dense_window", "evaluation_view", "grouped_by_shape", "score_crops", "score_whole", "scores",
    "watch",
]  # fmt: skip

CENTRAL_FRACTION = 0.875
"""Side of the crop over the shorter side of the image that it is cut from: 224 of 256."""

WAITING = 8

PAPER_SCALES, PAPER_SIZE = (224, 256, 384, 480, 640), 224
"""The shorter sides at which he2015 section 3.4 tests a network trained at 224 pixels."""

Scorer = Callable[[Network, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------- views


def evaluation_view(recipe: Recipe) -> CentralView:
    """The view by which a run of this (resolved) recipe is measured: the middle 0.875 of the shorter side where it was trained
    on crops of larger images, and the whole shorter side elsewhere."""
    size = recipe.data.image_size
    assert size is not None, "a stored recipe is resolved"
    return CentralView(size, CENTRAL_FRACTION if recipe.augment.crop in ("scale-jitter", "random-resized") else 1.0)


@dataclass(frozen=True)
class CropsView:
    """The four corners and the middle of the image whose shorter side is `size / 0.875`, then, if `mirrored`, the same of its
    mirror image: [C, H, W] -> [5 or 10, C, size, size]."""

    size: int
    mirrored: bool

    def __call__(self, image: Tensor) -> Tensor:
        return self.show(image, *image.shape[-2:])

    def least(self, height: int, width: int) -> tuple[int, int]:
        """See `images.View`."""
        return self._whole.least(height, width)

    def show(self, image: Tensor, height: int, width: int) -> Tensor:
        """See `images.View`."""
        crops = V.ten_crop if self.mirrored else V.five_crop
        return torch.stack(crops(self._whole.show(image, height, width), [self.size, self.size]))

    @property
    def _whole(self) -> SideView:
        return SideView(round(self.size / CENTRAL_FRACTION))


@dataclass(frozen=True)
class ShiftedView:
    """The central view, and the same shifted by one pixel up and left and by one down and right (borders reflected), then, if
    `mirrored`, the mirror images of these three: [C, H, W] -> [3 or 6, C, S, S]."""

    central: CentralView
    mirrored: bool

    def __call__(self, image: Tensor) -> Tensor:
        return self.show(image, *image.shape[-2:])

    def least(self, height: int, width: int) -> tuple[int, int]:
        """See `images.View`."""
        return self.central.least(height, width)

    def show(self, image: Tensor, height: int, width: int) -> Tensor:
        """See `images.View`."""
        centre = self.central.show(image, height, width)
        size = self.central.size
        wide = V.pad(centre, [1, 1, 1, 1], padding_mode="reflect")
        views = torch.stack([centre, *(wide[:, start : start + size, start : start + size] for start in (0, 2))])
        return torch.cat((views, views.flip(-1))) if self.mirrored else views


def dense_scales(size: int, reduction: int) -> tuple[int, ...]:
    """The paper's five shorter sides in proportion to `size`, in whole cells of the last map (`reduction` pixels each)."""
    sides = [reduction * max(1, round(scale * size / PAPER_SIZE / reduction)) for scale in PAPER_SCALES]
    return tuple(dict.fromkeys(sides))


# -------------------------------------------------------------------------------------------------------------- scoring


def score_whole(network: Network, images: Tensor) -> Tensor:
    """Softmax scores of images [N, C, S, S], float32 [N, K]."""
    return network(_laid_out(images)).float().softmax(1)


def score_crops(network: Network, crops: Tensor) -> Tensor:
    """Softmax scores averaged over the V crops of each image, [N, V, C, S, S] -> [N, K]."""
    n, v = crops.shape[:2]
    return score_whole(network, crops.flatten(0, 1)).view(n, v, -1).mean(1)


@dataclass(frozen=True)
class DenseScorer:
    """Softmax of `dense_logits`, averaged with that of the mirror image if `mirrored`: [N, C, H, W] -> [N, K]."""

    window: int
    mirrored: bool

    def __call__(self, network: Network, images: Tensor) -> Tensor:
        own = dense_logits(network, images, self.window).float().softmax(1)
        if not self.mirrored:
            return own
        return (own + dense_logits(network, images.flip(-1), self.window).float().softmax(1)) / 2


def dense_logits(network: Network, images: Tensor, window: int) -> Tensor:
    """The mean over all places of the last map of the logits there, [N, K].

    The global average pooling becomes one over `window` x `window` cells at stride 1, `window` being the side of the last
    map at the size trained for (cut to the map where that is smaller), and the linear classifier a 1x1 convolution. A head of
    another form (the fully connected layers of VGG) is applied to each such window. An image of the size trained for has
    one place and so the logits of the network itself.
    """
    last = network.features(_laid_out(images))[-1]
    height, width = min(window, last.shape[-2]), min(window, last.shape[-1])
    if not isinstance(network.head, Head):
        rows, columns = range(last.shape[-2] - height + 1), range(last.shape[-1] - width + 1)
        places = [network.head(last[:, :, y : y + height, x : x + width]) for y in rows for x in columns]
        return torch.stack(places).mean(0)
    pooled = F.avg_pool2d(last, (height, width), stride=1)
    classifier = network.head.classifier
    assert isinstance(classifier, nn.Linear)
    return F.conv2d(pooled.to(classifier.weight.dtype), classifier.weight[:, :, None, None], classifier.bias).flatten(2).mean(2)


def dense_window(network: Network, channels: int, size: int, scales: Sequence[int], device: torch.device, precision: str) -> int:
    """The `window` of `dense_logits` for a network that was trained at `size` x `size`.

    Raises `RequestError` for a network whose last map is no map, and where the smallest of the scales is too small for it.
    """
    with _measuring(network, device, precision):
        last = network.features(torch.zeros(1, channels, size, size, device=device))[-1]
        if last.ndim != 4:
            raise RequestError(
                "The protocol dense is for convolutional networks; this one has no map that a head could be moved over."
            )
        window, smallest = last.shape[-1], min(scales)
        try:
            dense_logits(network, torch.zeros(1, channels, smallest, smallest, device=device), window)
        except RuntimeError as error:
            raise RequestError(
                f"An image of {smallest} x {smallest} is too small for the network ({error}). Choose larger scales."
            ) from error
    return int(window)


class Scores(NamedTuple):
    """`probabilities` float32 [N, K] and `labels` int64 [N] of the samples that could be read, in the order of their `places`
    int64 [N] in the split; `unreadable` has (name, reason) of the others. All on the CPU."""

    probabilities: Tensor
    labels: Tensor
    places: Tensor
    unreadable: tuple[tuple[str, str], ...]


def scores(
    network: Network,
    batches: Iterable[Batch],
    normalization: Mapping[str, Tensor],
    device: torch.device,
    precision: str,
    scorer: Scorer = score_whole,
) -> Scores:
    """The `Scores` of a network, which lies on `device`, on batches whose views suit `scorer`."""
    unreadable: list[tuple[str, str]] = []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with _measuring(network, device, precision):
        for batch, images in _inputs(batches, normalization, device):
            unreadable += batch.unreadable
            if len(images):
                parts.append((scorer(network, images), batch.labels[batch.valid], batch.draws[batch.valid]))
    if not parts:
        return Scores(torch.empty(0, 0), torch.empty(0).long(), torch.empty(0).long(), tuple(unreadable))
    probabilities, labels, places = (torch.cat(column).cpu() for column in zip(*parts))
    order = places.argsort(stable=True)
    return Scores(probabilities[order], labels[order], places[order], tuple(unreadable))


def averaged(parts: Sequence[Scores]) -> Scores:
    """The mean of several scores of the same split, over the samples that could be read every time."""
    places = parts[0].places
    for part in parts[1:]:
        places = places[torch.isin(places, part.places)]
    rows = [torch.isin(part.places, places) for part in parts]
    total = torch.zeros_like(parts[0].probabilities[rows[0]])
    for part, row in zip(parts, rows):
        total += part.probabilities[row]
    unreadable = dict(item for part in parts for item in part.unreadable)
    return Scores(total / len(parts), parts[0].labels[rows[0]], places, tuple(unreadable.items()))


def watch(
    network: Network,
    samples: Samples,
    indices: Tensor,
    view: CentralView,
    normalization: Mapping[str, Tensor],
    *,
    device: torch.device,
    precision: str,
    batch_size: int,
    workers: int,
    exact: bool = False,
) -> dict[str, float]:
    """Sums over the readable ones of the samples at `indices`: "count", "loss_sum" (cross-entropy in nats), "wrong1" and
    "wrong5" (how often the label is not among the 1 or 5 largest logits). Processes that share a split add theirs up. The
    network is used as `residua.infer.ready` gives it."""
    network = ready(network, precision, device, exact=exact)
    losses, wrong1, wrong5 = [torch.zeros(0)], [torch.zeros(0).bool()], [torch.zeros(0).bool()]
    batches = evaluation_batches(samples, indices, view, batch_size, workers)
    with _measuring(network, device, precision):
        for batch, images in _inputs(batches, normalization, device):
            labels = batch.labels[batch.valid].to(device)
            if len(labels):
                logits = network(_laid_out(images))
                losses.append(classify.loss(logits, labels))
                wrong1.append(~classify.correct(logits, labels))
                wrong5.append(~classify.correct(logits, labels, 5))
    loss = torch.cat([part.cpu() for part in losses]).double()
    wrong = [int(torch.cat([part.cpu() for part in parts]).sum()) for parts in (wrong1, wrong5)]
    return {"count": len(loss), "loss_sum": float(loss.sum()), "wrong1": wrong[0], "wrong5": wrong[1]}


def grouped_by_shape(batches: Iterable[Batch], max_pixels: int) -> Iterator[Batch]:
    """Batches of one image each, of any size, as batches of images of one shape with at most `max_pixels` pixels (but at
    least one image). No more than `WAITING` such batches wait to be filled: then the fullest goes as it is. What is left at the
    end comes in the order of first appearance."""
    waiting: dict[torch.Size, list[Batch]] = {}

    def pixels(shape: torch.Size, more: int = 0) -> int:
        return (len(waiting[shape]) + more) * shape[-2] * shape[-1]

    for batch in batches:
        shape = batch.images.shape
        waiting.setdefault(shape, []).append(batch)
        if pixels(shape, more=1) > max_pixels:
            yield _joined(waiting.pop(shape))
        elif sum(map(pixels, waiting)) > WAITING * max_pixels:
            yield _joined(waiting.pop(max(waiting, key=pixels)))
    yield from map(_joined, waiting.values())


def _joined(batches: list[Batch]) -> Batch:
    images, labels, draws, valid = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "draws", "valid")
    )
    listed = tuple(item for batch in batches for item in batch.unreadable)
    return Batch(batches[0].step, batches[0].epoch, images, labels, draws, valid, listed)


def _inputs(
    batches: Iterable[Batch], normalization: Mapping[str, Tensor], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch with the network's input for its readable images."""
    on_device = {name: values.to(device) for name, values in normalization.items()}
    for batch in batches:
        images = batch.images.to(device, non_blocking=True)
        if not batch.valid.all():
            images = images[batch.valid.to(device)]
        yield batch, normalized(images, on_device) if len(images) else images


def _laid_out(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


@contextmanager
def _measuring(network: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Evaluation mode for every module, without gradients or draws; afterwards each is as it was. A prepared network is left to
    its own precision."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    autocast = nullcontext() if isinstance(network, Prepared) else autocast_for(precision, device)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(), autocast:
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


# ---------------------------------------------------------------------------------------------------------------- devices


def autocast_for(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context for a plan's `precision`: "bf16" computes convolutions and products in bfloat16, all else in float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def chosen_device(name: str | None) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1"); None is the GPU where there is one. Raises `RequestError` for one
    that torch does not know or this machine does not have."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"The device {name!r} cannot be used: {reason} Give cpu, cuda, or leave it out.") from None
    return device
