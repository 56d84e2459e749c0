"""What structure settles of densenet: sizes, connections, inputs, and that nothing is added. Layer 4."""

from __future__ import annotations

from torch import nn

from residua.claims import Outcome
from residua.papers._settled import Built, counts_printed, on_meta, parameters, settled, skips_of
from residua.unit import Concat, Unit

TABLE2 = ("L40-k12", "L100-k12", "L100-k24", "BC-L100-k12", "BC-L250-k24", "BC-L190-k40")
COUNTS = "The networks are built; each printed count is theirs, rounded as it is printed."


def counts() -> Outcome:
    built: dict[str, Built] = {f"table2/{row}/params_m": (_name(row), {}) for row in TABLE2}
    wide = ("BC-L100-k12", "wide-BC-L40-k36", "wide-BC-L40-k48", "wide-BC-L40-k60")
    return counts_printed("densenet", built | {f"repo_wide/{row}/params_m": (_name(row), {}) for row in wide})


def _name(row: str) -> str:
    return "densenet_" + row.removeprefix("wide-").lower().replace("-l", "_").replace("l", "").replace("-k", "_")


CONNECTIONS = (
    "The dense connections of DenseNets with 10, 22 and 40 layers are counted in their captured graphs: for three "
    "blocks of L layers "
    "they are 3 L (L + 1) / 2."
)


def connections() -> Outcome:
    rows = []
    for depth in (10, 22, 40):
        layers = (depth - 4) // 3
        found = skips_of("cifar_densenet", 3, 32, depth=depth, growth=4).dense_connections
        rows.append({"layers": layers, "counted": found, "formula": 3 * layers * (layers + 1) // 2})
    why = ", ".join(f"{row['counted']} for three blocks of {row['layers']}" for row in rows)
    return settled(all(row["counted"] == row["formula"] for row in rows), f"Counted: {why}.", rows=rows)


INPUTS = (
    "Every convolution of the blocks of DenseNet-40 (k = 12) is asked for the maps that it reads; so is DenseNet-BC-100 (k = 12)."
)


def inputs() -> Outcome:
    read: dict[str, list[list[int]]] = {}
    holds = True
    for name in ("densenet_40_12", "densenet_bc_100_12"):
        read[name] = []
        for stage in on_meta(name).stages:
            units = [unit for unit in stage.modules() if isinstance(unit, Unit) and isinstance(unit.merge, Concat)]
            first = [next(module for module in unit.branch.modules() if isinstance(module, nn.Conv2d)) for unit in units]
            maps = [layer.in_channels for layer in first]
            holds = holds and maps == [maps[0] + 12 * place for place in range(len(maps))]
            read[name].append(maps)
    ends = ", ".join(f"{maps[0]} to {maps[-1]}" for maps in read["densenet_40_12"])
    return settled(holds, f"In steps of 12; the blocks of DenseNet-40 read {ends} maps.", maps=read)


NAMING = "The skips of a DenseNet with 22 layers are found in its graph: every one concatenates, none adds."


def naming() -> Outcome:
    found = skips_of("cifar_densenet", 3, 32, depth=22, growth=4)
    kinds = {kind: sum(n for (k, _), n in found.by_kind.items() if k == kind) for kind in ("concatenate", "add", "gate")}
    holds = kinds["concatenate"] == 18 and not kinds["add"] and not kinds["gate"]
    return settled(holds, f"{kinds['concatenate']} skips concatenate, {kinds['add']} add.", **kinds)


SMALLER = "DenseNet-BC (L = 100, k = 12) has less than a tenth of the parameters of pre-activation ResNet-1001."


def smaller_than_1001() -> Outcome:
    ours, deep = parameters("densenet_bc_100_12"), parameters("preact_resnet1001")
    return settled(10 * ours < deep, f"{ours:,} against {deep:,} parameters.", parameters=[ours, deep])


def block() -> dict[str, nn.Module]:
    """Figures 1 and 2: the first two layers of a block, without and with bottlenecks."""
    plain, narrow = on_meta("densenet_40_12"), on_meta("densenet_bc_100_12")
    return {
        "Two dense layers (k = 12)": nn.Sequential(*list(plain.stages[0].children())[:2]),
        "A dense layer with bottleneck (k = 12)": next(narrow.stages[0].children()),
    }
