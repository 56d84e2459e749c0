"""What structure settles of resnext: three equal forms, equal costs, and two mistakes. Layer 4."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from residua.claims import Outcome
from residua.papers._settled import images, in_float64, multiply_adds, on_meta, parameters, settled
from residua.printed import published

SETTINGS = {"1x64d": (1, 64), "2x40d": (2, 40), "4x24d": (4, 24), "8x14d": (8, 14), "32x4d": (32, 4)}

FORMS = (
    "A network of 11 layers with 4 paths is built in each of the three forms of figure 3 with the same weights, in "
    "float64: outputs "
    "and gradients by the input agree to 1e-10 of their size."
)


def three_forms() -> Outcome:
    options = {"depth": 11, "cardinality": 4, "width": 3, "outer": 32}
    grouped = in_float64("cifar_resnext", **options)
    x = images(2, 3, 16, "forms")
    expected, worst = _passed(grouped, x), {}
    for form in ("concatenated", "paths"):
        other = in_float64("cifar_resnext", form=form, **options)
        other.load_state_dict(_in_form(form, grouped.state_dict(), options["cardinality"]))
        found = _passed(other, x)
        worst[form] = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected))
    why = ", ".join(f"{form} {error:.1e}" for form, error in worst.items())
    return settled(max(worst.values()) < 1e-10, f"The largest relative difference from the grouped form: {why}.", **worst)


def _passed(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_(True)
    y = model(x)
    (gradient,) = torch.autograd.grad((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum(), x)
    return y.detach(), gradient


def _in_form(form: str, tensors: Mapping[str, Tensor], cardinality: int) -> dict[str, Tensor]:
    """The tensors of the grouped form as those of another: a path's are slices of the channels inside the branch."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(.*\.branch)\.(\w+\d)\.(\w+)", name)
        if not found or found[2] == "norm3" or (found[2] == "conv3" and form == "concatenated"):
            result[name] = tensor
            continue
        branch, layer, kind = found.groups()
        path = f"{branch}.paths.{'tower' if form == 'concatenated' else 'path'}"
        slices = tensor.chunk(cardinality, dim=int(layer == "conv3")) if tensor.dim() else [tensor] * cardinality
        result |= {f"{path}{place}.{layer}.{kind}": part for place, part in enumerate(slices, 1)}
    return result


DEPTH2 = (
    "Four paths of two 3x3 convolutions each with a ReLU between, summed, against one block of the same weights side "
    "by side, in "
    "float64: outputs agree to 1e-12. Of three layers the sum is a block whose middle layer is in groups: a dense one "
    "has 4 times the "
    "weights there."
)


def depth2() -> Outcome:
    paths, d, maps = 4, 3, 8
    weights = images(paths * d, maps, 3, "first"), images(maps, paths * d, 3, "second")
    x = images(2, maps, 6, "depth2")
    conv = nn.functional.conv2d
    dense = conv(conv(x, weights[0], padding=1).relu(), weights[1], padding=1)
    parts = zip(weights[0].chunk(paths, 0), weights[1].chunk(paths, 1))
    summed = torch.stack([conv(conv(x, first, padding=1).relu(), second, padding=1) for first, second in parts]).sum(0)
    error = float((dense - summed).abs().max() / dense.abs().max())
    grouped = on_meta("cifar_resnext", depth=11, cardinality=4, width=8).stages[0].get_submodule("0.branch.conv2")
    middle = sum(parameter.numel() for parameter in grouped.parameters())
    return settled(
        error < 1e-12 and 4 * middle == 9 * 32 * 32,
        f"Relative difference {error:.1e}; the middle layer in 4 groups has {middle} weights, a dense one {9 * 32 * 32}.",
        error=error,
    )


TEMPLATES = (
    "The five networks of 50 and of 101 layers of table 3 are built: the weights of a template of the first stage are "
    "C (256 d + 9 d^2 + "
    "256 d), within 3 % of one another; parameters and multiply-adds of the networks are within 5 %."
)


