"""What structure settles of wrn: sizes, their growth, and two mistakes. Layer 4."""

from __future__ import annotations

import itertools

from residua.claims import Outcome
from residua.papers._settled import counts_printed, multiply_adds, on_meta, parameters, settled

COUNTS = "The networks of tables 2, 4, 7 and 8 are built; each printed count is theirs, rounded as it is printed."
BLOCKS = {"B(1,3,1)": 40, "B(3,1)": 40, "B(1,3)": 40, "B(3,1,1)": 40, "B(3,3)": 28, "B(3,1,3)": 22}
TABLE4 = ((40, 1), (40, 2), (40, 4), (40, 8), (28, 10), (28, 12), (22, 8), (22, 10), (16, 8), (16, 10))


def counts() -> Outcome:
    built: dict[str, tuple[str, dict[str, object]]] = {
        f"table2/{kind}/params_m": ("cifar_wide_resnet", {"depth": depth, "width": 2, "block": kind})
        for kind, depth in BLOCKS.items()
    }
    built |= {f"table4/wrn-{depth}-{k}/params_m": ("cifar_wide_resnet", {"depth": depth, "width": k}) for depth, k in TABLE4}
    for depth, widths in ((18, (1.0, 1.5, 2.0, 3.0)), (34, (1.0, 1.5, 2.0))):
        for k in widths:
            built[f"table7/wrn-{depth}-{k}/params_m"] = ("imagenet_wide_resnet", {"depth": depth, "width": k})
    rows = {"resnet-50": "resnet50", "resnet-101": "resnet101", "resnet-152": "resnet152", "wrn-50-2-bottleneck": "wrn_50_2"}
    built |= {f"table8/{row}/params_m": (name, {}) for row, name in (rows | {"preact-resnet-200": "preact_resnet200"}).items()}
    return counts_printed("wrn", built)


GROWTH = (
    "WRN-d-2 with d of 16, 22, 28 and 34, and WRN-16-k with k of 2 to 5 (with 1 the first unit needs no projection): "
    "second differences over the depth, and third differences over the width, of parameters and of multiply-adds are "
    "exactly zero, and second differences over the width are not."
)


def growth() -> Outcome:
    held = []
    for count in (parameters, _cost):
        depths = [count("cifar_wide_resnet", depth=d, width=2) for d in (16, 22, 28, 34)]
        widths = [count("cifar_wide_resnet", depth=16, width=k) for k in (2, 3, 4, 5)]
        held.append(not any(_differences(depths, 2)) and not any(_differences(widths, 3)) and all(_differences(widths, 2)))
    ratio = parameters("wrn_40_8") / parameters("wrn_40_4")
    why = f"Linear in the depth, quadratic in the width; from WRN-40-4 to WRN-40-8 the parameters grow {ratio:.3f} times."
    return settled(all(held), why, parameters=held[0], multiply_adds=held[1], ratio_of_doubling=ratio)


def _cost(name: str, depth: int, width: float) -> int:
    return multiply_adds(name, 32, depth=depth, width=width)


def _differences(values: list[int], order: int) -> list[int]:
    for _ in range(order):
        values = [b - a for a, b in itertools.pairwise(values)]
    return values


EQUAL = (
    "WRN-40-2 with blocks B(3), B(3,3), B(3,3,3) and B(3,3,3,3) is built: the largest number of parameters is within 1 % of "
    "the least."
)


def equal_sizes() -> Outcome:
    sizes = {
        block: parameters("cifar_wide_resnet", depth=40, width=2, block=block)
        for block in ("B(3)", "B(3,3)", "B(3,3,3)", "B(3,3,3,3)")
    }
    spread = max(sizes.values()) / min(sizes.values()) - 1
    return settled(spread < 0.01, f"They have {min(sizes.values()):,} to {max(sizes.values()):,} parameters.", parameters=sizes)


WIDE50 = (
    "Both are built: WRN-50-2 has at most 0.34 of the weight layers of ResNet-152, multiply-adds within 5 % of its, and "
    "more parameters."
)


def wide50() -> Outcome:
    wide, deep = parameters("wrn_50_2"), parameters("resnet152")
    costs = multiply_adds("wrn_50_2", 224), multiply_adds("resnet152", 224)
    holds = 50 / 152 <= 0.34 and abs(costs[0] / costs[1] - 1) < 0.05 and wide > deep
    why = (
        f"{wide / 1e6:.1f} against {deep / 1e6:.1f} million parameters, {costs[0] / 1e9:.2f} against {costs[1] / 1e9:.2f} "
        "thousand million multiply-adds."
    )
    return settled(holds, why, parameters=[wide, deep], multiply_adds=list(costs))


def smaller_than_1001() -> Outcome:
    wide, thin = parameters("wrn_40_4"), parameters("preact_resnet1001")
    return settled(wide < thin, f"{wide:,} against {thin:,} parameters.", parameters=[wide, thin])


ROW_1202 = (
    "ResNet-1202 of he2015 and pre-activation ResNet-1001 of he2016 are built: the 10.2 million parameters that table 5 "
    "prints for the former are those of the latter."
)


def row_1202() -> Outcome:
    deep, thin = parameters("resnet1202"), parameters("preact_resnet1001")
    holds = abs(deep / 1e6 - 19.4) < 0.05 and abs(thin / 1e6 - 10.2) < 0.15 and abs(deep / 1e6 - 10.2) > 1
    return settled(holds, f"ResNet-1202 has {deep:,} parameters, ResNet-1001 {thin:,}.", resnet1202=deep, preact_resnet1001=thin)


DOUBLED = (
    "ResNet-50 and WRN-50-2 are built: in every bottleneck the channels of the first 1x1 and of the 3x3 are twice as many, "
    "and those that the unit gives are the same; so that the channels of the network are not doubled."
)


def doubled() -> Outcome:
    thin, wide = on_meta("resnet50"), on_meta("wrn_50_2")
    shapes = [
        [
            tuple(len(unit.get_parameter(f"branch.conv{place}.weight")) for place in (1, 2, 3))
            for stage in net.stages
            for unit in stage.children()
        ]
        for net in (thin, wide)
    ]
    holds = len(shapes[0]) == 16 and all((2 * a, 2 * b, c) == other for (a, b, c), other in zip(*shapes))
    inner, outer = shapes[1][0][1], shapes[1][0][2]
    return settled(
        holds, f"All 16 units: the first is {inner} wide inside and gives {outer} maps, as in ResNet-50.", widths=shapes
    )
