"""A recipe: everything that decides what a training run computes. Frozen, nested, validated; TOML and JSON in and out. Layer 0.

A recipe chooses from catalogues by name; it never names an import. `replaced(recipe, {"optim.lr": 0.05})` derives a variant.
Positions in a schedule are fractions of the run's length, so any length rescales the whole schedule.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from residua.errors import RequestError, nearest

__all__ = [
    "Augment", "Average", "Checkpoints", "Data", "Model", "Optim", "Recipe", "Schedule",
    "check_agreement", "differences", "from_dict", "parse_overrides", "read", "replaced", "to_dict", "write_toml",
]  # fmt: skip

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=0, le=65_536)]


@dataclass(frozen=True, config=_CONFIG)
class Data:
    """`source`: a name, a folder or a CSV file. `image_size`: side of the network's input in pixels (None: from the data).
    `normalize`: subtract the mean and divide by the standard deviation per channel, or subtract the per-pixel mean only,
    or neither (pixels are always divided by 255).
    `holdout`: training samples set aside as "val", where the data has none (the 45k/5k split is 5000). `balance`: nothing, class
    weights in the loss (N / (K n_c)), or a sampler that draws all classes equally often. `in_memory`: None decides by size.
    `max_bad`: the share of unreadable files above which a run refuses to start."""

    source: str = "digits"
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    normalize: Literal["channel", "pixel", "none"] = "channel"
    holdout: Annotated[int, Field(ge=0)] = 0
    balance: Literal["none", "weights", "sampler"] = "none"
    in_memory: bool | None = None
    max_bad: Fraction = 0.05


@dataclass(frozen=True, config=_CONFIG)
class Augment:
    """`crop`: "none" (resize and centre), "pad" (pad by `pad` pixels, of the mean colour or of the border's reflection as
    `padding` says, and crop at a random place), "scale-jitter" (shorter side uniform in [`min_side`, `max_side`], random crop),
    "random-resized" (area in [`min_area`, 1], aspect ratio in [3/4, 4/3]), or "auto" ("pad" for uniform small images, else
    "random-resized"). `flip`: mirror half of the images, a coin for each image and epoch; with `alternate` a coin for each image
    alone, and all are turned over from one epoch to the next (Jordan 2024, section 3.6). `scales`: ((share of the run, scale),
    ...): from that share on the batch is resized to that part of its side; before the first, and without any, it stays as it is.
    `colour`: standard deviation of the PCA colour change (0.1 in the papers). `cutout`: side of the square set to the mean.
    `mixup`, `cutmix`: alpha of their Beta distribution. None is decided by the data's facts; 0 is off."""

    crop: Literal["auto", "none", "pad", "scale-jitter", "random-resized"] = "auto"
    pad: Pixels | None = None
    padding: Literal["mean", "reflect"] = "mean"
    min_side: Annotated[int, Field(ge=1)] = 256
    max_side: Annotated[int, Field(ge=1)] = 480
    min_area: Annotated[float, Field(gt=0, le=1)] = 0.08
    flip: bool | None = None
    alternate: bool = False
    scales: tuple[tuple[Fraction, Annotated[float, Field(gt=0, le=1)]], ...] = ()
    colour: NonNegative = 0.0
    cutout: Pixels = 0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if self.min_side > self.max_side:
            raise ValueError(f"augment.min_side {self.min_side} is larger than augment.max_side {self.max_side}")
        shares = [share for share, _ in self.scales]
        if shares != sorted(set(shares)):
            raise ValueError(f"the shares of augment.scales must increase, not {shares}")
        return self


@dataclass(frozen=True, config=_CONFIG)
class Model:
    """`name` of a catalogue entry ("auto": decided by the data), the `options` it is built with, and `weights` to start
    from (a run directory, a .safetensors or .pth file, or published weights such as "torchvision:IMAGENET1K_V2")."""

    name: str = "auto"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_CONFIG)
