"""Gates on both ways of the skips of any module, for path-limited backward passes (`residua.gates`). Layer 3.

The module is captured and its skips are found by the census; each way of a skip then has a gate in the captured graph, as the
units of our own networks have. Only skips in series are choices that multiply: where some are nested or stand in parallel towers,
the paths of one length cannot be drawn by choosing skips, and that is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from residua.census import census, wired
from residua.errors import RequestError
from residua.flow import Flow
from residua.gates import Seen, Ways, gate
from residua.graph import capture

__all__ = ["GatedSkips", "in_series"]


class GatedSkips(nn.Module):
    """`module`, called as it is, with a gate on both ways of each skip; `ways` holds the factors.

    It is captured anew for each new number of images, since a captured graph may hold that number. Raises `RequestError` where
    it cannot be captured, or the skips are not in series.
    """

    def __init__(self, module: nn.Module, sample: Tensor) -> None:
        super().__init__()
        self.module = module
        self._graphs: dict[tuple[int, torch.dtype], tuple[fx.GraphModule, dict[fx.Node, tuple[int, int]]]] = {}
        self.names = self._capture(sample)
        self.ways = Ways([], [Seen() for _ in self.names], gated=list(range(len(self.names))), rows=len(self.names))

    def forward(self, images: Tensor) -> Tensor:
        key = (len(images), images.dtype)
        if key not in self._graphs and self._capture(images) != self.names:
            raise RequestError(f"The network has other skips for batches of {len(images)} images.")
        graph, places = self._graphs[key]
        return _Run(graph, places, self.ways).run(images)

    def _capture(self, images: Tensor) -> list[str]:
        found = census(capture(self.module, (images.detach().clone(),)), proof=False)
        if not in_series(found.flow):
            raise RequestError(
                f"Its {len(found.skips)} skips are nested or stand in parallel towers, so that the paths of one length cannot be "
                "drawn by choosing skips."
            )
        network = wired(found)
        assert isinstance(network, fx.GraphModule)
        self._graphs[len(images), images.dtype] = network, _gate_places(network.graph)
        return [skip.merge for skip in found.skips]


def in_series(flow: Flow) -> bool:
    """Whether every way through the network passes every choice: no skip is nested in another or stands in one of many towers."""
    ahead = [0] * len(flow.steps)
    behind = [0] * len(flow.steps)
    for number, step in enumerate(flow.steps):
        ahead[number] = sum(ahead[place] for place in step.inputs) if step.inputs else 1
    behind[flow.output] = 1
    for number in range(len(flow.steps) - 1, -1, -1):
        for place in flow.steps[number].inputs:
            behind[place] += behind[number]
    whole = ahead[flow.output]
    return all(ahead[n] * behind[n] == whole for n, step in enumerate(flow.steps) if step.kind == "choice")


class _Run(fx.Interpreter):
    """Runs a graph with a gate in the place of each product with a factor."""

    def __init__(self, graph: fx.GraphModule, places: dict[fx.Node, tuple[int, int]], ways: Ways) -> None:
        super().__init__(graph)
        self.places, self.ways = places, ways

    def run_node(self, n: fx.Node) -> Any:
        if n not in self.places:
            return super().run_node(n)
        (signal, _), _ = self.fetch_args_kwargs_from_env(n)
        return gate(signal, self.ways, *self.places[n])


def _gate_places(graph: fx.Graph) -> dict[fx.Node, tuple[int, int]]:
    """(skip, way) of each product with a factor."""
    found: dict[fx.Node, tuple[int, int]] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == "factors":
            for line in node.users:
                for factor in line.users:
                    for product in factor.users:
                        row, way = line.args[2], factor.args[2]
                        assert isinstance(row, int)
                        assert isinstance(way, int)
                        found[product] = (row, way)
    return found
