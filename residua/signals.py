"""The signal in a captured graph: what depends on the input, what weighs it, gates it, and joins it. Layer 3.

A *weight layer* is an operation that multiplies the signal by a parameter of two or more dimensions (convolution, linear,
embedding), whether that comes as it is, through a transpose, or through weight normalisation; a convolution whose kernel is
itself computed is one too, and so is each call of a recurrent module. Elementwise factors (layer scale, normalisation) are none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from residua.functional import arguments, operation
from residua.graph import Captured, module_path

__all__ = ["RECURRENT", "Signal", "Spot", "common", "gate_base", "is_floating", "is_gate", "read"]

_CONVOLUTIONS = {
    "conv1d", "conv2d", "conv3d", "convolution", "_convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "deform_conv2d", "conv_tbc", "mkldnn_convolution", "cudnn_convolution",
}  # fmt: skip
RECURRENT = {
    "recurrent",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "mkldnn_rnn_layer", "_thnn_fused_lstm_cell",
}  # fmt: skip
_CONTRACTIONS = _CONVOLUTIONS | RECURRENT | {
    "linear", "mm", "addmm", "matmul", "bmm", "baddbmm", "mv", "addmv", "dot", "einsum", "bilinear", "_trilinear", "embedding",
    "embedding_bag", "_embedding_bag", "index", "index_select", "gather", "tensordot", "inner", "chain_matmul", "linear_dynamic",
}  # fmt: skip
_SQUASHING = {"sigmoid", "hardsigmoid", "softmax", "_softmax", "clamp", "hardtanh", "relu6", "clamp_min", "_safe_softmax"}
# What a gate may pass between the function that bounds it and the product.
_CARRIES = {
    "view", "_unsafe_view", "reshape", "expand", "expand_as", "unsqueeze", "squeeze", "permute", "transpose", "t", "getitem",
    "select", "slice", "split", "split_with_sizes", "chunk", "unbind", "contiguous", "clone", "alias", "to", "_to_copy",
    "dropout", "flatten", "unflatten", "upsample_nearest2d", "upsample_bilinear2d", "repeat", "view_as", "type_as",
    "repeat_interleave", "reshape_as",
}  # fmt: skip
# These read the shape of a signal and nothing of its values.
_FORMED = {
    "new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "sym_size", "new_empty_strided",
}  # fmt: skip
# These read the values of their first operand and the form of the second.
_LIKE = {"expand_as", "view_as", "reshape_as", "type_as"}
_AFFINE = {"rsub", "sub", "add", "mul", "div", "neg"}


@dataclass
class Spot:
    """A node of the graph that carries signal.

    `operands` are the spots it reads in order, without constants; `side` those among them that only steer (the gate of a
    product, the computed kernel of a convolution). `weighs` says that it is a weight layer. `dominator` is the nearest spot
    that every way from an input crosses (None: the virtual root), `depth` its own depth under it. `length` is the largest
    number of weight layers on a way from an input, sides left out; `full` the same with them.
    """

    number: int
    node: fx.Node
    name: str
    operands: tuple[int, ...] = ()
    side: frozenset[int] = frozenset()
    weighs: bool = False
    dominator: int | None = None
    depth: int = 1
    length: int = 0
    full: int = 0

    @property
    def carried(self) -> tuple[int, ...]:
        """The operands that are not only steering."""
        return tuple(o for o in self.operands if o not in self.side)


@dataclass
class Signal:
    """The spots in topological order, the spot of each node, and the spots that the outputs read."""

    spots: list[Spot]
    of: dict[fx.Node, int]
    outputs: tuple[int, ...]
    dropped: dict[fx.Node, bool] = field(default_factory=dict)  # of each constant whether dropout made it


def read(captured: Captured) -> Signal:
    """The signal of a captured graph."""
    graph = captured.module.graph
    spots: list[Spot] = []
    of: dict[fx.Node, int] = {}
    heavy: dict[fx.Node, bool] = {}  # constants: whether a parameter of two or more dimensions is in them
    random: dict[fx.Node, bool] = {}
    calls: dict[str, int] = {}  # a recurrent module's call in progress: its spot
    given = iter(captured.example_inputs)
    apart = _taken_apart(captured)
    outputs: tuple[int, ...] = ()
    for node in graph.nodes:
        if node.op == "placeholder":
            if isinstance(next(given, None), Tensor):
                of[node] = len(spots)
                spots.append(Spot(len(spots), node, "input"))
            continue
        if node.op == "output":
            outputs = tuple(dict.fromkeys(of[source] for source in node.all_input_nodes if source in of))
            continue
        operands = tuple(dict.fromkeys(of[source] for source in _read(node) if source in of))
        if not operands or operation(node) in _FORMED:
            heavy[node] = _is_heavy(captured, node, heavy)
            name = operation(node)
            random[node] = (
                "dropout" in name
                or "bernoulli" in name
                or "rand" in name
                or any(random.get(n, False) for n in node.all_input_nodes)
            )
            continue
        call = _recurrent_call(node, apart)
        if call is None:
            calls.clear()
        elif call in calls:
            spot = spots[calls[call]]
            spot.operands = tuple(dict.fromkeys((*spot.operands, *(o for o in operands if o != spot.number))))
            _place(spot, spots)
            of[node] = spot.number
            continue
        spot = Spot(len(spots), node, operation(node), operands)
        if call is not None:
            calls[call], spot.name, spot.weighs = spot.number, "recurrent", True
        else:
            spot.weighs = _weighs(node, spot.name, of, heavy)
            spot.side = _sides(spot, of)
        _place(spot, spots)
        of[node] = spot.number
        spots.append(spot)
    return Signal(spots, of, outputs, random)


def _read(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values a node reads."""
    return node.all_input_nodes[:1] if operation(node) in _LIKE else node.all_input_nodes