class Optim:
    """`name`: "sgd", "adamw", "rmsprop", or "muon" (Muon for convolutions, SGD for the rest). `weight_decay` acts on biases and
    normalisations too if `decay_all`. `layer_decay`: factor of the learning rate per unit counted from the head. `bias_factor`:
    factor of that of biases and normalisations. `scale_factor`: that of the scales of normalisations (None: as `bias_factor`; 0:
    they stay as they are). `head_factor`: that of the head's weights. `stem_factor`: one more, of all that the stem has. These
    four are factors of the step along the gradient alone: all weights that decay do so at one rate. `keep_norm` (muon): the
    weights of each convolution keep the norm that they start with, and an update is the share `lr` of it; for networks whose
    convolutions are all normalised. `head_first`: share of the run at its beginning in which only the head is trained (1: all of
    it), for weights that are trained already. `stem_until`: share of the run after which the stem is no longer trained (1: it
    always is), for stems that have little to learn. `clip`: largest norm of the gradient (0: off). `square_decay`, `eps`: those
    of the mean square of AdamW and RMSProp (None: the usual ones)."""

    name: Literal["sgd", "adamw", "muon", "rmsprop"] = "sgd"
    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 1e-4
    decay_all: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    bias_factor: Positive = 1.0
    scale_factor: NonNegative | None = None
    head_factor: Positive = 1.0
    stem_factor: Positive = 1.0
    keep_norm: bool = False
    head_first: Fraction = 0.0
    stem_until: Fraction = 1.0
    clip: NonNegative = 0.0
    square_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    eps: Positive | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Optim:
        if self.name not in ("adamw", "rmsprop") and (self.square_decay is not None or self.eps is not None):
            raise ValueError(f"optim.square_decay and optim.eps are fields of adamw and rmsprop, not of {self.name}")
        if self.keep_norm and self.name != "muon":
            raise ValueError(f"optim.keep_norm is a field of muon, not of {self.name}")
        if self.nesterov and not self.momentum:
            raise ValueError("optim.nesterov needs optim.momentum above 0")
        return self


