"""What runs will cost on this machine: seconds by multiply-adds, signals and layers, at rates that are measured once. Layer 4.

A training step takes batch * (a * multiply-adds + b * signal values) + c * layers. a, b and c come from three short trainings on
this machine (or were measured before and are remembered); the counts from shapes alone. Forecasts are rough: within a factor of
two. What has run tells better, and is used where it is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from residua import budgets, forecast, machine, models, plan, winograd
from residua.batches import Share
from residua.claims import Arm, Ensemble, Probe
from residua.cost import layer_table
from residua.dataset import ArraySamples, Dataset, Facts
from residua.infer import multiplies_bf16
from residua.recipe import Data, Model, Recipe, replaced
from residua.resolve import implied_options
from residua.version import __version__

__all__ = ["Counts", "Rates", "counted_before", "counts", "rates", "seconds_of"]

SOURCES = {  # channels, side, classes, training images, test images
    "digits": (1, 8, 10, 1_438, 359), "cifar10": (3, 32, 10, 50_000, 10_000), "cifar100": (3, 32, 100, 50_000, 10_000),
    "svhn": (3, 32, 10, 73_257, 26_032), "mnist": (1, 28, 10, 60_000, 10_000), "fashion_mnist": (1, 28, 10, 60_000, 10_000),
    "imagenet": (3, 224, 1_000, 1_281_167, 50_000),
}  # fmt: skip
SMOKE = 4.0  # seconds: some updates of a network of any depth
PREPARING = {"small": 10.0, "full": 60.0}  # seconds: the data opened, plans tried, samples drawn


@dataclass(frozen=True)
class Counts:
    """Of one image in one forward pass: multiply-adds, values of all layers' outputs; and the number of layers."""

    multiply_adds: float
    values: float
    layers: float


@dataclass(frozen=True)
class Rates:
    """Seconds of training a multiply-add, a value, and a layer and step."""

    multiply_add: float
    value: float
    layer: float

    def image(self, of: Counts, batch: int) -> float:
        """Seconds of training one image."""
        return self.multiply_add * of.multiply_adds + self.value * of.values + self.layer * of.layers / batch


