"""A computation recorded as it is made, and made again without the interpreter, on the same memory. Layer 2.

Where maps are small the interpreter takes a tenth of a step: finding the layers, asking what they can take, keeping the graph for
the backward pass. What it calls in the end is the same each time: loops of our own and operations of torch, at the same
addresses. So these calls are recorded once and made again in a row, as CUDA graphs do on a GPU. All that a computation makes lies
in memory of its own, where what is not needed any more makes room for what comes later, as it did in the computation. The calls
are the very same, and so is what they give, to the bit.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.modules import module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from residua import native

__all__ = ["Recurring", "Replay", "recorded"]

_aten = torch.ops.aten
_EMPTY = frozenset(
    {
        _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
        _aten.new_empty_strided.default,
    }
)  # fmt: skip
_MOVES = frozenset(
    {
        _aten.resize_.default, _aten.set_.source_Tensor, _aten.set_.source_Storage,
        _aten.set_.source_Storage_storage_offset,
    }
)  # fmt: skip
BEFORE, AHEAD = 2**25, 2
"""Bytes before calls count, and how many times what a call should take: in a forward pass memory comes first, and calls later."""
_COPIES = frozenset({_aten._to_copy.default, _aten.clone.default})
_UNREPEATABLE = (torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Replay:
    """The calls of a computation in their order, and its `result`, whose tensors each replay fills anew.

    `obstacle` says in a sentence why the computation cannot be made again by its calls; None if it can. Some operations can
    only give new tensors, which are then copied to where the first ones lay: `copied` bytes in all.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Sequence[Any]]] = []
        self.memory: list[Tensor] = []  # loops of our own are called with addresses, which hold nothing
        self.result: Any = None
        self.obstacle: str | None = None
        self.copied = 0

    def __call__(self) -> Any:
        """Makes the calls again, on what lies now in the memory that the computation read; the result."""
        with torch.inference_mode(False), torch.no_grad():
            for function, given in self.calls:
                function(*given)
        return self.result

    @property
    def nbytes(self) -> int:
        """The memory that it holds."""
        return sum(len(block) for block in self.memory)

    def forget(self) -> None:
        """Gives the memory back, where nothing else lies in it."""
        self.calls, self.memory, self.result = [], [], None


def recorded(compute: Callable[[], Any], largest: int | None = None) -> Replay:
    """Calls `compute` and records what it does; its result, any tree of tensors, is that of the replay.

    Its course may not depend on the values of tensors, and those that it is given or finds have to stay where they are; what a
    replay changes, as the statistics of a normalisation, it has changed once. The tensors are those of the CPU. Where calls take
    some times `largest` bytes of memory each, the recording ends early, and what follows is computed as ever.
    """
    recorder = _Recorder(largest)
    with torch.inference_mode(False), native.noted(recorder.note), recorder:
        result = compute()
    replay = recorder.replay
    replay.result, replay.memory = tree_map_only(Tensor, recorder.arena.lasting, result), list(recorder.arena.blocks.values())
    return replay


