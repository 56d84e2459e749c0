"""The receptive field: which positions of the input a position of a map can see in theory, and which it does see. Layer 3.

In theory: operation by operation along the captured graph (`residua.positions`). At a skip the shortest path takes the narrower
way, the longest the wider one; elsewhere all ways are taken together. Positions are those of the axes after batch and channels,
for whole numbers (tokens) of the axis after the batch.

In effect: the gradient of the centre of the map with respect to the input, as Luo et al. 2016 measure it (section 3); most of the
theoretical field hardly counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, fx

from residua.functional import operation
from residua.graph import Captured, module_path, shape_of
from residua.positions import Field, Interval, NotLocalError, after

__all__ = ["Effective", "Receptive", "Whole", "effective_field", "receptive_field"]


@dataclass(frozen=True)
class Whole:
    """What comes after a place where positions lose their own view; `why` says how."""

    path: str
    why: str


@dataclass(frozen=True)
class Receptive:
    """The field of the last map whose positions still have one of their own.

    `node` gives that map and `path` is its place; `axes` says which axis of positions each of its axes follows (None: batch,
    channels); `jump`, `shortest` and `longest` are pixels (or tokens) by axis. `whole` says where and why what follows sees all
    of it (None: nothing follows), `gates` where factors that see the whole input come in on the way, which the field leaves
    aside.
    """

    node: fx.Node
    path: str
    axes: tuple[int | None, ...]
    jump: tuple[float, ...]
    shortest: tuple[int, ...]
    longest: tuple[int, ...]
    whole: Whole | None
    gates: tuple[str, ...]


def receptive_field(captured: Captured, merges: Collection[fx.Node] = ()) -> Receptive | Whole:
    """The receptive field of a captured module with respect to its first input; `merges` are those of its skips.

    Where not even the first map has a field of its own, what is given back says why.
    """
    fields: dict[fx.Node, Field | Whole] = {}
    gates: dict[str, None] = {}
    for node in captured.module.graph.nodes:
        if node.op == "placeholder" and not fields:
            fields[node] = _of_input(node)
        elif node.op == "call_function" and any(source in fields for source in node.all_input_nodes):
            fields[node] = _field(node, fields, node in merges, gates)
    needed = _needed(captured.module.graph)
    local = [node for node in fields if node in needed and _has_positions(node, fields[node])]
    first = next((field for node, field in fields.items() if node in needed and isinstance(field, Whole)), None)
    if not local:
        return first or Whole("", "The output does not depend on the first input.")
    node, field = local[-1], fields[local[-1]]
    assert isinstance(field, Field)
    used = {axis: place for place, axis in enumerate(field.axes) if axis is not None}
    whole = next((f for n, f in fields.items() if n in needed and isinstance(f, Whole) and f.path not in gates), None)
    return Receptive(
        node, _place(node), field.axes,
        tuple(float(field.jumps[axis]) for axis in sorted(used)),
        tuple(field.shortest[axis].width for axis in sorted(used)),
        tuple(field.longest[axis].width for axis in sorted(used)),
        whole, tuple(gates),
    )  # fmt: skip


def _place(node: fx.Node) -> str:
    """The path of the module, or the operation and the module after which it stands."""
    before: fx.Node | None = node
    while before is not None and not module_path(before):
        before = next((source for source in before.all_input_nodes if source.op == "call_function"), None)
    if before is node:
        return module_path(node)
    return f"{operation(node)} after {module_path(before)}" if before is not None else operation(node) or node.name


def _of_input(node: fx.Node) -> Field | Whole:
    value = node.meta.get("val")
    rank = value.dim() if isinstance(value, Tensor) else 0
    first = 2 if isinstance(value, Tensor) and value.is_floating_point() else 1
    if rank <= first:
        return Whole(node.name, "The input has no positions.")
    count = rank - first
    here = (Interval(Fraction(0), Fraction(0)),) * count
    return Field((None,) * first + tuple(range(count)), (Fraction(1),) * count, here, here)


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the output depends on."""
    needed: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _has_positions(node: fx.Node, field: Field | Whole) -> bool:
    return isinstance(field, Field) and any(axis is not None for axis in field.axes) and bool(shape_of(node))


def _field(node: fx.Node, fields: Mapping[fx.Node, Field | Whole], is_skip: bool, gates: dict[str, None]) -> Field | Whole:
    """What the output of a node sees, from what its inputs see."""
    sources = [source for source in node.all_input_nodes if source in fields]
    local = [(source, field) for source in sources if isinstance(field := fields[source], Field)]
    whole = [field for source in sources if isinstance(field := fields[source], Whole)]
    if whole:
        if not local or operation(node) != "mul":
            return whole[0]
        gates[whole[0].path] = None  # a factor that sees everything, such as that of squeeze-and-excitation
    try:
        return after(node, local, is_skip, has_gate=bool(whole))
    except NotLocalError as error:
        return Whole(_place(node), str(error))


@dataclass(frozen=True)
class Effective:
    """`side` of the square, in pixels, that has as many positions as the gradient reaches with more than 4.55 % of its greatest
    strength (as much as is left outside two standard deviations of a normal distribution), from `draws` random inputs."""

    side: float
    draws: int


def effective_field(captured: Captured, receptive: Receptive, draws: int = 2, seed: int = 0) -> Effective:
    """The effective receptive field of the centre of the map that `receptive` names, for the weights as they are.

    Inputs are standard normal, and the channels of the map are weighed by random signs; the strength of a position is the root
    mean square of its gradient over draws and input channels. One forward and backward pass of the captured graph a draw.
    """
    generator = torch.Generator().manual_seed(seed)
    part = _up_to(captured.module, receptive.node)
    inputs = list(captured.example_inputs)
    place = next(number for number, value in enumerate(inputs) if isinstance(value, Tensor))
    strength: Tensor | None = None
    for _ in range(draws):
        x = (
            torch.randn(inputs[place].shape, generator=generator, dtype=inputs[place].dtype)
            .to(inputs[place].device)
            .requires_grad_()
        )
        output = part(*inputs[:place], x, *inputs[place + 1 :])
        centre = output[tuple(slice(None) if axis is None else size // 2 for axis, size in zip(receptive.axes, output.shape))]
        signs = torch.randint(0, 2, centre.shape, generator=generator).to(centre) * 2 - 1
        (gradient,) = torch.autograd.grad((centre * signs).sum(), x)
        squared = gradient.double().square().sum((0, 1))
        strength = squared if strength is None else strength + squared
    assert strength is not None
    reached = int((strength.sqrt() > 0.0455 * strength.max().sqrt()).sum())
    return Effective(reached ** (1 / strength.dim()), draws)


def _up_to(module: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The graph that ends with a node."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for original in module.graph.nodes:
        if original.op != "output":
            copies[original] = graph.node_copy(original, copies.__getitem__)
        if original is node:
            break
    graph.output(copies[node])
    for placeholder in module.graph.nodes:
        assert placeholder.op != "placeholder" or placeholder in copies
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)