def seconds_of(
    arm: Arm | Ensemble | Probe, budget: str, measurements: int = 0, known: float | None = None, behind: float = 0.0
) -> float:
    """Forecast seconds of one run of an arm with its measurements; `known` is what an image took in an earlier run of it,
    `behind` the share of its training that is over.

    Infinity where the arm has no form at this budget. What is not trained counts as some seconds.
    """
    if budgets.unavailable(arm, budget):
        return math.inf
    if not isinstance(arm, Arm):
        return 10.0 if isinstance(arm, Ensemble) else 5.0
    if behind == 1.0:
        return measurements * budgets.ALLOWANCE[budget] / 2
    if budget == "smoke":
        return SMOKE + measurements * budgets.ALLOWANCE[budget]
    recipe = budgets.recipe_at(arm, budget, 0)
    _, _, _, train, test = SOURCES.get(recipe.data.source.replace("-", "_"), SOURCES["cifar10"])
    pace = known if known is not None else rates().image(counts(recipe), recipe.batch_size)
    if recipe.minutes is not None:
        trained = 60 * recipe.minutes
    else:
        steps = recipe.steps if recipe.steps is not None else (recipe.epochs or 24.0) * (train // recipe.batch_size)
        trained = steps * recipe.batch_size * pace
    tested = recipe.evaluations * test * pace / 3
    return (1 - behind) * (trained + tested) + PREPARING[budget] + measurements * budgets.ALLOWANCE[budget] / 2


# ------------------------------------------------------------------------------------------------------------------ counts


def counted_before() -> bool:
    """Whether networks have been counted on this machine with this code."""
    return bool(_remembered("counts", _counting_code()))


def counts(recipe: Recipe) -> Counts:
    """Of the recipe's network, remembered between runs."""
    channels, side, classes, _, _ = SOURCES.get(recipe.data.source.replace("-", "_"), SOURCES["cifar10"])
    side = recipe.data.image_size or side
    name, options = recipe.model.name, dict(recipe.model.options)
    key = hashlib.sha256(json.dumps([name, options, channels, side, classes], sort_keys=True).encode()).hexdigest()[:16]
    table = _remembered("counts", _counting_code())
    if key not in table:
        table[key] = asdict(_counted(name, options, channels, side, classes))
        _remember("counts", _counting_code(), table)
    return Counts(**table[key])


def _counted(name: str, options: dict[str, Any], channels: int, side: int, classes: int) -> Counts:
    options = {**implied_options(name, channels, side, classes), **options}
    network = models.outlined(name, **options)
    rows = layer_table(network, (channels, side, side))
    values = sum(math.prod(row.output_shape) for row in rows)
    return Counts(sum(row.multiply_adds for row in rows), values, len(rows))


# ------------------------------------------------------------------------------------------------------------------- rates


@lru_cache(1)
def rates() -> Rates:
    """Those of this machine with its threads, measured in some seconds or remembered."""
    about = [machine.hardware(_device()), torch.get_num_threads(), torch.__version__, __version__, _usual_plan()]
    table = _remembered("rates", about)
    if not table:
        table = asdict(_measured())
        _remember("rates", about, table)
    return Rates(**table)


def _measured() -> Rates:
    layer = _step_seconds("resnet20", {}, 8, 8) / _counted("resnet20", {}, 3, 8, 10).layers
    networks: list[tuple[str, dict[str, Any]]] = [("resnet20", {}), ("cifar_wide_resnet", {"depth": 10, "width": 4})]
    side, batch = 32, 64
    rows, took = [], []
    for name, options in networks:
        own = _counted(name, options, 3, side, 10)
        rows.append([own.multiply_adds * batch, own.values * batch])
        took.append(max(1e-6, _step_seconds(name, options, side, batch) - layer * own.layers))
    (a, b), (c, d) = rows
    determinant = a * d - b * c
    multiply_add = (took[0] * d - took[1] * b) / determinant
    value = (a * took[1] - c * took[0]) / determinant
    if min(multiply_add, value) < 0:  # the two networks are limited by the same thing: multiply-adds tell it all
        multiply_add, value = max(took[0] / a, took[1] / c), 0.0
    return Rates(multiply_add, value, layer)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _usual_plan() -> str:
    """The plan that is usually the fastest on this machine."""
    if _device().type == "cuda":
        return "bf16"
    if not multiplies_bf16():
        return "fp32-fused"
    return "bf16-winograd" if winograd.preferred() else "bf16-fused"


def _step_seconds(name: str, options: dict[str, Any], side: int, batch: int) -> float:
    """Median seconds of a training step on noise, by the plan that is usually the fastest."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4 * batch, 3, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.arange(len(images)) % 10
    samples = ArraySamples(images, labels, [str(place) for place in range(len(images))])
    dataset = Dataset("noise", "", tuple("0123456789"), {"train": samples, "test": samples}, Facts(3, (side, side), True, 1))
    options = {"num_classes": 10, "in_channels": 3, **options}
    recipe = Recipe(data=Data(source="noise", image_size=side), model=Model(name=name, options=options), batch_size=batch)
    recipe = replaced(recipe, {"augment.crop": "pad", "augment.pad": 1, "augment.flip": True, "optim.lr": 1e-4})
    stats = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.ones(3, 1, 1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.create_model(name, **options)
    device = _device()
    chosen = plan.named(_usual_plan())
    trial = forecast.trial_factory(network, recipe, dataset, stats, device, 0, Share())
    found = plan.measure(chosen, trial, 8, 3.0)
    if not math.isfinite(found.seconds_per_step):
        found = plan.measure(plan.named("fp32"), trial, 8, 3.0)
    return found.seconds_per_step


# -------------------------------------------------------------------------------------------------------------- remembered


@lru_cache(1)
def _counting_code() -> str:
    """A digest of the code that networks are made of."""
    folder = Path(__file__).parent
    files = [*sorted((folder / "models").glob("*.py")), *(folder / name for name in ("cost.py", "branches.py", "towers.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _place(what: str, about: Any) -> Path:
    """One file for each number of threads, version and so on: they are asked for in turns."""
    return machine.cache_folder() / f"{what}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:10]}.json"


def _remembered(what: str, about: Any) -> dict[str, Any]:
    try:
        card = json.loads(_place(what, about).read_text(encoding="utf-8"))
        return dict(card["table"]) if card["about"] == json.loads(json.dumps(about)) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(what: str, about: Any, table: dict[str, Any]) -> None:
    path = _place(what, about)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_text(json.dumps({"about": about, "table": table}), encoding="utf-8")
        aside.replace(path)
