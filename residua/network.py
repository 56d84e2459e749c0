"""What all image networks share: stem, stages, head; features, head replacement, recomputation, depth order, regions.

Layer 1. Shapes: images [N, in_channels, H, W]; map i of `features` is [N, feature_channels[i], H / r_i, W / r_i] with
r = feature_reductions (sizes that do not divide are rounded up); logits [N, num_classes].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from residua.layers import activation, conv, global_pool, max_pool, norm, sequence

__all__ = ["Head", "Network", "Stage", "imagenet_stem", "small_stem"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Stage(nn.Sequential):
    """Units in series that work at one resolution (the first may reduce it)."""


class Head(nn.Module):
    """Global average pooling, dropout, and a linear classifier: [N, C, H, W] -> [N, num_classes]."""

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(global_pool(x)))


class Network(nn.Module):
    """stem -> stages -> head.

    `feature_channels` and `feature_reductions` describe the map that each stage gives. With `recompute_every = k > 0`
    only the inputs of every k units are kept in training, and what lies between is computed again in the backward pass.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        head: nn.Module,
        *,
        feature_channels: Sequence[int],
        feature_reductions: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.feature_channels = tuple(feature_channels)
        self.feature_reductions = tuple(feature_reductions)
        self.recompute_every = 0

    def features(self, x: Tensor) -> list[Tensor]:
        """One map a stage, from fine to coarse."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = self._run(stage, x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[-1])

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.recompute_every and self.training and torch.is_grad_enabled() and isinstance(stage, nn.Sequential)):
            return stage(x)
        units = list(stage)
        for start in range(0, len(units), self.recompute_every):
            chunk = nn.Sequential(*units[start : start + self.recompute_every])
            x = checkpoint(chunk, x, use_reentrant=False, context_fn=partial(_recompute_contexts, chunk))
        return x

    def replace_head(self, num_classes: int) -> None:
        """A fresh linear classifier for `num_classes` classes, initialised as the paper's; everything else stays."""
        old = self.head.classifier
        assert isinstance(old, nn.Linear)
        new = nn.Linear(old.in_features, num_classes).to(old.weight)
        nn.init.kaiming_normal_(new.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(new.bias)
        self.head.classifier = new

    def depth_order(self) -> Iterator[list[nn.Parameter]]:
        """The parameters in groups from the input to the output: stem, each unit, head."""
        yield list(self.stem.parameters())
        for stage in self.stages:
            for unit in stage if isinstance(stage, nn.Sequential) else [stage]:
                yield list(unit.parameters())
        yield list(self.head.parameters())


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
