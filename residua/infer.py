"""A network made ready for inference: normalisation folded, ReLU and addition fused, bf16 where that is native. Layer 3.

The network is rewritten by its vocabulary. A chain becomes a chain of folded layers; a unit that adds becomes one layer less,
for its addition and its ReLU are computed with the branch's last convolution; a plain unit is opened. Any other module is
kept with its children rewritten, or as it is, in float32, if it has weights of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from residua import heads, kernels, native, winograd
from residua.affine import Folded, folded, scaled
from residua.network import Head, Network
from residua.packed import Joined, Layer, layer_of
from residua.replay import Recurring
from residua.shortcuts import ZeroPad
from residua.unit import Add, SampledAdd, Unit

__all__ = ["Prepared", "multiplies_bf16", "precision_here", "prepared", "prepared_parts", "ready"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MIXED = (nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Layers that take bf16 signals with float32 weights."""
_WIDE = (nn.LocalResponseNorm,)
"""Layers without weights that torch does not compute in bf16."""


SIZES = 2
"""That are replayed: full batches and the last one."""


class Prepared(Network):
    """A network for inference, in evaluation mode for good: images [N, C, H, W] -> logits [N, K], in the precision
    of the classifier.

    `features` gives maps of the `dtype` in which it computes. It does not follow later changes of the weights of the network that
    it was made from: prepare it anew. No gradient passes through it.
    """

    dtype: torch.dtype
    recurring: Recurring | None = None

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if self.dtype != torch.bfloat16 or not winograd.preferred():
                return self._logits(x)
            self.recurring = self.recurring or Recurring(self, kept=SIZES)
            logits: Tensor = self.recurring(self._logits, x)
            return logits.clone()  # the next replay writes over its own

    def _logits(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        assert isinstance(logits, Tensor)
        return logits

    def train(self, mode: bool = True) -> Prepared:
        """Leaves it in evaluation mode."""
        return super().train(False)

    def _maps(self, x: Tensor, *args: Any) -> list[Tensor]:
        with torch.no_grad():
            x = x.to(self.dtype)  # in two steps, for torch is slow in one
            return super()._maps(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, *args)


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bf16 natively, as far as torch knows (AVX-512 bf16 or AMX)."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)


def precision_here(precision: str, device: torch.device) -> str:
    """The precision in which a network of a plan in `precision` ("fp32" or "bf16") is used on `device`: that of the plan, and
    fp32 in place of bf16 on a processor that would have to emulate it."""
    return "fp32" if device.type == "cpu" and not multiplies_bf16() else precision


def ready(network: Network, precision: str, device: torch.device, *, exact: bool = False) -> Network:
    """`network`, which lies on `device`, as it scores images: `prepared` in the precision that `precision_here` gives for
    `precision`; itself if `exact` or on another device than the CPU."""
    if exact or device.type != "cpu":
        return network
    return prepared(network, precision_here(precision, device))


def prepared(network: Network, dtype: torch.dtype | str = torch.float32) -> Network:
    """`network` for inference in `dtype` (float32, bfloat16, float64; or "fp32", "bf16"), on the device where it lies.

    It computes what `network.eval()` computes, up to rounding; the classifier works in the network's own precision. Weights
    that nothing is folded into may be shared. `network` is left as it was; it is returned itself if a module of it has hooks, for
    those read or change signals that fused layers do not have, or if it is a network of another class.
    """
    rewriter = _rewriter(network, dtype)
    if rewriter is None:
        return network
    with torch.no_grad():
        return rewriter.network(network)


def prepared_parts(network: nn.Module, parts: Sequence[nn.Module], dtype: torch.dtype | str) -> list[nn.Module] | None:
    """Modules of `network`, or made of such, each by itself as `prepared` makes it, for signals in `dtype` and channels-last
    order; None where `prepared` would give the network itself."""
    rewriter = _rewriter(network, dtype)
    if rewriter is None:
        return None
    with torch.no_grad():
        return [rewriter.module(part).eval() for part in parts]


def _rewriter(network: nn.Module, dtype: torch.dtype | str) -> _Rewriter | None:
    """None for what is not to be rewritten: networks with hooks, and of another class."""
    if type(network) is not Network or any(_hooked(module) for module in network.modules()):
        return None
    return _Rewriter(DTYPES[dtype] if isinstance(dtype, str) else dtype, network.head.classifier)


class _Classifier(nn.Linear):
    """The last linear layer, in the precision of its weights whatever the signal's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class _Head(Head):
    """A head whose means and scores are taken in float32 by loops of our own, where these read the map."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.classifier.weight, self.classifier.bias
        reads = x.dtype == torch.bfloat16 and weight.dtype == torch.float32 and weight.is_contiguous()
        if not (reads and native.laid_out(x)) or _hooked(self.classifier):
            return super().forward(x)
        return heads.scores(heads.means(x), weight, bias)


class _Kept(nn.Module):
    """A module that is computed as it is, in the precision of its weights."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, *inputs: Any) -> Any:
        return self.module(*(x.to(self.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs))


class _Rewriter:
    """Modules as they are for inference in `dtype`, but for the `classifier`."""

    def __init__(self, dtype: torch.dtype, classifier: nn.Module | None) -> None:
        self.dtype, self.classifier = dtype, classifier

    def network(self, network: Network) -> Network:
        """The whole, hooks or not."""
        clone = _copied(network, Prepared)
        clone.dtype = self.dtype
        clone.stem, clone.head = self.module(network.stem), self.module(network.head)
        clone.stages = nn.ModuleList(self.module(stage) for stage in network.stages)
        clone.auxiliaries = nn.ModuleList()
        ready: Network = clone.eval()
        return ready

    def module(self, module: nn.Module) -> nn.Module:
        layers = self.chain([module])
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def chain(self, layers: list[nn.Module]) -> list[nn.Module]:
        """The layers of a chain. A unit may write over its input if that was made by the layer before it in the same chain."""
        found: list[nn.Module] = []
        for layer in folded(layers):
            found.append(self.layer(layer, owned=bool(found) and _makes_new(found[-1])))
        return found

    def layer(self, layer: nn.Module | Folded, *, owned: bool) -> nn.Module:
        if isinstance(layer, Folded):
            return self.weighted(layer)
        if type(layer) is Unit and type(layer.merge) in (Add, SampledAdd) and layer.shortcut is not None:
            return self.sum(layer, layer.shortcut, owned)
        return self.other(layer)

    def weighted(self, found: Folded) -> nn.Module:
        if found.layer is not self.classifier:
            return layer_of(found, self.dtype)
        return _copied(found.layer, _Classifier)

    def sum(self, unit: Unit, shortcut: nn.Module, owned: bool) -> nn.Module:
        branch = folded([unit.branch])
        last = branch[-1] if branch else None
        if not isinstance(last, Folded) or last.relu:
            return self.other(unit)
        if isinstance(unit.merge, SampledAdd):
            last = scaled(last, 1 - unit.merge.drop)
        before = nn.Sequential(*(self.layer(layer, owned=False) for layer in branch[:-1]))
        h, post = self.module(shortcut), folded([unit.post])
        relu = bool(post) and type(post[0]) is nn.ReLU
        reads_own = any(_makes_new(layer) for layer in before)
        return Joined(
            before, layer_of(last, self.dtype), h,
            nn.Sequential(*(self.layer(layer, owned=False) for layer in post[relu:])),
            relu=relu, overwrite=reads_own and (owned if isinstance(h, nn.Sequential) and not len(h) else _makes_new(h)),
        )  # fmt: skip

    def other(self, module: nn.Module) -> nn.Module:
        """A module that the vocabulary does not name."""
        if type(module) is nn.MaxPool2d and self.dtype == torch.bfloat16 and winograd.preferred() and kernels.available():
            return kernels.fused(_whole(module))
        if type(module) is Head and self.dtype == torch.bfloat16 and winograd.preferred() and heads.obstacle() is None:
            return self.children(_copied(module, _Head), module)
        own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None and t.is_floating_point()]
        if (own and not isinstance(module, _MIXED)) or isinstance(module, _WIDE):
            wide = own[0].dtype if own else torch.promote_types(self.dtype, torch.float32)
            return _Kept(_whole(module), wide) if wide != self.dtype else _whole(module)
        return self.children(_copied(module), module)

    def children(self, clone: nn.Module, module: nn.Module) -> nn.Module:
        """Gives a copy of `module` its children, rewritten."""
        clone._modules = {name: None if child is None else self.module(child) for name, child in module._modules.items()}
        return clone


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _makes_new(layer: nn.Module) -> bool:
    """Whether what the layer gives is a tensor of its own, that nothing else holds."""
    if isinstance(layer, Joined):
        return not len(layer.post) or _makes_new(layer.post[-1])
    return isinstance(layer, (Layer, nn.MaxPool2d, kernels.Pool)) or (isinstance(layer, ZeroPad) and layer.extra > 0)


def _copied(module: nn.Module, kind: type[nn.Module] | None = None) -> Any:
    """A copy (as a `kind`) that shares weights but not the tables of children and weights, in evaluation mode."""
    kind = kind or type(module)
    clone = kind.__new__(kind)
    own = {table: dict(module.__dict__[table]) for table in ("_modules", "_parameters", "_buffers")}
    clone.__dict__.update({**module.__dict__, **own, "training": False})
    return clone


def _whole(module: nn.Module) -> nn.Module:
    """A copy of the module and all in it that shares their weights."""
    clone: nn.Module = _copied(module)
    clone._modules = {name: None if child is None else _whole(child) for name, child in module._modules.items()}
    return clone
