"""What all image networks share: stem, stages, head; features, head replacement, recomputation, depth order, regions.

Layer 1. Shapes: images [N, in_channels, H, W]; map i of `features` is [N, feature_channels[i], H / r_i, W / r_i] with
r = feature_reductions (sizes that do not divide are rounded up); logits [N, num_classes].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from residua.layers import Whitening, activation, conv, global_pool, max_pool, norm, sequence

__all__ = ["Auxiliary", "Head", "Network", "Stage", "fully_connected_head", "imagenet_stem", "recomputed", "small_stem"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Stage(nn.Sequential):
    """Units in series that work at one resolution (the first may reduce it)."""


class Head(nn.Module):
    """Global average pooling, dropout, and a linear classifier: [N, C, H, W] -> [N, num_classes].

    A head of another form takes the place of this one where it ends in a linear layer called `classifier`.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(global_pool(x)))


class Auxiliary(nn.Module):
    """A head on the signal inside the network, for training only (Szegedy et al. 2014, section 5).

    It takes what unit `unit` of stage `stage` gives (both counted from 0); its loss is added with the factor `weight`.
    """

    head: Any  # a module that ends in a linear layer called classifier

    def __init__(self, head: nn.Module, stage: int, unit: int, weight: float) -> None:
        super().__init__()
        self.head, self.stage, self.unit, self.weight = head, stage, unit, weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)

    def extra_repr(self) -> str:
        return f"stage={self.stage}, unit={self.unit}, weight={self.weight:.3g}"


class Network(nn.Module):
    """stem -> stages -> head.

    `feature_channels` and `feature_reductions` describe the map that each stage gives. With `recompute_every = k > 0`
    only the inputs of every k units are kept in training, and what lies between is computed again in the backward pass;
    with `recompute_stages = s` only in the first s stages, whose maps are the largest (None: in all).
    With `auxiliaries` a forward pass in training gives (logits, logits of the first auxiliary head, ...); else it gives the
    logits. `removed_units` are the paths of units that `residua.removal.remove` took out.
    """

    head: Any  # a module that ends in a linear layer called classifier

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        head: nn.Module,
        *,
        feature_channels: Sequence[int],
        feature_reductions: Sequence[int],
        auxiliaries: Iterable[Auxiliary] = (),
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.auxiliaries = nn.ModuleList(auxiliaries)
        self.feature_channels = tuple(feature_channels)
        self.feature_reductions = tuple(feature_reductions)
        self.recompute_every = 0
        self.recompute_stages: int | None = None
        self.removed_units: tuple[str, ...] = ()

    def features(self, x: Tensor) -> list[Tensor]:
        """One map a stage, from fine to coarse."""
        return self._maps(x, [])

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        wanted = [head for head in self.auxiliaries if isinstance(head, Auxiliary)] if self.training else []
        tapped: list[Tensor] = []
        logits = self.head(self._maps(x, tapped, {(aux.stage, aux.unit) for aux in wanted})[-1])
        if not wanted:
            return logits
        return (logits, *(aux(signal) for aux, signal in zip(wanted, tapped)))

    def _maps(self, x: Tensor, tapped: list[Tensor], taps: Collection[tuple[int, int]] = ()) -> list[Tensor]:
        """The map of each stage; what the units of `taps` (stage, unit) give is appended to `tapped`."""
        maps = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            start = 0
            for unit in sorted(unit for place, unit in taps if place == index):
                assert isinstance(stage, nn.Sequential)
                x = self._run(stage[start : unit + 1], x, index)
                tapped.append(x)
                start = unit + 1
            x = self._run(stage[start:] if start and isinstance(stage, nn.Sequential) else stage, x, index)
            maps.append(x)
        return maps

    def _run(self, stage: nn.Module, x: Tensor, index: int) -> Tensor:
        chosen = self.recompute_every and (self.recompute_stages is None or index < self.recompute_stages)
        if not (chosen and self.training and torch.is_grad_enabled() and isinstance(stage, nn.Sequential)):
            return stage(x)
        units = list(stage)
        for start in range(0, len(units), self.recompute_every):
            chunk = nn.Sequential(*units[start : start + self.recompute_every])
            x = recomputed(chunk, chunk, x)
        return x

    def fitted_layers(self) -> list[Any]:
        """The layers whose fixed weights come from the data."""
        return [module for module in self.modules() if isinstance(module, Whitening)]

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Sets what comes from the data before training: `images` are normalised training images, float32 [N, C, H, W]."""
        for layer in self.fitted_layers():
            layer.fit(images)

    def replace_head(self, num_classes: int) -> None:
        """Fresh linear classifiers for `num_classes` classes, initialised as the paper's; everything else stays."""
        for head in (self.head, *(inner.head for inner in self.auxiliaries if isinstance(inner, Auxiliary))):
            old = head.classifier
            assert isinstance(old, nn.Linear)
            new = nn.Linear(old.in_features, num_classes).to(old.weight)
            nn.init.kaiming_normal_(new.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(new.bias)
            head.classifier = new

    def depth_order(self) -> Iterator[list[nn.Parameter]]:
        """The parameters in groups from the input to the output: stem, each unit, head."""
        yield list(self.stem.parameters())
        for stage in self.stages:
            for unit in stage if isinstance(stage, nn.Sequential) else [stage]:
                yield list(unit.parameters())
        yield [*self.head.parameters(), *self.auxiliaries.parameters()]


def recomputed(function: Callable[..., Tensor], layers: nn.Module, *inputs: Any) -> Tensor:
    """What `function` gives for `inputs`, which alone are kept: the rest is computed again in the backward pass.

    `layers` are those that `function` runs; the running statistics of their batch norms are updated once, not twice.
    """
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=partial(_recompute_contexts, layers))