def templates() -> Outcome:
    weights, spread = {}, {}
    for name, (cardinality, width) in SETTINGS.items():
        branch = on_meta(f"resnext50_{name}").stages[0].get_submodule("1.branch")
        weights[name] = sum(parameter.numel() for parameter in branch.parameters() if parameter.ndim == 4)
        if weights[name] != cardinality * (512 * width + 9 * width**2):
            return settled(False, f"The template {name} has {weights[name]} weights.", weights=weights)
    for depth in (50, 101):
        for word, values in (
            ("parameters", [parameters(f"resnext{depth}_{name}") for name in SETTINGS]),
            ("multiply-adds", [multiply_adds(f"resnext{depth}_{name}", 224) for name in SETTINGS]),
        ):
            spread[f"{depth} layers, {word}"] = max(values) / min(values) - 1
    largest = max(spread.values())
    of_weights = max(weights.values()) / min(weights.values()) - 1
    why = f"The weights of the templates lie within {100 * of_weights:.1f} %, the networks within {100 * largest:.1f} %."
    return settled(of_weights < 0.03 and largest < 0.05, why, weights=weights, spread=spread)


TABLE1 = "Both networks are built: parameters are within 1 % of the printed ones, multiply-adds at 224 pixels within 2 %."


def table1() -> Outcome:
    rows = []
    for row, name in (("resnet-50", "resnet50"), ("resnext-50-32x4d", "resnext50_32x4d")):
        for column, exact in (("params_m", parameters(name) / 1e6), ("flops_g", multiply_adds(name, 224) / 1e9)):
            printed = published("resnext").cell(f"table1/{row}/{column}").value
            rows.append({"cell": f"{row}/{column}", "printed": printed, "built": exact, "error": exact / printed - 1})
    holds = all(abs(row["error"]) < (0.01 if "params" in row["cell"] else 0.02) for row in rows)
    why = ", ".join(f"{row['cell']} {row['built']:.2f} for {row['printed']:g}" for row in rows)
    return settled(holds, f"Built and printed: {why}.", rows=rows)


PATHS = "Networks with 1, 2, 4, 8, 32 and 64 paths are built; each has as many groups in every 3x3 convolution of its branches."


def other_cardinalities() -> Outcome:
    names = {**{f"resnext50_{name}": c for name, (c, _) in SETTINGS.items()}, "resnext101_64x4d": 64}
    groups = {
        name: {
            layer.groups
            for path, layer in on_meta(name).stages.named_modules()
            if isinstance(layer, nn.Conv2d) and path.endswith("branch.conv2")
        }
        for name in names
    }
    holds = all(groups[name] == {cardinality} for name, cardinality in names.items())
    return settled(
        holds, f"The paths are {', '.join(str(c) for c in names.values())}.", groups={n: max(g) for n, g in groups.items()}
    )


FLOPS = (
    "ResNet-50 is built with the stride on the first 1x1 and on the 3x3 of a bottleneck: the multiply-adds are within "
    "0.1 thousand "
    "million of he2015's 3.8 in the first form and within 0.05 of the 4.1 of this paper in the second."
)


def resnet50_flops() -> Outcome:
    first, second = (multiply_adds("resnet50", 224, stride_on=place) / 1e9 for place in ("1x1", "3x3"))
    holds = abs(first - 3.8) < 0.1 and abs(second - 4.1) < 0.05
    return settled(holds, f"On the 1x1 {first:.3f}, on the 3x3 {second:.3f} thousand million.", on_1x1=first, on_3x3=second)


SMALLER = "ResNeXt-29 (8x64d) has fewer parameters than WRN-28-10."


def smaller_than_wrn() -> Outcome:
    ours, wide = parameters("resnext29_8x64d"), parameters("wrn_28_10")
    return settled(ours < wide, f"{ours:,} against {wide:,} parameters.", parameters=[ours, wide])


def blocks() -> dict[str, nn.Module]:
    """Figure 3, with 4 paths."""
    titles = {"paths": "(a) paths, summed", "concatenated": "(b) paths, concatenated", "grouped": "(c) groups"}
    options = {"depth": 20, "cardinality": 4, "width": 32}
    return {title: on_meta("cifar_resnext", form=form, **options).stages[0].get_submodule("1") for form, title in titles.items()}
