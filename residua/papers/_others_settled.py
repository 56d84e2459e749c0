"""What structure settles of VGG, and how GoogLeNet's layers are counted. Layer 4."""

from __future__ import annotations

from torch import nn

from residua.claims import Outcome
from residua.layers import Towers
from residua.papers._settled import on_meta, parameters, settled
from residua.printed import published

NETS = {"A": "vgg11", "A-LRN": "vgg11_lrn", "B": "vgg13", "C": "vgg16_c", "D": "vgg16", "E": "vgg19"}
SIZES = "The six networks are built; their parameters, in millions, are those of table 1 to the nearest whole number."


def sizes() -> Outcome:
    family = next(entry for entry in published("others").values["architecture"] if entry["id"] == "vgg_family")
    rows = [
        {
            "network": name,
            "printed": family["params_m"][name],
            "built": parameters(entry),
            "noted": family["params_exact"].get(name),
        }
        for name, entry in NETS.items()
    ]
    holds = all(round(row["built"] / 1e6) == row["printed"] and row["noted"] in (None, row["built"]) for row in rows)
    why = ", ".join(f"{row['network']} {row['built']:,}" for row in rows)
    return settled(holds, f"Parameters: {why}.", rows=rows)


KERNELS = (
    "One position of the output is differentiated through three 3x3 layers and through one 7x7 layer: both see 7 x 7 "
    "positions; the "
    "weights are 27 C^2 and 49 C^2, counted for 64 channels."
)


def kernels() -> Outcome:
    deep = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(3)))
    wide = nn.Conv2d(64, 64, 7, padding=3, bias=False)
    seen = []
    for layers in (deep, wide):
        for weight in layers.parameters():
            nn.init.constant_(weight, 0.01)
        x = wide.weight.new_ones(1, 64, 15, 15).requires_grad_(True)
        layers(x)[0, 0, 7, 7].backward()
        assert x.grad is not None
        rows, columns = x.grad[0, 0].nonzero().T
        seen.append([int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1])
    weights = [sum(weight.numel() for weight in layers.parameters()) for layers in (deep, wide)]
    holds = seen == [[7, 7], [7, 7]] and weights == [27 * 64**2, 49 * 64**2] and round(100 * (weights[1] / weights[0] - 1)) == 81
    more = 100 * (weights[1] / weights[0] - 1)
    return settled(
        holds,
        f"Both see 7 x 7 positions; {weights[0]:,} against {weights[1]:,} weights, {more:.0f} % more.",
        seen=seen,
        weights=weights,
    )


LAYERS = "GoogLeNet is built: on its longest way from image to scores lie 22 layers with weights, and 5 poolings, which makes 27."


def googlenet_layers() -> Outcome:
    """The convolutions of the stem, two layers on the longest way through each Inception module, and the classifier."""
    network = on_meta("googlenet", auxiliary=False)
    stem = sum(isinstance(module, nn.Conv2d) for module in network.stem.modules())
    modules = [module for module in network.stages.modules() if isinstance(module, Towers)]
    longest = [max(sum(isinstance(m, nn.Conv2d) for m in tower.modules()) for tower in module.children()) for module in modules]
    depth = stem + sum(longest) + 1
    pools = 1 + sum(isinstance(m, nn.MaxPool2d) and m.stride == 2 for m in network.modules())
    counted = f"{stem} in the stem, {sum(longest)} in {len(modules)} modules, 1 classifier: {depth}"
    said = f"{counted}; with {pools} poolings {depth + pools}."
    return settled(depth == 22 and depth + pools == 27, said, weighted=depth, poolings=pools)