def _recompute_contexts(chunk: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass nothing; for the recomputation, batch norms that leave their running statistics alone."""
    return nullcontext(), _spare_statistics(chunk)


@contextmanager
def _spare_statistics(model: nn.Module) -> Iterator[None]:
    """Within the block batch norms update copies of their running statistics. (To switch the tracking off instead would save
    other tensors than the forward pass did, which recomputation refuses.)"""
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS)]
    kept = [dict(module._buffers) for module in norms]
    for module, buffers in zip(norms, kept):
        module._buffers.update({name: buffer.clone() for name, buffer in buffers.items() if buffer is not None})
    try:
        yield
    finally:
        for module, buffers in zip(norms, kept):
            module._buffers.update(buffers)


def imagenet_stem(in_channels: int, channels: int, *, normalization: str = "batch") -> nn.Module:
    """7x7 convolution at stride 2, normalisation, ReLU, 3x3 max pooling at stride 2 (he2015 table 1): reduces by 4."""
    return sequence(
        conv=conv(in_channels, channels, 7, 2, bias=normalization == "none"),
        norm=norm(channels, kind=normalization),
        act=activation(),
        pool=max_pool(3, 2),
    )


def small_stem(in_channels: int, channels: int, *, normalization: str = "batch") -> nn.Module:
    """3x3 convolution, normalisation, ReLU (he2015 section 4.2), for images of some 8 to 64 pixels: keeps the size."""
    return sequence(
        conv=conv(in_channels, channels, 3, bias=normalization == "none"),
        norm=norm(channels, kind=normalization),
        act=activation(),
    )


def fully_connected_head(
    channels: int, side: int, hidden: Sequence[int], num_classes: int, dropout: float = 0.0, *, dropout_first: bool = False
) -> nn.Sequential:
    """The flattened map of side x side positions, then a layer with ReLU and dropout for each width of `hidden`, then the
    classifier (Krizhevsky et al. 2012, section 3.5): [N, C, H, W] -> [N, num_classes].

    A map of another size than the published input gives is averaged (or repeated) to side x side. `dropout_first` puts each
    dropout before its layer.
    """
    head = sequence(pool=nn.AdaptiveAvgPool2d(side), flatten=nn.Flatten())
    inputs = channels * side * side
    for place, width in enumerate(hidden, 1):
        layers = {f"linear{place}": nn.Linear(inputs, width), f"act{place}": activation()}
        drop = {f"dropout{place}": nn.Dropout(dropout)}
        for name, layer in ({**drop, **layers} if dropout_first else {**layers, **drop}).items():
            head.add_module(name, layer)
        inputs = width
    head.add_module("classifier", nn.Linear(inputs, num_classes))
    return head
