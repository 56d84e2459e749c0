"""One captured graph of a network, for the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def captured(model: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The output, and the number of graphs; raises at the first break."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    y = torch.compile(model, fullgraph=True, dynamic=False, backend=keep)(x)
    torch._dynamo.reset()
    return y, len(graphs)
