"""Recomputation in a fused network: maps that the backward pass needs are made again, bit for bit, instead of kept. Layer 2.

A convolution needs its input again for its weights' gradient, a normalisation its own. Of the four maps that a basic unit keeps
so, two come out of a normalisation: with its statistics kept, one pass over memory makes such a map again. The two others
are results of convolutions and cost a convolution each. So a stage can be spared in two ways:

    without convolutions   keeps their results and the output of every k-th unit; what a normalisation gave is made again, and
                           so are the other outputs. Nearly free.
    with convolutions      keeps the output of every k-th unit; all else is made again.

Each map is made once, when it is first asked for. Unlike a second forward pass this takes no statistics anew and makes nothing
that nobody asks for.

Whatever is made again is a function of the same inputs through the same loops, so gradients do not change by a bit. A map
that nothing is known about, or that was written to after it was made, is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

__all__ = ["Kept", "SparingStage", "current", "kept_bytes"]


class Kept:
    """A tensor that is needed later: its `value`, or else what makes it. It is made once, without gradient."""

    __slots__ = ("chain", "make", "value")

    def __init__(self, value: Tensor | None = None, make: Callable[[], Tensor] | None = None, chain: int = 0) -> None:
        self.value, self.make, self.chain = value, make, chain

    def get(self) -> Tensor:
        if self.value is None:
            assert self.make is not None
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                self.value = self.make()
            self.make = None  # and with it what it held of other maps
        return self.value


class _Sparing(TorchFunctionMode):
    """Within it, saved tensors that are known how to be made again are not kept."""

    def __init__(self, every: int, convolutions: bool) -> None:
        super().__init__()
        self.every, self.convolutions = every, convolutions
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Kept]] = {}  # by address; an address lives as long as its tensor
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> _Sparing:
        _stack.append(self)
        self._hooks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._hooks.__exit__(kind, error, trace)
        _stack.pop()
        self._known.clear()

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if self.convolutions and function is torch.conv2d and not kwargs and isinstance(result, Tensor) and result.requires_grad:
            source, dtype = self.handle(args[0]), result.dtype
            # in the precision of autocast; and no reference to the input itself, which is not to be kept
            rest = [*(_plain(value, dtype) for value in args[1:3]), *args[3:]]
            self.learn(result, Kept(make=lambda: torch.conv2d(source.get().to(dtype), *rest)))
        return result

    def convolution(self, y: Tensor, x: Tensor, make: Callable[[Tensor], Tensor]) -> None:
        """Says that `y` is what `make` gives for `x`, at the cost of a convolution."""
        if self.convolutions:
            source = self.handle(x)
            self.learn(y, Kept(make=lambda: make(source.get())))

    def norm(self, y: Tensor, x: Tensor, h: Tensor | None, make: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        """Says that `y` is what `make` gives for `x` and `h`; if h is given, y is a unit's output."""
        beside = None if h is None else self.handle(h)
        chain = 0 if beside is None else beside.chain + 1
        if chain and chain >= self.every:
            self.learn(y, Kept(y.detach()))
            return
        source = self.handle(x)
        self.learn(y, Kept(make=lambda: make(source.get(), None if beside is None else beside.get()), chain=chain))

    def keep(self, y: Tensor) -> None:
        """Keeps `y` itself, for others use it from here on."""
        known = self._recall(y)
        if known is not None and known.value is None:
            known.value, known.make = y.detach(), None
            if _counted:
                _counted[-1](y)

    def handle(self, tensor: Tensor) -> Kept:
        return self._recall(tensor) or Kept(tensor.detach())

    def learn(self, tensor: Tensor, kept: Kept) -> None:
        self._known[tensor.data_ptr()] = (weakref.ref(tensor), tensor._version, kept)

    def _recall(self, tensor: Tensor) -> Kept | None:
        reference, version, kept = self._known.get(tensor.data_ptr(), (None, 0, None))
        alive = reference() if reference is not None else None
        if alive is None or tensor._version != version or tensor.shape != alive.shape or tensor.stride() != alive.stride():
            return None
        return kept if tensor.dtype == alive.dtype else None

    def _pack(self, tensor: Tensor) -> Tensor | Kept:
        known = self._recall(tensor)
        if _counted and (known is None or known.value is not None):
            _counted[-1](tensor)
        return tensor.detach() if known is None else known


_stack: list[_Sparing] = []
_counted: list[Callable[[Tensor], object]] = []


def current() -> _Sparing | None:
    """What spares memory just now, if anything."""
    return _stack[-1] if _stack else None


@contextmanager
def kept_bytes(count: Callable[[Tensor], object]) -> Iterator[None]:
    """Within it `count` is called with every tensor that is kept for the backward pass, spared stages included."""

    def pack(tensor: Tensor) -> Tensor:
        count(tensor)
        return tensor.detach()  # a result that its own node keeps would hold that node, and both would stay for good

    _counted.append(count)
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        _counted.pop()


class SparingStage(nn.Module):
    """A stage whose maps are made again in the backward pass, with `convolutions` or without; the output of each `every` units is
    kept. Shares the layers of `stage`, which consists of fused units."""

    def __init__(self, stage: nn.Module, every: int, *, convolutions: bool) -> None:
        super().__init__()
        self.stage, self.every, self.convolutions = stage, every, convolutions

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return self.stage(x)
        with _Sparing(self.every, self.convolutions) as sparing:
            y: Tensor = self.stage(x)
            sparing.keep(y)
        return y

    def extra_repr(self) -> str:
        return f"every={self.every}, convolutions={self.convolutions}"


def _unpack(kept: Tensor | Kept) -> Tensor:
    return kept.get() if isinstance(kept, Kept) else kept


def _plain(parameter: Any, dtype: torch.dtype) -> Any:
    return None if parameter is None else parameter.detach().to(dtype)
