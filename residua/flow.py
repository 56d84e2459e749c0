"""A network reduced to what paths and drawings read: where signals start, weigh, choose and join. Layer 3.

A flow is a directed acyclic graph. Nodes of the captured graph that neither weigh nor join are left out; the others are listed in
an order in which every step comes after the steps that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Flow", "Step"]

_NUM_INPUTS = {"source": (0, 0), "layer": (1, None), "choice": (2, 2), "join": (1, None)}


@dataclass(frozen=True)
class Step:
    """One node of the reduced graph.

    `kind` is "source" (an input of the network, or a constant), "layer" (a weight layer; with several inputs, such as an
    attention or recurrent layer that counts as one, all are taken), "choice" (the merge of a skip: exactly two inputs, the
    bypass and the branch), or "join" (several inputs, no skip: all are taken). `inputs` are numbers of earlier steps. `label`
    is for people: a module path or an operation. `skip` is, of a choice, the index of the skip in the census. `shape` is that of
    the output without the batch; `group` the stage or block in which the step stands, by its module path.

    What drawings say of it: `detail` is a layer in the words of figure 3 of he2015, such as "3×3 conv, 64, /2", or how a join
    joins, such as "concat" ("": unknown), `before` what changes the resolution without weights between its first input (of a
    choice: the bypass) and it, such as ("max pool, /2",), in order.
    """

    kind: str
    inputs: tuple[int, ...]
    label: str = ""
    skip: int | None = None
    shape: tuple[int, ...] = ()
    group: str = ""
    detail: str = ""
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flow:
    """`steps` in topological order, and `output`, the number of the step that is the network's output.

    A network with several outputs ends in a join of them. Raises ValueError for steps that break these rules.
    """

    steps: tuple[Step, ...]
    output: int

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps):
            if step.kind not in _NUM_INPUTS:
                raise ValueError(f"Step {number} is of the kind {step.kind!r}, which is none of {', '.join(_NUM_INPUTS)}.")
            least, most = _NUM_INPUTS[step.kind]
            if len(step.inputs) < least or (most is not None and len(step.inputs) > most):
                raise ValueError(f"Step {number} is a {step.kind} with {len(step.inputs)} inputs.")
            if any(not 0 <= source < number for source in step.inputs):
                raise ValueError(f"Step {number} reads {step.inputs}; it may read earlier steps only.")
        if not 0 <= self.output < len(self.steps):
            raise ValueError(f"The output is step {self.output} of {len(self.steps)} steps.")