@dataclass(frozen=True, config=_CONFIG)
class Schedule:
    """The learning rate's factor as a function of progress in [0, 1]. First `warmup` (a fraction of the run) at, or rising
    linearly from, `warmup_factor`; then `shape`: "steps" (times `drop_factor` at each of `drops`), "cosine" or "linear" down to
    `final`, or "constant"."""

    shape: Literal["steps", "cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    warmup_factor: NonNegative = 0.0
    warmup_shape: Literal["linear", "constant"] = "linear"
    drops: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    drop_factor: Positive = 0.1
    final: Fraction = 0.0

    @model_validator(mode="after")
    def _increasing(self) -> Schedule:
        if list(self.drops) != sorted(set(self.drops)):
            raise ValueError(f"schedule.drops must increase, not {self.drops}")
        return self


@dataclass(frozen=True, config=_CONFIG)
class Average:
    """An exponential moving average of the weights, evaluated instead of the last ones. `decay` each time that it is taken (0:
    off); it is held to at most (1 + step) / (10 + step), so that short runs forget their start. It is taken `every` so many
    steps. `rise`: the decay is multiplied by the share of the run that is done, to this power (0: it is the same throughout).
    `lookahead`: the weights go back to the average whenever it is taken, and go on from there (Zhang et al. 2019)."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    every: Count = 1
    rise: NonNegative = 0.0
    lookahead: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Average:
        if not self.decay and (self.every > 1 or self.rise or self.lookahead):
            raise ValueError("average.every, average.rise and average.lookahead need average.decay above 0")
        return self


@dataclass(frozen=True, config=_CONFIG)
class Checkpoints:
    """A checkpoint at each epoch's end and every `seconds`; the newest `keep` stay."""

    seconds: Positive = 60.0
    keep: Count = 2


@dataclass(frozen=True, config=_CONFIG)
class Recipe:
    """Everything that decides what a run computes. Give at most one of `steps`, `epochs`, `minutes` (none: a default length
    by the size of the data). `micro_batch`: the most samples in one forward pass (None: the whole batch).
    `evaluations`: how often the watched split is measured, at most. `plan`: "auto" measures, "exact" is fp32, eager, one
    thread, or a plan by name."""

    name: str = "fast"
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    average: Average = field(default_factory=Average)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    batch_size: Count = 128
    micro_batch: Count | None = None
    steps: Count | None = None
    epochs: Positive | None = None
    minutes: Positive | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    evaluations: Annotated[int, Field(ge=1)] = 10
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    plan: str = "auto"

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        given = [name for name in ("steps", "epochs", "minutes") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a run has one length, but {' and '.join(given)} are given")
        size = self.data.image_size
        if size and self.augment.crop == "scale-jitter" and self.augment.min_side < size:
            raise ValueError(f"augment.min_side {self.augment.min_side} is smaller than the crop, data.image_size {size}")
        if size and self.augment.cutout > size:
            raise ValueError(f"augment.cutout {self.augment.cutout} is larger than data.image_size {size}")
        return self


_ADAPTER = TypeAdapter(Recipe)


def from_dict(values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from nested plain values; raises `RequestError` that lists every unknown field and value out of range."""
    if not isinstance(values, Mapping):
        raise RequestError(f"{where[0].upper()}{where[1:]} must hold a table of fields, not {type(values).__name__}.")
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        raise RequestError(f"In {where}: " + " ".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    name = ".".join(path)
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _no_field(name)
    message = item["msg"].removeprefix("Value error, ")
    if not path or item["type"] == "value_error":
        return f"{message}."
    return f"{name} = {item['input']!r} is not valid: {message[0].lower()}{message[1:]}."


def _no_field(name: str) -> str:
    """What is said of a field that does not exist: the fields of the same last name, or those that look most like it."""
    names, leaf = field_names(), name.rpartition(".")[2]
    groups = list(dict.fromkeys(field.partition(".")[0] for field in names))
    close = [field for field in names if field.rpartition(".")[2] == leaf] or nearest(name, [*names, *groups])
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"The fields are {', '.join(names)}."
    return f"there is no field {name!r}. {hint}"


def field_names() -> list[str]:
    """All fields as dotted names, such as "optim.lr"."""
    names = []
    for item in dataclasses.fields(Recipe):
        if dataclasses.is_dataclass(item.default_factory):
            names += [f"{item.name}.{inner.name}" for inner in dataclasses.fields(item.default_factory)]
        else:
            names.append(item.name)
    return names


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values (what recipe.json holds)."""
    return _ADAPTER.dump_python(recipe, mode="json")


def replaced(recipe: Recipe, changes: Mapping[str, Any], where: str = "--set") -> Recipe:
    """The recipe with dotted fields changed, validated anew. `model.options.NAME` (or `model.NAME`) reaches into the options.

    A new length replaces the old one.
    """
    values = to_dict(recipe)
    lengths = {"steps", "epochs", "minutes"}
    if lengths & changes.keys():
        values.update(dict.fromkeys(lengths))
    for name, value in changes.items():
        _assign(values, name, value, where)
    return from_dict(values, where)


def check_agreement(given: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raises `RequestError` where a dotted field that an argument of its own gives (None: does not) has another value among the
    `changes`."""
    for name, value in given.items():
        if value is not None and name in changes and changes[name] != value:
            raise RequestError(f"{name} is given twice, as {value!r} and with --set as {changes[name]!r}: leave one of them out.")


def _assign(values: dict[str, Any], name: str, value: Any, where: str) -> None:
    parts = name.split(".")
    if parts[0] == "model" and len(parts) == 2 and parts[1] not in ("name", "options", "weights"):
        parts.insert(1, "options")
    if parts[:2] == ["model", "options"] and len(parts) == 3:
        values["model"]["options"][parts[2]] = value
        return
    if name not in field_names():
        raise RequestError(f"In {where}: {_no_field(name)}")
    target = values
    for part in parts[:-1]:
        target = target[part]
    target[parts[-1]] = value


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """["optim.lr=0.05", "augment.flip=false"] as a dict; a value that is not JSON is taken as text."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise RequestError(f"--set takes field=value, such as optim.lr=0.05, not {assignment!r}.")
        try:
            changes[name.strip()] = json.loads({"none": "null", "True": "true", "False": "false"}.get(text, text))
        except json.JSONDecodeError:
            changes[name.strip()] = text
    return changes


def read(path: Path) -> Recipe:
    """A recipe from a TOML or JSON file."""
    if not path.is_file():
        raise RequestError(f"There is no recipe file {path}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}.") from None
    return from_dict(values, str(path))


def write_toml(recipe: Recipe) -> str:
    """The recipe as TOML; fields that are None are left out, since TOML has no null."""

    def present(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: present(inner) for name, inner in value.items() if inner is not None}
        return value

    return tomli_w.dumps(present(to_dict(recipe)))


def differences(old: Recipe, new: Recipe) -> dict[str, tuple[Any, Any]]:
    """The dotted fields in which two recipes differ, with both values."""
    before, after = _flat(to_dict(old)), _flat(to_dict(new))
    return {k: (before.get(k), after.get(k)) for k in {**before, **after} if before.get(k) != after.get(k)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
