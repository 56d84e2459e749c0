"""Flows by hand, for the tests."""

from __future__ import annotations

from residua.flow import Flow, Step


class Builder:
    """Steps by their kind and inputs."""

    def __init__(self) -> None:
        self.steps: list[Step] = [Step("source", ())]
        self.num_choices = 0

    def add(self, kind: str, *inputs: int, shape: tuple[int, ...] = ()) -> int:
        self.steps.append(Step(kind, inputs, skip=self.num_choices if kind == "choice" else None, shape=shape))
        self.num_choices += kind == "choice"
        return len(self.steps) - 1

    def chain(self, x: int, layers: int) -> int:
        for _ in range(layers):
            x = self.add("layer", x)
        return x

    def flow(self) -> Flow:
        return Flow(tuple(self.steps), len(self.steps) - 1)


def series(num_units: int, layers: int = 2, projections: int = 0) -> Flow:
    """A residual network: a layer, units of which the first few have a projection, a layer."""
    build = Builder()
    x = build.add("layer", 0)
    for unit in range(num_units):
        x = build.add("choice", build.chain(x, int(unit < projections)), build.chain(x, layers))
    build.add("layer", x)
    return build.flow()