def _is_heavy(captured: Captured, node: fx.Node, heavy: dict[fx.Node, bool]) -> bool:
    if node.op != "get_attr":
        return any(heavy.get(source, False) for source in node.all_input_nodes)
    value: Any = captured.module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return isinstance(value, torch.nn.Parameter) and value.dim() > 1


def _recurrent_call(node: fx.Node, apart: set[str]) -> str | None:
    """The call of a recurrent module in which the node stands, where a trace has taken it apart."""
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        if path in apart:
            return str(key)
    return None


def _taken_apart(captured: Captured) -> set[str]:
    """The recurrent modules that are not one operation of the graph."""
    whole = {path for node in captured.module.graph.nodes if operation(node) in RECURRENT for path in [module_path(node)]}
    return set(captured.recurrent - whole)


def _weighs(node: fx.Node, name: str, of: dict[fx.Node, int], heavy: dict[fx.Node, bool]) -> bool:
    if name in _CONVOLUTIONS:
        kernel = arguments(node)[1]
        return kernel in of or heavy.get(kernel, False)
    return name in _CONTRACTIONS and any(heavy.get(source, False) for source in node.all_input_nodes)


def _sides(spot: Spot, of: dict[fx.Node, int]) -> frozenset[int]:
    node = spot.node
    if len(spot.operands) < 2:
        return frozenset()
    if spot.name in _CONVOLUTIONS:
        kernel = arguments(node)[1]
        return frozenset({of[kernel]}) if kernel in of else frozenset()
    if spot.name == "mul":
        gates = [of[a] for a in arguments(node)[:2] if isinstance(a, fx.Node) and is_gate(a)]
        return frozenset(gates) if len(gates) == 1 else frozenset()
    if "unpool" in spot.name:
        return frozenset()
    # Positions and conditions steer what is taken of the others.
    steering = frozenset(of[n] for n in node.all_input_nodes if n in of and not is_floating(n))
    return steering if len(steering) < len(spot.operands) else frozenset()


def _place(spot: Spot, spots: list[Spot]) -> None:
    """Sets dominator, depth and lengths from the operands."""
    spot.dominator = common(spots, spot.operands)
    spot.depth = 1 if spot.dominator is None else spots[spot.dominator].depth + 1
    spot.length = max((spots[o].length for o in spot.carried), default=0) + spot.weighs
    spot.full = max((spots[o].full for o in spot.operands), default=0) + spot.weighs


def common(spots: list[Spot], numbers: tuple[int, ...]) -> int | None:
    """The nearest common dominator; None is the virtual root above all inputs."""
    found: int | None = numbers[0] if numbers else None
    for number in numbers[1:]:
        other: int | None = number
        while found != other:
            if found is None or other is None:
                return None
            if spots[found].depth >= spots[other].depth:
                found = spots[found].dominator
            else:
                other = spots[other].dominator
    return found


def is_floating(node: fx.Node) -> bool:
    """Whether a node gives numbers with a fraction (real or complex); True where that is not known."""
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex()


def is_gate(node: fx.Node) -> bool:
    """Whether the values of a node are bounded by a sigmoid, a softmax or the like: what may steer a product."""
    while True:
        name = operation(node)
        if name in _SQUASHING:
            return name != "clamp_min"
        if name in _CARRIES or (name in _AFFINE and len(node.all_input_nodes) == 1):
            source = arguments(node)[1] if name == "rsub" and isinstance(arguments(node)[1], fx.Node) else arguments(node)[0]
            if not isinstance(source, fx.Node):
                return False
            node = source
            continue
        return False


def gate_base(node: fx.Node) -> fx.Node:
    """The node of which a gate is an affine function: T for T and for 1 - T; for parts of a softmax, which sum to one, the
    softmax."""
    while operation(node) in _AFFINE and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    inner = node
    while operation(inner) in _CARRIES and inner.all_input_nodes:
        inner = inner.all_input_nodes[0]
    return inner if operation(inner) in ("softmax", "_softmax") else node
