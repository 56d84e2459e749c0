"""The residual unit of He et al. 2016 (equations 1 and 2), with one more freedom, and the walk over a network's units.

    y_l = h(x_l) + F(x_l)        x_{l+1} = f(y_l)

is written here, once, as  x_{l+1} = post(merge(shortcut(x_l), branch(x_l))).  Layer 0: torch only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from residua import keyed

__all__ = [
    "Add", "BranchOnly", "Concat", "Gate", "Located", "SampledAdd", "Unit", "Unpool", "draw_depth", "switched_off", "walk",
]  # fmt: skip


class Unit(nn.Module):
    """post(merge(shortcut(x), branch(x))): the only place where a skip connection is written.

    `branch` is F, the layers; `shortcut` is h, or None for a plain unit (then it has no shortcut module at all);
    `merge` joins the two (default: addition); `post` is f (default: identity). Further positional inputs (attention masks,
    encoder states) go to the branch only. Shapes are those of the parts; with `Add` shortcut and branch must agree.
    """

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        merge: nn.Module | None = None,
        post: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.merge = merge if merge is not None else BranchOnly() if shortcut is None else Add()
        self.post = post if post is not None else nn.Identity()

    def forward(self, x: Tensor, *extra: Tensor) -> Tensor:
        return self.post(self.merge(None if self.shortcut is None else self.shortcut(x), self.branch(x, *extra)))


class Add(nn.Module):
    """h + F, the merge of residual networks."""

    def forward(self, h: Tensor, f: Tensor) -> Tensor:
        return h + f


class SampledAdd(nn.Module):
    """h + b F in training, b drawn as 0 with probability `drop` and else 1 for the whole batch; h + (1 - drop) F in evaluation.

    Stochastic depth (Huang et al. 2016, equations 2 and 5). The draw sits in a buffer that `draw_depth` fills before a
    forward pass, so that it can be the same on all processes and the captured graph has no random branch. With `together` = k > 0
    the draws of a model's units depend on one another: exactly k of them are kept (veit2016 section 5).
    """

    keep: Tensor
    drop: float

    def __init__(self, drop: float, together: int = 0) -> None:
        super().__init__()
        self.drop, self.together = drop, together
        self.register_buffer("keep", torch.ones(()), persistent=False)

    def forward(self, h: Tensor, f: Tensor) -> Tensor:
        return h + f * (self.keep.to(f.dtype) if self.training else 1 - self.drop)

    def extra_repr(self) -> str:
        return f"drop={self.drop:.3g}"


class BranchOnly(nn.Module):
    """F alone: the merge of a plain unit, which has no shortcut."""

    def forward(self, h: Tensor | None, f: Tensor) -> Tensor:
        return f


class Concat(nn.Module):
    """[h, F] along the channels (axis 1), the merge of dense and U-shaped networks."""

    def forward(self, h: Tensor, f: Tensor) -> Tensor:
        return torch.cat((h, f), dim=1)


class Gate(nn.Module):
    """T F + (1 - T) h with T = sigmoid(transform(h)), the merge of highway networks; the shortcut h is then the identity.

    `transform` maps h to the gate's logits, of the shape of F.
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, h: Tensor, f: Tensor) -> Tensor:
        gate = torch.sigmoid(self.transform(h))
        return gate * f + (1 - gate) * h


class Unpool(nn.Module):
    """F at the positions h and zero elsewhere, the merge of SegNet, whose shortcut hands over positions and no signal.

    h are the indices of a max pooling over windows of side `kernel` (`residua.shortcuts.PoolingIndices`), of the shape of F:
    [N, C, ...] -> [N, C, kernel times each size], in one to three dimensions.
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, h: Tensor, f: Tensor) -> Tensor:
        return {3: F.max_unpool1d, 4: F.max_unpool2d, 5: F.max_unpool3d}[f.dim()](f, h, [self.kernel] * (f.dim() - 2))

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"


@dataclass(frozen=True)
class Located:
    """A unit found in a model.

    `path` is its dotted name, `depth` its level of nesting (0: inside no other unit), `index` its place in the order of
    the walk. `removable` says that the unit can be taken out for good, its input standing in for its output: its shape is
    kept and, where there is a shortcut, that shortcut is the identity.
    """

    index: int
    path: str
    unit: Unit
    depth: int
    removable: bool


def walk(model: nn.Module) -> Iterator[Located]:
    """The units of `model` in the order of its modules, outer before inner."""
    paths: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, Unit):
            depth = sum(path.startswith(outer + ".") or outer == "" for outer in paths)
            yield Located(len(paths), path, module, depth, is_removable(module))
            paths.append(path)


def is_removable(unit: Unit) -> bool:
    """Whether the unit's input could stand in for its output: identity shortcut, or none and an unchanged shape."""
    if isinstance(unit.merge, Concat):
        return False
    if unit.shortcut is not None:
        return isinstance(unit.shortcut, nn.Identity)
    return not shape_changed(unit.branch)


def shape_changed(branch: nn.Module) -> str:
    """What speaks against a chain of layers keeping the shape of its input: another width at the end, a layer that strides, or
    that its layers do not tell. "" where nothing does."""
    layers = [m for m in branch.modules() if getattr(getattr(m, "weight", None), "ndim", 0) > 1]
    widths = [
        getattr(layer, f"{side}_channels", getattr(layer, f"{side}_features", None))
        for layer, side in zip((layers[:1] + layers[-1:]), ("in", "out"))
    ]  # fmt: skip
    if not widths or None in widths:
        return "whether it keeps the shape of the signal cannot be read from its layers"
    if widths[0] != widths[1]:
        return f"it changes the shape of the signal, from {widths[0]} channels to {widths[1]}"
    if any(set(getattr(layer, "stride", ())) - {1} for layer in layers):
        return "it changes the shape of the signal: a layer of it strides"
    return ""


def draw_depth(merges: Iterable[SampledAdd], *keys: int | str) -> None:
    """Draws which branches of the given merges (those of one model, in order) are kept, as a pure function of `keys`."""
    merges = list(merges)
    order = keyed.permutation(len(merges), *keys, "depth together").tolist() if any(m.together for m in merges) else []
    for index, merge in enumerate(merges):
        if merge.together:
            kept = index in order[: merge.together]
        else:
            kept = bool(keyed.uniform(*keys, "depth", index) >= merge.drop)
        merge.keep.fill_(float(kept))


@contextmanager
def switched_off(*units: Unit) -> Iterator[None]:
    """Within the block the branches of `units` count as zero and shapes stay; the model itself is not edited.

    With addition the unit becomes post(shortcut(x)); with concatenation its maps are zero; with a gate (1 - T) x is left;
    with unpooling, and in a plain unit, post(0). The branch is still evaluated, so use this in evaluation mode.
    """
    handles = [unit.branch.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out)) for unit in units]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
