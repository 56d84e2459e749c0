"""What can be varied on any network that is built of units: initialisation, start of the branches, stochastic depth, memory.

Layer 2. These act on a network that is already built, so a family has nothing to do for them. What a variation cannot do to a
network is refused with the reason.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence

from torch import nn

from residua.errors import RequestError
from residua.layers import Scale, Shift, sequence
from residua.network import Head, Network
from residua.removal import remove
from residua.unit import Add, SampledAdd, Unit, walk

__all__ = ["INITIALIZERS", "OPTIONS", "STARTS", "vary"]

INITIALIZERS = ("he", "lecun", "glorot", "orthogonal", "gaussian")
STARTS = ("zero_gamma", "skipinit", "rezero", "layerscale", "fixup")

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU)


def vary(
    network: Network,
    *,
    initializer: str | None = None,
    start: str | None = None,
    stochastic_depth: float = 0.0,
    kept_units: int = 0,
    recompute_every: int = 0,
    recompute_stages: int | None = None,
    removed_units: Sequence[str] = (),
) -> None:
    """Changes `network` in place.

    `initializer` draws all weights anew (biases stay): "he" (standard deviation sqrt(2 / fan_in); He et al. 2015b), "lecun"
    (sqrt(1 / fan_in); LeCun et al. 1998), "glorot" (uniform within sqrt(6 / (fan_in + fan_out)); Glorot and Bengio 2010),
    "orthogonal" (gain 1; Saxe et al. 2014), or "gaussian" (standard deviation 0.01 whatever the fan; Krizhevsky et al. 2012,
    section 5).

    `start` is how additive branches begin, all other weights as they are: "zero_gamma" (the last layer of each branch at zero, a
    normalisation's scale if that is what it ends with; Goyal et al. 2017, section 5.1), "skipinit" and "rezero" (a learned
    factor 0 on each branch; De and Smith 2020, without normalisation, and Bachlechner et al. 2020), "layerscale" (a learned
    factor a channel, 0.1 up to 18 units, 1e-5 up to 24, 1e-6 beyond; Touvron et al. 2021, section 2), or "fixup" (Zhang et al.
    2019, section 3, without normalisation).

    `stochastic_depth` in [0, 1) is the last unit's probability of being dropped in training; unit l of L has l / L of it
    (Huang et al. 2016, equation 4). `kept_units` = k > 0 keeps exactly k of the L additive units in each forward pass in
    training instead, drawn anew, and scales each branch by k / L in evaluation: training on paths of about k / 2 units
    (veit2016 section 5).

    `recompute_every` = k > 0 keeps only the inputs of every k units in training and computes the rest again in the backward
    pass: the same gradients in less memory, for about a third more time (Chen et al. 2016, "Training Deep Nets with Sublinear
    Memory Cost": least memory at about the square root of the number of units). With `recompute_stages` = s only the first s
    stages do so, whose maps are the largest and cost no more to compute than later ones.

    `removed_units` are the paths of units that are taken out for good, before all else (`residua.removal.remove`): those whose
    input can stand in for their output. What is left keeps its names.
    """
    remove(network, removed_units)
    if not isinstance(recompute_every, int) or recompute_every < 0:
        raise RequestError(f"recompute_every is a number of units, 0 for none, not {recompute_every!r}.")
    if recompute_stages is not None and not (type(recompute_stages) is int and 1 <= recompute_stages <= len(network.stages)):
        raise RequestError(f"recompute_stages is a number of stages, 1 to {len(network.stages)}, not {recompute_stages!r}.")
    network.recompute_every, network.recompute_stages = recompute_every, recompute_stages
    if initializer is not None:
        _initialize(network, initializer)
    if start is not None:
        _start(network, start)
    if not isinstance(stochastic_depth, (int, float)) or not 0 <= stochastic_depth < 1:
        raise RequestError(f"stochastic_depth is a probability in [0, 1), not {stochastic_depth!r}.")
    if stochastic_depth:
        units = _additive(network, "stochastic depth")
        for index, unit in enumerate(units):
            unit.merge = SampledAdd(stochastic_depth * (index + 1) / len(units))
    if kept_units:
        _sample_together(network, kept_units, stochastic_depth)


OPTIONS = {name: option for name, option in inspect.signature(vary).parameters.items() if name != "network"}


def _additive(network: nn.Module, what: str) -> list[Unit]:
    """The units that add; refuses a network that has none."""
    units = [found.unit for found in walk(network) if isinstance(found.unit.merge, (Add, SampledAdd))]
    if not units:
        raise RequestError(f"This network has no unit that adds its branch to a shortcut, which {what} needs.")
    return units


def _sample_together(network: Network, kept_units: int, stochastic_depth: float) -> None:
    units = _additive(network, "kept_units")
    if type(kept_units) is not int or not 1 <= kept_units <= len(units):
        raise RequestError(f"kept_units is a number of additive units, 1 to {len(units)} here, not {kept_units!r}.")
    if stochastic_depth:
        raise RequestError("stochastic_depth and kept_units each say which units are kept in training: give one of them.")
    for unit in units:
        unit.merge = SampledAdd(1 - kept_units / len(units), together=kept_units)


def _initialize(network: Network, kind: str) -> None:
    if kind not in INITIALIZERS:
        raise RequestError(f"initializer {kind!r} is none of {', '.join(map(repr, INITIALIZERS))}.")
    for module in network.modules():
        if not isinstance(module, _WEIGHTED):
            continue
        fan_in = module.weight[0].numel()
        fan_out = module.weight[:, 0].numel() // getattr(module, "groups", 1)
        if kind == "he":
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
        elif kind == "lecun":
            nn.init.normal_(module.weight, std=math.sqrt(1 / fan_in))
        elif kind == "glorot":
            bound = math.sqrt(6 / (fan_in + fan_out))
            nn.init.uniform_(module.weight, -bound, bound)
        elif kind == "gaussian":
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.orthogonal_(module.weight)


def _start(network: Network, kind: str) -> None:
    if kind not in STARTS:
        raise RequestError(f"start {kind!r} is none of {', '.join(map(repr, STARTS))}.")
    units = _additive(network, f"start={kind!r}")
    if kind in ("skipinit", "fixup") and any(isinstance(module, _NORMS) for module in network.modules()):
        raise RequestError(f"start={kind!r} takes the place of normalisation: build the network with normalization='none'.")
    if kind == "zero_gamma":
        for unit in units:
            _zero_last(unit.branch)
    elif kind == "fixup":
        _fixup(network, units)
    else:
        for unit in units:
            unit.branch = _followed_by(unit.branch, scale=_factor(kind, unit.branch, len(units)))


def _factor(kind: str, branch: nn.Module, units: int) -> Scale:
    if kind != "layerscale":
        return Scale(0.0)
    last = [module for module in _leaves(branch) if isinstance(module, (*_WEIGHTED, *_NORMS))][-1]
    value = 0.1 if units <= 18 else 1e-5 if units <= 24 else 1e-6
    return Scale(value, last.weight.shape[0], axis=-1 if isinstance(last, (nn.Linear, nn.LayerNorm)) else 1)


def _followed_by(branch: nn.Module, **layers: nn.Module) -> nn.Module:
    """The branch with further layers at its end; names inside it stay where it is a chain that has none of theirs."""
    taken = isinstance(branch, nn.Sequential) and any(hasattr(branch, name) for name in layers)
    chain = branch if isinstance(branch, nn.Sequential) and not taken else sequence(layers=branch)
    for name, layer in layers.items():
        chain.add_module(name, layer)
    return chain


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (inner for inner in module.modules() if not list(inner.children()))


def _in_series(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a chain of chains, in the order in which they run."""
    if not isinstance(module, nn.Sequential):
        yield module
        return
    for part in module:
        yield from _in_series(part)


def _zero_last(branch: nn.Module) -> None:
    parts = list(_in_series(branch))
    trained = [index for index, part in enumerate(parts) if any(True for _ in part.parameters())]
    last = parts[trained[-1]] if trained else branch
    if not isinstance(last, (*_WEIGHTED, *_NORMS)):
        raise RequestError("start='zero_gamma' needs branches that end with one layer or normalisation: use rezero.")
    if any(isinstance(after, _ACTIVATIONS) for after in parts[trained[-1] :]):
        raise RequestError("start='zero_gamma' would leave a branch that ends with its activation without gradient: use rezero.")
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def _fixup(network: Network, units: list[Unit]) -> None:
    """Rules 1 to 3 of Zhang et al. 2019, on top of the weights as they are: the last layer of each branch and the classifier at
    zero; the other layers of a branch of m layers scaled by L^(-1 / (2m - 2)) for L branches; a scalar bias before each layer
    and activation (the network's first layer excepted) in the place of the layers' own biases, and at the end of each branch a
    scalar factor, with a bias for the activation after the addition."""
    for unit in units:
        parts = list(_in_series(unit.branch))
        layers = [part for part in parts if isinstance(part, _WEIGHTED)]
        inside = sum(isinstance(module, _WEIGHTED) for module in unit.branch.modules())
        if not layers or len(layers) != inside:
            raise RequestError("start='fixup' needs branches that are chains of layers, to count the layers of each.")
        for layer in layers[:-1]:
            layer.weight.data.mul_(len(units) ** (-1 / (2 * len(layers) - 2)))
        nn.init.zeros_(layers[-1].weight)
        unit.branch = _followed_by(_shifted(unit.branch), scale=Scale(1.0), shift=Shift())
        if isinstance(unit.shortcut, (nn.Sequential, *_WEIGHTED)):
            unit.shortcut = _shifted(unit.shortcut)
    if isinstance(network.stem, nn.Sequential):
        network.stem = _shifted(network.stem, first=False)
    for stage in (stage for stage in network.stages if isinstance(stage, nn.Sequential)):
        for place, module in enumerate(stage):
            if isinstance(module, (nn.Sequential, *_WEIGHTED, *_ACTIVATIONS)):
                stage[place] = _shifted(module)
    nn.init.zeros_(network.head.classifier.weight)
    nn.init.zeros_(network.head.classifier.bias)
    if isinstance(network.head, Head):
        network.head.dropout = sequence(dropout=network.head.dropout, shift=Shift())


def _shifted(chain: nn.Module, first: bool = True) -> nn.Sequential:
    """The chain with a scalar bias before each layer and activation (`first`: before the first layer too), and layers without
    their own."""
    result = nn.Sequential()
    for name, layer in chain.named_children() if isinstance(chain, nn.Sequential) else [("layer", chain)]:
        if isinstance(layer, _WEIGHTED):
            layer.register_parameter("bias", None)
        if first and isinstance(layer, (*_WEIGHTED, *_ACTIVATIONS)):
            result.add_module(f"shift_{name}", Shift())
        result.add_module(name, _shifted(layer, first) if isinstance(layer, nn.Sequential) else layer)
        first = first or any(isinstance(module, _WEIGHTED) for module in layer.modules())
    return result
