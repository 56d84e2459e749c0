"""What structure settles of inception_resnet: sizes, expansions, what is no skip, and two ways of scaling. Layer 4."""

from __future__ import annotations

import torch
from torch import nn

from residua.claims import Outcome
from residua.models import create_model
from residua.papers._settled import images, in_float64, on_meta, parameters, settled, skips_of
from residua.unit import Unit, switched_off, walk

SIZES = (
    "Built for 1000 classes: Inception-v4 has 42.7 million parameters, Inception-ResNet-v2 of the paper's figures does "
    "not have 55.8 "
    "million, that of the authors' release does, each rounded to a tenth."
)


def sizes() -> Outcome:
    four, paper = parameters("inception_v4"), parameters("inception_resnet_v2")
    release = parameters("inception_resnet_v2", variant="tensorflow")
    holds = [round(value / 1e6, 1) for value in (four, release)] == [42.7, 55.8] and abs(paper / 1e6 - 55.8) > 1
    said = f"Inception-v4 {four:,}, Inception-ResNet-v2 {paper:,} by the paper's figures and {release:,} by the release."
    return settled(holds, said, inception_v4=four, inception_resnet_v2=paper, release=release)


EXPANSIONS = (
    "Inception-ResNet-v2 is built by its figures: the expansions of the second and third stage have as many maps as "
    "the stage's "
    "input, which is what the stem and the reductions before give: 1152 and 2144, not 1154 and 2048."
)


def expansions() -> Outcome:
    found = []
    for stage in on_meta("inception_resnet_v2").stages:
        units = [module for module in stage.modules() if isinstance(module, Unit)]
        expand = [unit.get_submodule("branch.expand") for unit in units]
        reads = {next(m for m in unit.branch.modules() if isinstance(m, nn.Conv2d)).in_channels for unit in units}
        assert reads == {layer.out_channels for layer in expand if isinstance(layer, nn.Conv2d)}
        found.append(reads.pop())
    return settled(found[1:] == [1152, 2144], f"The stages' units add {found[0]}, {found[1]} and {found[2]} maps.", maps=found)


NO_SKIPS = (
    "The captured graphs are searched for skips: Inception-v3 and Inception-v4 have none that adds or gates, and of those that "
    "concatenate only the poolings of their reductions; Inception-ResNet-v1 has 20 that add, one for each of its units."
)


def no_skips() -> Outcome:
    found = {name: _counted(name) for name in ("inception_v3", "inception_v4", "inception_resnet_v1")}
    bare = all(set(found[name]) <= {"concatenate, pooled"} for name in ("inception_v3", "inception_v4"))
    added = sum(count for kind, count in found["inception_resnet_v1"].items() if kind.startswith("add"))
    listed = {name: ", ".join(f"{count} ({kind})" for kind, count in kinds.items()) for name, kinds in found.items()}
    said = "; ".join(f"{name} {kinds}" for name, kinds in listed.items())
    return settled(bare and added == 20, f"Skips: {said}.", skips=found)


def _counted(name: str) -> dict[str, int]:
    options = {"auxiliary": False} if name == "inception_v3" else {"width": 0.125}
    found = skips_of(name, 3, 75, **options).by_kind
    return {f"{kind}, {way}": count for (kind, way), count in found.items()}


SCALING = (
    "In float64, with all branches off: a chain of units whose shortcuts are scaled by 0.5 (he2016, constant scaling) "
    "shrinks a "
    "non-negative signal by exactly 0.5 a unit, a chain of units whose branches are scaled by 0.1 leaves it as it is."
)


def scaling() -> Outcome:
    shrunk = _left("preact_cifar_resnet", {"depth": 38, "unit": "constant-scaling", "scaling": (0.5, 0.5)}, 16)
    kept = _left("inception_resnet_v1", {"scale": 0.1, "width": 0.125, "num_classes": 10}, 32)
    holds = shrunk["left"] == 0.5 ** shrunk["units"] and kept["left"] == 1.0
    said = f"{shrunk['units']} units with scaled shortcuts leave {shrunk['left']:g}, {kept['units']} with scaled branches"
    return settled(holds, f"{said} {kept['left']:g}.", scaled_shortcut=shrunk, scaled_branch=kept)


def _left(name: str, options: dict[str, object], channels: int) -> dict[str, float]:
    """How much of a signal the longest chain of units of one shape leaves with their branches off."""
    network = in_float64(name, **options)
    stage = network.stages[0]
    units = [found.unit for found in walk(stage)]
    x = images(1, channels, 4, "scaling").abs()
    chain = nn.Sequential(*units)
    with torch.no_grad(), switched_off(*units):
        y = chain(x)
    return {"units": len(units), "left": float(y.norm() / x.norm())}


def units() -> dict[str, nn.Module]:
    """Figures 16 and 17."""
    with torch.random.fork_rng(devices=[]):
        network = create_model("inception_resnet_v2")
    titles = ("Inception-ResNet-A (35 x 35)", "Inception-ResNet-B (17 x 17)")
    return {title: next(iter(walk(stage))).unit for title, stage in zip(titles, network.stages)}
