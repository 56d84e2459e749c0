"""Modules made to mislead the census, each with the count that a reader of its forward pass gives, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RIGHT", "UNKNOWN", "Net", "in_a_loop", "one_relu"]


class Net(nn.Module):
    """Layers of 4 maps for a forward pass that a test writes: convolutions a, b, c, a normalisation, one ReLU in place."""

    def __init__(self, run: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.wide, self.few = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 2, 1)
        self.norm, self.relu, self.drop = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.matrix, self.offset = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 1, 1))
        self.head = nn.Parameter(torch.zeros(3, 256))
        self.register_buffer("fixed", torch.randn(1, 4, 8, 8))
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def in_a_loop(net: Net, x: Tensor) -> Tensor:
    for layer in (net.a, net.b, net.c):
        x = x + layer(x)
    return x


def shared(net: Net, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + net.b(net.relu(net.a(x)))
    return x


def in_place(net: Net, x: Tensor) -> Tensor:
    out = net.a(x)
    out += x
    more = net.b(out)
    return out.add_(more)


def one_relu(net: Net, x: Tensor) -> Tensor:
    x = net.relu(x + net.b(net.relu(net.a(x))))
    return net.relu(x + net.c(net.relu(net.norm(x))))


def overwritten(net: Net, x: Tensor) -> Tensor:
    """The ReLU in place changes what the shortcut carries: it starts behind it."""
    x = net.a(x)
    return x + net.b(net.relu(x))


def gate(net: Net, x: Tensor) -> Tensor:
    t = torch.sigmoid(net.b(x))
    return t * net.relu(net.a(x)) + (1 - t) * x


def gate_by_lerp(net: Net, x: Tensor) -> Tensor:
    return torch.lerp(x, net.relu(net.a(x)), torch.sigmoid(net.b(x)))


def gate_by_difference(net: Net, x: Tensor) -> Tensor:
    return x + torch.sigmoid(net.b(x)) * (net.relu(net.a(x)) - x)


def gated_pools(net: Net, x: Tensor) -> Tensor:
    t = torch.sigmoid(net.a(x))
    return t * F.max_pool2d(x, 3, 1, 1) + (1 - t) * F.avg_pool2d(x, 3, 1, 1)


def excited(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return y * torch.sigmoid(net.b(y.mean((2, 3), keepdim=True)))


def attended(net: Net, x: Tensor) -> Tensor:
    q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (net.a, net.b, net.c))
    return F.scaled_dot_product_attention(q, k, v)


def some_channels(net: Net, x: Tensor) -> Tensor:
    wide = net.wide(net.relu(net.a(x)))
    return torch.cat([wide[:, :4] + x, wide[:, 4:]], 1)


def dense(net: Net, x: Tensor) -> Tensor:
    maps = [x]
    for layer in (net.a, net.b, net.c):
        maps.append(layer(sum(torch.cat(maps, 1).split(4, 1))))
    return torch.cat(maps, 1)


def zero_start(net: Net, x: Tensor) -> Tensor:
    nn.init.zeros_(net.norm.weight)
    return F.linear(torch.flatten(x + net.norm(net.a(x)), 1), net.head)


def silenced(net: Net, x: Tensor) -> Tensor:
    return x + net.b(F.relu(net.a(x) - 1000 * net.offset.abs() - 1000))


def written_out_activation(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y * (1 + torch.tanh(y + y**3))) + net.c(F.relu(net.b(F.relu(net.a(x)))))


def written_out_projection(net: Net, x: Tensor) -> Tensor:
    y = net.wide(x)
    return y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-5) + net.wide(F.relu(net.a(x)))


def written_out_norm(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    centred = y - y.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() + x


RIGHT: list[tuple[str, Callable[[Net, Tensor], Any], dict[str, int]]] = [
    ("three blocks in a loop", in_a_loop, {"add, identity": 3}),
    ("one block used three times", shared, {"add, identity": 3}),
    ("sums in place", in_place, {"add, identity": 2}),
    ("one ReLU everywhere, in place", one_relu, {"add, identity": 2}),
    ("a ReLU in place on what the shortcut carries", overwritten, {"add, identity": 1}),
    ("times one", lambda net, x: x * 1 + net.a(x), {"add, identity": 1}),
    ("times two", lambda net, x: x * 2 + net.a(x), {"add, scaled": 1}),
    ("a stack summed", lambda net, x: torch.stack([x, net.a(x)]).sum(0), {"add, identity": 1}),
    ("a stack of three averaged", lambda net, x: torch.stack([x, net.a(x), net.b(x)], -1).mean(-1), {"add, identity": 2}),
    ("a stack that is read one by one", lambda net, x: torch.stack([x, net.a(x)]).amax(0), {"concatenate, identity": 1}),
    ("a difference", lambda net, x: x - net.a(x), {"add, identity": 1}),
    ("a sum with a factor", lambda net, x: torch.add(x, net.a(x), alpha=0.5), {"add, identity": 1}),
    ("a product and a sum in one", lambda net, x: torch.addcmul(x, net.a(x), net.offset), {"add, identity": 1}),
    ("layer scale on the branch", lambda net, x: x + net.offset * net.a(x), {"add, identity": 1}),
    ("normalisation after the sum", lambda net, x: net.norm(x + net.a(x)), {"add, identity": 1}),
    ("normalisation written out", written_out_norm, {"add, identity": 1}),
    ("a sum of a list", lambda net, x: sum([x, net.a(x), net.c(net.b(x))]), {"add, identity": 2}),
    ("a number", lambda net, x: net.a(x) + 1, {}),
    ("a parameter", lambda net, x: net.a(x) + net.offset, {}),
    ("a buffer", lambda net, x: net.a(x) + net.fixed, {}),
    ("noise", lambda net, x: net.a(x) + torch.randn_like(x), {}),
    ("a constant beside the signal", lambda net, x: torch.cat([net.a(x), net.fixed.expand_as(x)], 1), {}),
    ("a skip over nothing", lambda net, x: net.a(x + x), {}),
    ("a skip over an activation", lambda net, x: net.a(x + F.relu(x)), {}),
    ("a skip over a normalisation", lambda net, x: net.a(x + net.norm(x)), {}),
    ("a skip over a pooling", lambda net, x: net.a(x + F.avg_pool2d(x, 3, 1, 1)), {}),
    ("a branch that nobody reads", lambda net, x: (x + net.b(x), net.a(x))[1], {}),
    ("two outputs", lambda net, x: (net.a(x), net.b(x) + x), {"add, identity": 1}),
    ("a dictionary of outputs", lambda net, x: {"one": net.a(x), "two": x - net.b(x)}, {"add, identity": 1}),
    ("dropout that is off", lambda net, x: x + net.drop(net.a(x)), {"add, identity": 1}),
    ("dropout that stays on, on the branch", lambda net, x: x + F.dropout(net.a(x), 0.5, True), {"add, identity": 1}),
    ("dropout that stays on, on the shortcut", lambda net, x: F.dropout(x, 0.5, True) + net.a(x), {"add, dropped": 1}),
    ("an average on the shortcut", lambda net, x: F.avg_pool2d(x, 2) + F.max_pool2d(net.a(x), 2), {"add, pooled": 1}),
    ("a projection", lambda net, x: net.wide(x) + net.wide(F.relu(net.a(x))), {"add, projection": 1}),
    ("zero padding", lambda net, x: F.pad(x, (0, 0, 0, 0, 0, 2)) + net.wide(x), {"add, identity": 1}),
    ("zeros put beside", lambda net, x: torch.cat([x, 0 * net.fixed.expand_as(x)[:, :2]], 1) + net.wide(x), {"add, identity": 1}),
    ("one sum, of some channels", some_channels, {"add, identity": 1}),
    ("a part carried past", lambda net, x: torch.cat([x[:, :2], net.few(x)], 1), {"concatenate, identity": 1}),
    ("layers that read all earlier ones", dense, {"concatenate, identity": 3}),
    ("a gate", gate, {"gate, gated": 1}),
    ("a gate by lerp", gate_by_lerp, {"gate, gated": 1}),
    ("a gate by a difference", gate_by_difference, {"gate, gated": 1}),
    ("two pools mixed by a gate", gated_pools, {}),
    ("squeeze and excitation", excited, {}),
    ("swish", lambda net, x: net.a(x) * torch.sigmoid(net.a(x)), {}),
    ("a gated linear unit", lambda net, x: F.glu(net.wide(x), 1), {}),
    ("queries, keys and values", attended, {}),
    ("two linear towers", lambda net, x: net.a(x) + net.b(x), {}),
    ("three linear towers", lambda net, x: net.a(x) + net.b(x) + net.c(x), {}),
    ("towers of several depths", lambda net, x: F.relu(net.a(x)) + net.c(F.relu(net.b(x))), {}),
    ("branch and head that start at zero", zero_start, {"add, identity": 1}),
    ("towers with an activation written out", written_out_activation, {}),
    ("a projection with a normalisation written out", written_out_projection, {"add, projection": 1}),
    ("a branch that a ReLU silences", silenced, {"add, identity": 1}),
    ("a branch without a gradient", lambda net, x: x + net.a(x).detach(), {"add, identity": 1}),
    ("a matrix through einsum", lambda net, x: x + torch.einsum("nchw,cd->ndhw", x, net.matrix), {"add, identity": 1}),
    ("a transposed matrix", lambda net, x: x[..., :4] + F.linear(x[..., :4], net.matrix.t()), {"add, identity": 1}),
]  # fmt: skip


UNKNOWN: list[tuple[str, Callable[[Net, Tensor], Any], str]] = [
    ("a branch times zero", lambda net, x: x + 0 * net.a(x), "the branch does not bear on the output"),
    ("a shortcut cut off again", lambda net, x: torch.cat([x, net.a(x)], 1)[:, 4:], "the bypass does not bear on the output"),
    ("the larger of the two", lambda net, x: torch.maximum(x, net.a(x)), "maximum joins a way that bypasses 1 weight layer"),
    ("one or the other", lambda net, x: torch.where(net.fixed > 0, x, net.a(x)), "where joins a way that bypasses 1 weight"),
    ("an output of whole numbers", lambda net, x: (x + net.a(x)).argmax(1), "no output is a number with a fraction"),
    ("an output that is not finite", lambda net, x: (x + net.a(x)) / 0, "the outputs are not finite"),
]  # fmt: skip