class Recurring:
    """A computation of `network` that is made many times: the second time it is recorded, from then on it is replayed.

    It is recorded anew for inputs of another shape, and when something else is changed that its course depends on: modules,
    training mode, where the weights lie and which have gradients, precision, threads. It is made as ever where it cannot be
    replayed, where hooks or modes of torch are to see it, and while another thread is at it. The last `kept` sizes are kept.
    """

    LARGEST, COPIED = 2**20, 2**16
    """Bytes for each call, on average. Where there is more memory than the first the interpreter's share is small, and the memory
    better given back; where more is copied than the second, that takes as long as the interpreter."""

    def __init__(self, network: nn.Module, *, kept: int = 1) -> None:
        self.kept = kept
        self.network = weakref.ref(network)  # it may hold this object
        self.course: Any = None
        self.known: dict[Hashable, tuple[list[Tensor], Replay] | None] = {}
        self.lock = threading.Lock()
        self._look()

    def _look(self) -> None:
        """Finds what `_course` asks for."""
        network = self.network()
        assert network is not None, "it is at work"
        everything = list(network.modules())
        self.modules = everything[1:]
        self.hooks = [
            hooks
            for m in everything
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]
        self.tables = [table for m in everything for table in (m._modules, m._parameters, m._buffers) if table]
        self.tensors = list(itertools.chain(network.parameters(), network.buffers()))

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """None: what is recorded are addresses."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def __call__(self, compute: Callable[..., Any], *inputs: Tensor, about: Hashable = None) -> Any:
        """compute(*inputs), a tree of tensors, which the next call may write over. `about` is what else it depends on."""
        if _watched() or self._hooked() or any(type(x) is not Tensor or x.device.type != "cpu" for x in inputs):
            return compute(*inputs)
        if not self.lock.acquire(blocking=False):
            return compute(*inputs)
        try:
            return self._made(compute, inputs, about)
        finally:
            self.lock.release()

    def _made(self, compute: Callable[..., Any], inputs: tuple[Tensor, ...], about: Hashable) -> Any:
        course = self._course()
        if course != self.course:
            self._look()
            self.course = self._course()
            self.known.clear()
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        key = (about, autocast, torch.get_num_threads(), *((x.shape, x.stride(), x.dtype) for x in inputs))
        if key not in self.known:
            if len(self.known) == self.kept:
                del self.known[next(iter(self.known))]
            self.known[key] = None
            return compute(*inputs)
        found = self.known[key]
        if found is None:
            with torch.inference_mode(False):
                standing = [x.detach().clone() for x in inputs]
            replay = recorded(partial(compute, *standing), self.LARGEST)
            result = replay.result
            calls = len(replay.calls)
            if replay.obstacle is None and (replay.nbytes > self.LARGEST * calls or replay.copied > self.COPIED * calls):
                replay.obstacle = "its maps are so large that it would gain nothing"
            if replay.obstacle is not None:
                replay.forget()
                standing = []
            self.known[key] = standing, replay
            return result
        standing, replay = found
        if replay.obstacle is not None:
            return compute(*inputs)
        with torch.inference_mode(False), torch.no_grad():
            for own, given in zip(standing, inputs):
                own.copy_(given)
        return replay()

    def _hooked(self) -> bool:
        return any(self.hooks) or any(
            tensor.requires_grad and (tensor._backward_hooks or tensor._post_accumulate_grad_hooks)  # type: ignore[attr-defined]
            for tensor in self.tensors
        )

    def _course(self) -> Any:
        """What else the course of the computation depends on. Asked at each call, so it has to be quick."""
        return (
            [id(entry) for table in self.tables for entry in table.values()],
            [module.training for module in self.modules],
            [(tensor.data_ptr(), tensor.requires_grad) for tensor in self.tensors],
        )


def _watched() -> bool:
    """Whether something of torch is at work that has to see each operation."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack()
        or torch._C._autograd._top_saved_tensors_default_hooks(False)  # type: ignore[attr-defined]
        or torch.is_anomaly_enabled()
        or module._has_any_global_hook()
    )


class _Recorder(TorchDispatchMode):
    """Records each operation, and has what it makes lie in the arena."""

    def __init__(self, largest: int | None) -> None:
        super().__init__()
        self.replay, self.arena, self.largest = Replay(), _Arena(), largest
        self.free = psutil.virtual_memory().available

    def note(self, function: Callable[..., Any], given: Sequence[Any]) -> None:
        self.replay.calls.append((function, given))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given, results = _tensors((args, kwargs)), _tensors(made)
        self.replay.obstacle = self.replay.obstacle or self._excess() or _obstacle(func, given, results)
        if self.replay.obstacle is not None:
            self.arena.close()
            return made
        held = {_address(tensor) for tensor in given}
        kept = tree_map_only(Tensor, lambda t: t if _address(t) in held else self.arena.like(t), made)
        pairs = [(new, old) for new, old in zip(_tensors(kept), results) if new is not old]
        if func in _EMPTY:
            return kept
        for new, old in pairs:
            new.copy_(old)
        if pairs:
            self.note(*self._repeated(func, self._lasting(args), self._lasting(kwargs), self._lasting(kept)))
        elif func._schema.is_mutable:  # else it gives a view
            self.note(partial(func, **self._lasting(kwargs)), self._lasting(args))
        return kept

    def _excess(self) -> str | None:
        if self.arena.nbytes > self.free // 2:
            return "it takes more than half of the memory that is free"
        calls = len(self.replay.calls)
        if self.largest is not None and self.arena.nbytes > BEFORE + AHEAD * self.largest * calls:
            return "its maps are so large that it would gain nothing"
        return None

    def _lasting(self, value: Any) -> Any:
        return tree_map_only(Tensor, self.arena.lasting, value)

    def _repeated(self, func: Any, args: Any, kwargs: dict[str, Any], kept: Any) -> tuple[Callable[..., Any], Sequence[Any]]:
        """A call that puts the results of `func` to where they are kept."""
        if func in _COPIES:
            return kept.copy_, args[:1]
        into = None if func._schema.is_mutable or not isinstance(kept, Tensor) else _into(func)
        if into is None:
            self.replay.copied += sum(tensor.nbytes for tensor in _tensors(kept))
            return partial(_copied, partial(func, **kwargs), kept), args
        taken = {argument.name for argument in into._schema.arguments}
        return partial(into, **{name: value for name, value in kwargs.items() if name in taken}, out=kept), args


