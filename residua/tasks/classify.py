"""Classification: one label an image. Loss and per-sample metrics. Layer 2.

Logits float [N, K]; labels int64 [N] in 0 .. K - 1; everything is computed in float32 or better and returned per sample, so that
whoever averages knows what counts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from residua.augment import Mix

__all__ = ["correct", "loss"]


def loss(
    logits: Tensor, labels: Tensor, *, mix: Mix | None = None, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each sample, float32 [N], with label smoothing (Szegedy et al. 2016) and the soft labels of `mix`.

    `class_weights` [K] multiply the samples of each class; with smoothing they weigh each target class's term.
    """

    def towards(target: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), target, weight=class_weights, label_smoothing=smoothing, reduction="none")

    own = towards(labels)
    if mix is None:
        return own
    weight = mix.weight.float()
    return weight * own + (1 - weight) * towards(labels[mix.partner])


def correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Whether the label is among the `k` largest logits, bool [N]; `k` is cut to the number of classes."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return torch.any(top == labels[:, None], dim=1)