def _obstacle(func: Any, given: Sequence[Tensor], results: Sequence[Tensor]) -> str | None:
    if any(tag in func.tags for tag in _UNREPEATABLE):
        return f"{func} may give something else each time"
    if any(tensor.device.type != "cpu" for tensor in (*given, *results)):
        return f"{func} works on another device than the CPU"
    if func in _MOVES or any(tensor.layout != torch.strided for tensor in results):
        return f"{func} decides where a tensor lies"
    return None


def _into(func: Any) -> Any:
    """The form of an operation that writes to a tensor that it is given; None if it has none of its own: those that torch
    derives from the others copy, too, and may take slower loops."""
    packet, name = func.overloadpacket, func._overloadname
    for wanted in ("out", f"{name}_out"):
        found = getattr(packet, wanted, None) if wanted in packet.overloads() else None
        if found is not None and torch.Tag.generated not in found.tags and _alike(found, func):
            return found
    return None


def _alike(into: Any, func: Any) -> bool:
    """Whether both take the same arguments, but for where the result goes and what that decides, as its type."""
    wanted = [(argument.name, str(argument.type)) for argument in into._schema.arguments if not argument.is_out]
    given = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    return all(argument in given for argument in wanted) and len(into._schema.returns) == 1


def _copied(make: Callable[..., Any], kept: Any, *args: Any) -> None:
    for new, old in zip(_tensors(kept), _tensors(make(*args))):
        new.copy_(old)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    """Of its memory; of itself if torch keeps that to itself (weights packed by oneDNN)."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else -id(tensor)


class _Arena:
    """Memory in blocks. A block is free when no tensor is left that lies in it."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}
        self.free: list[Tensor] = []
        self.nbytes, self.closed = 0, False

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape, order and type; it itself if it has no elements."""
        if not tensor.numel():
            return tensor
        last = sum((side - 1) * step for side, step in zip(tensor.shape, tensor.stride()))
        block = self._block((last + 1) * tensor.element_size())
        claim = block.numpy()  # lives as long as the storage that is made of it
        weakref.finalize(claim, self._give, block).atexit = False
        return _placed(torch.from_numpy(claim), 0, tensor)

    def close(self) -> None:
        """Has each block go when it is free."""
        self.closed = True
        self.blocks.clear()
        self.free.clear()

    def _give(self, block: Tensor) -> None:
        if not self.closed:
            self.free.append(block)

    def _block(self, size: int) -> Tensor:
        """The smallest free one that fits and is not far too large; of such the one that was used last, which the cache may hold
        yet."""
        fitting = [place for place, block in enumerate(self.free) if size <= len(block) <= 2 * size + 4096]
        if fitting:
            return self.free.pop(min(fitting, key=lambda place: (len(self.free[place]), -place)))
        block = torch.empty(size, dtype=torch.uint8)
        self.blocks[block.data_ptr()] = block
        self.nbytes += size
        return block

    def lasting(self, tensor: Tensor) -> Tensor:
        """The same tensor without its claim on its block, and without what autograd knows of it."""
        if tensor.layout != torch.strided:
            return tensor
        block = self.blocks.get(_address(tensor))
        return tensor.detach() if block is None else _placed(block, int(tensor.storage_offset()), tensor)


def _placed(block: Tensor, offset: int, like: Tensor) -> Tensor:
    """A tensor of the shape, order and type of another, in the memory of a block."""
    return torch.empty(0, dtype=like.dtype).set_(block.untyped_storage(), offset, like.shape, like.stride())
