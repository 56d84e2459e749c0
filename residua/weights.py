"""Weights in and out: state dicts of torchvision, timm and transformers, published weights by name, and our own. Layer 3.

    residua.weights.load(model, "resnet50.safetensors")
    residua.weights.load(model, "timm:resnet50.a1_in1k")
    residua.weights.save(model, "mine.safetensors", layout="torchvision")

A tensor is matched by name (`residua.naming`) and shape. Only two places may differ, which every change of data changes: the
classifiers (another number of classes) and the first layer (another number of channels, another kernel). Whatever else differs
is another network, and is refused by name before anything is changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from residua import naming, runs, weight_files
from residua.errors import RequestError, nearest, unknown
from residua.models import CATALOG, create_model
from residua.naming import Naming
from residua.published import Published
from residua.resolve import IMPLIED
from residua.unit import walk
from residua.version import __version__
from residua.weight_files import Source

__all__ = ["Loaded", "check", "load", "save"]

SHOWN = 6  # differing tensors that an error lists
CLASSIFIER = re.compile(r"(?:head|auxiliaries\.\d+\.head)\.classifier\.(?:weight|bias)")
COUNTER = "num_batches_tracked"  # old files lack it, and with a fixed momentum nothing depends on it


@dataclass(frozen=True)
class Loaded:
    """What a load did.

    `where` is the file or name, `layout` whose naming it has; `taken` of `total` tensors come from it. `adapted` maps our name
    of a tensor to what was done to fit it, `fresh` to why it was not taken: it keeps the value that the network had (of a network
    that was just built, its initialisation). `ignored` are tensors of the file that the network has no place for. `notes` are
    further sentences for the user. `sha256` is over names and contents of the file's tensors.
    """

    where: str
    layout: str
    taken: int
    total: int
    adapted: Mapping[str, str]
    fresh: Mapping[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values, with the sentence."""
        return {**asdict(self), "ignored": list(self.ignored), "notes": list(self.notes), "sentence": self.sentence()}

    def sentence(self) -> str:
        """What was taken, what was adapted, and what begins anew."""
        names = "" if self.layout == "residua" else f", in the names of {self.layout}"
        parts = [f"{self.taken} of {self.total} tensors from {self.where}{names}"]
        parts += [f"adapted: {_listed(self.adapted)}"] if self.adapted else []
        parts += [f"re-initialised: {_listed(self.fresh)}"] if self.fresh else []
        parts += [f"left out: {_some(list(self.ignored))}"] if self.ignored else []
        return " ".join([f"Weights: {'; '.join(parts)}.", *self.notes])


def load(
    model: nn.Module,
    source: str | Path | Mapping[str, Tensor],
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
) -> Loaded:
    """Loads `source` into `model` in place, and says what was taken, adapted and re-initialised.

    `source` is a state dict, a `.safetensors` file, a `.pth` file (torch >= 2.10), a run directory, a folder with
    `model.safetensors`, or published weights by name: `torchvision:IMAGENET1K_V2`, `timm:resnet50.a1_in1k`,
    `hf:microsoft/resnet-50`. Names of tensors are ours, torchvision's, timm's or transformers'. `name` is the model's name in the
    catalogue; without it, it is found by the shapes where it is needed. `classes` are the names of the model's classes, in the
    order of its outputs: where they are given and `source` is a run, which knows its own, the rows of the classifiers are taken
    by name, and those of classes that the run does not know keep their values. Else they are taken by their places.

    A classifier for another number of classes, and a first layer with another kernel or number of channels, keep their values;
    a first layer of one channel takes the sum over the file's channels, which answers a grey image as before. Values are
    converted to the model's dtype. Raises `RequestError`, before anything is changed, for a source that is missing, damaged or of
    another network: with the network that it looks like and the tensors that differ.
    """
    found = _open(source, lambda: [name] if name else _resembling(model.state_dict()))
    fit = _fit(model, found, name, classes)
    own = model.state_dict()
    values = {key: _value(found.tensors[theirs], own[key], fit.rows.get(key)) for key, theirs in fit.take.items()}
    model.load_state_dict({**own, **values})
    return fit.loaded(found)


def check(source: str, name: str, options: Mapping[str, Any]) -> None:
    """Raises `RequestError` if `source` cannot be read or is of another network than `create_model(name, **options)`.

    Published weights are downloaded. For the name "auto" only the source is read.
    """
    found = _open(source, lambda: [] if name == "auto" else [name])
    if name != "auto":
        chosen = {**_decided_by_data(source, name), **options}
        with torch.device("meta"):
            model = create_model(name, **{option: value for option, value in chosen.items() if option != "initializer"})
        _fit(model, found, name)


def _decided_by_data(source: str, name: str) -> dict[str, Any]:
    """What its data decided of the network of a run, if `source` is a run of that network: other shapes than the defaults'."""
    path = runs.located(source)
    if not runs.is_run(path):
        return {}
    model = runs.open_run(path).recipe.model
    return {option: model.options[option] for option in IMPLIED if model.name == name and option in model.options}


def save(model: nn.Module, file: str | Path, layout: str = "residua") -> Path:
    """Writes the weights of `model` as a `.safetensors` file in the names of `layout`: "residua", "torchvision", "timm" or
    "transformers" (ResNetForImageClassification). Seen whole or not at all; returns the path.

    Raises `RequestError` for an unknown layout, another suffix, and a network whose tensors have no names in the layout.
    """
    file = Path(file)
    if layout not in naming.LAYOUTS:
        raise unknown("layout of weights", layout, naming.LAYOUTS)
    if file.suffix != ".safetensors":
        raise RequestError(f"Weights are saved as .safetensors, not as {file.name!r}.")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    chosen, left = naming.naming_for(layout, tensors)
    if chosen is None or left:
        listed = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
        raise RequestError(f"{layout} has no such network: there are no names for {listed}. layout='residua' saves any network.")
    card = {"format": "pt", "layout": layout, "residua": __version__}
    if (stride_on := _stride_on(model)) is not None:
        card["stride_on"] = stride_on
    if stride_on == "1x1" and layout in ("torchvision", "timm"):
        raise RequestError(
            f"The bottlenecks of this network stride in their first layer (stride_on=1x1), those of {layout} in their second: "
            "names and shapes would fit, and another function would come out. layout='residua' or 'transformers' saves it."
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(file, _stored({_named(chosen.theirs(key)): value for key, value in tensors.items()}, card))
    except OSError as error:
        raise RequestError(f"{file} cannot be written: {error.strerror or error}.") from error
    return file


def _stored(tensors: dict[str, Tensor], card: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with `card` as its metadata. The library writes several entries of metadata in a random
    order; here equal weights give equal bytes."""
    plain = to_safetensors(tensors)
    length = int.from_bytes(plain[:8], "little")
    header = json.dumps({"__metadata__": card, **json.loads(plain[8 : 8 + length])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + plain[8 + length :]


def _named(name: str | None) -> str:
    assert name is not None
    return name


# ---------------------------------------------------------------------------------------------------------------- sources


def _open(source: str | Path | Mapping[str, Tensor], names: Callable[[], list[str]]) -> Source:
    """The tensors of `source`, all of them finite; `names` finds the names that the network may have."""
    found = _read(source, names)
    valued = ((name, tensor) for name, tensor in found.tensors.items() if not tensor.is_meta)
    broken = [name for name, tensor in valued if not tensor.isfinite().all()]
    if broken:
        raise RequestError(
            f"The weights in {found.where} hold NaN or infinities, in {_some(broken)}: no network can work with them. They were "
            "saved so, as after a training that broke off; name others."
        )
    return found


def _read(source: str | Path | Mapping[str, Tensor], names: Callable[[], list[str]]) -> Source:
    if isinstance(source, Mapping):
        tensors = weight_files.plain(source)
        if not tensors:
            raise RequestError("The given state dict holds no tensors.")
        return Source("the given state dict", tensors)
    path = runs.located(source)
    if path.is_dir():
        return _open_folder(path)
    if weight_files.is_published(str(source)):
        return weight_files.published(str(source), names)
    if not path.exists() and path.suffix not in (".safetensors", *weight_files.PICKLES):
        raise RequestError(f"There is no run directory or file {source}.{runs.meant(path)} Weights are {weight_files.TAKES}.")
    return weight_files.read_file(path)


def _open_folder(path: Path) -> Source:
    if runs.is_run(path):
        run = runs.open_run(path)
        network = runs.load(run)
        return Source(str(path), network.state_dict(), _stride_on(network), run.recipe.model.name, tuple(run.classes))
    found = weight_files.read_folder(path)
    if found is None:
        raise RequestError(f"{path} is neither a run directory nor a model's folder with {' or '.join(weight_files.FILES)}.")
    return found


# --------------------------------------------------------------------------------------------------------------- matching


@dataclass(frozen=True)
class _Fit:
    """How tensors fit a network: `take` maps our names to the source's. `rows` maps our names of the classifiers whose rows are
    taken by name to the rows: ours to the source's."""

    naming: Naming
    take: Mapping[str, str]
    rows: Mapping[str, Mapping[int, int]]
    adapted: Mapping[str, str]
    fresh: Mapping[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    total: int

    def loaded(self, source: Source) -> Loaded:
        return Loaded(
            source.where, "/".join(self.naming.layouts), len(self.take), self.total,
            self.adapted, self.fresh, self.ignored, self.notes, _digest(source.tensors),
        )  # fmt: skip


def _fit(model: nn.Module, source: Source, name: str | None, classes: Sequence[str] | None = None) -> _Fit:
    """Decides for every tensor of `model` where its value comes from; raises `RequestError` if `source` is another network."""
    own = model.state_dict()
    chosen, found = naming.naming_of(source.tensors, own)
    first = first_layer(own)
    take, rows, adapted, fresh = {}, {}, {}, {}
    shared = _shared_classes(source.classes, classes)
    missing: list[str] = []
    reshaped: list[str] = []
    for key, tensor in own.items():
        theirs = found.get(key)
        if theirs is None:
            if CLASSIFIER.fullmatch(key) or key.startswith("auxiliaries."):
                fresh[key] = "not in the file"
            elif not key.endswith(COUNTER):
                missing.append(key)
            continue
        there, here = tuple(source.tensors[theirs].shape), tuple(tensor.shape)
        if (
            shared is not None
            and CLASSIFIER.fullmatch(key)
            and (there[0], here[0]) == (len(source.classes or ()), len(classes or ()))
            and there[1:] == here[1:]
        ):
            if shared:
                take[key], rows[key] = theirs, shared
                adapted[key] = f"rows of {len(shared)} of {here[0]} classes by name{_others(here[0] - len(shared))}"
            else:
                fresh[key] = f"none of the {here[0]} classes has the name of one of the {there[0]} there"
        elif there == here:
            take[key] = theirs
        elif CLASSIFIER.fullmatch(key) and there[1:] == here[1:]:
            fresh[key] = f"{there[0]} classes there, {here[0]} here"
        elif key == first and _sums(there, here):
            take[key] = theirs
            adapted[key] = f"summed over {there[1]} channels"
        elif key == first and len(there) == len(here) and there[0] == here[0]:
            fresh[key] = f"{_shape(there)} there, {_shape(here)} here"
        else:
            reshaped.append(key)
    named = set(found.values())
    unused = [theirs for theirs in source.tensors if theirs not in named]
    unused += [theirs for key, theirs in found.items() if key not in own]
    elsewhere = ("auxiliaries.", *(f"{path}." for path in getattr(model, "removed_units", ())))
    ignored = [theirs for theirs in unused if (chosen.ours(theirs) or "").startswith(elsewhere)]
    unexpected = [theirs for theirs in unused if theirs not in ignored and not theirs.endswith(COUNTER)]
    if missing or reshaped or unexpected:
        raise RequestError(_mismatch(own, source, name, chosen, found, missing, reshaped, unexpected))
    notes = _stride_note(model, source)
    return _Fit(chosen, take, rows, adapted, fresh, tuple(ignored), notes, len(own))


def _shared_classes(theirs: Sequence[str] | None, own: Sequence[str] | None) -> dict[int, int] | None:
    """The rows of the classes whose names both know, ours to theirs; None where names decide nothing: they are the same in the
    same order, or not known."""
    if theirs is None or own is None or list(theirs) == list(own):
        return None
    places = {name: place for place, name in enumerate(theirs)}
    return {row: places[name] for row, name in enumerate(own) if name in places}


def _others(count: int) -> str:
    return f", {count} anew" if count else ""


def first_layer(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first weight that reads the images: of two or more dimensions."""
    return next((key for key, tensor in tensors.items() if tensor.ndim >= 2), None)


def _sums(there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Whether the first layer is a convolution that reads one channel here, several there, and is otherwise the same."""
    return len(here) > 2 and len(there) == len(here) and here[1] == 1 < there[1] and there[0] == here[0] and there[2:] == here[2:]


def _value(theirs: Tensor, own: Tensor, rows: Mapping[int, int] | None = None) -> Tensor:
    """The value in the own shape and dtype; with `rows` (ours to theirs) that of the other rows is the own."""
    value = theirs.to(own.device)
    if rows is not None:
        taken = own.clone()
        taken[list(rows)] = value[list(rows.values())].to(own.dtype)
        return taken
    return (value if value.shape == own.shape else value.sum(1, keepdim=True)).to(own.dtype)


def _stride_on(model: nn.Module) -> str | None:
    """Where the bottlenecks of `model` stride: "1x1", "3x3", or None if nothing strides in one."""
    for located in walk(model):
        first, second, third = (getattr(located.unit.branch, f"conv{place}", None) for place in (1, 2, 3))
        if isinstance(third, nn.Conv2d) and isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d):
            if (first.kernel_size, second.kernel_size, third.kernel_size) != ((1, 1), (3, 3), (1, 1)):
                continue
            if max(first.stride) > 1:
                return "1x1"
            if max(second.stride) > 1:
                return "3x3"
    return None


def _stride_note(model: nn.Module, source: Source) -> tuple[str, ...]:
    """Shapes do not tell where a bottleneck strides: what is known to differ is refused, what cannot be known is said."""
    here, there = _stride_on(model), source.stride_on
    if here and there and here != there:
        raise RequestError(
            f"The network of {source.where} strides on the {there} convolution of its bottlenecks, this one on the {here}: with "
            f"the same weights they compute different things. Build it with stride_on={there!r} (--set model.stride_on={there})."
        )
    if here == "1x1" and there is None:
        return (
            f"Nothing in {source.where} says whether its bottlenecks stride on the 1x1 convolution, as this network does, or on "
            "the 3x3, as torchvision's and timm's do.",
        )
    return ()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 over names, kinds and contents, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------- wording


def _mismatch(
    own: Mapping[str, Tensor],
    source: Source,
    name: str | None,
    chosen: Naming,
    found: Mapping[str, str],
    missing: list[str],
    reshaped: list[str],
    unexpected: list[str],
) -> str:
    """What the tensors look like, what the network is, and the tensors that differ, in the names of the source."""
    if not set(found) & set(own):
        return (
            f"The tensors in {source.where} are named as in no known layout ({', '.join(naming.LAYOUTS)}) of this network: they "
            f"are {_some(sorted(source.tensors))}, and it has {_some([chosen.theirs(key) or key for key in own])}."
        )
    theirs = {key: chosen.theirs(key) or key for key in own}
    differing = [
        f"{theirs[key]} has the shape {_shape(source.tensors[found[key]].shape)} instead of {_shape(own[key].shape)}"
        for key in reshaped
    ]
    differing += [f"{theirs[key]} is missing{_close(theirs[key], unexpected)}" for key in missing[:SHOWN]]
    absent = [theirs[key] for key in missing]
    differing += [f"{key} is unexpected{_close(key, absent or theirs.values())}" for key in unexpected[:SHOWN]]
    count = len(missing) + len(reshaped) + len(unexpected)
    shown = [*differing[: SHOWN - 2], *differing[len(differing) - 2 :]] if len(differing) > SHOWN else differing
    more = f"; and {count - len(shown)} more" if count > len(shown) else ""
    looks = _likeness(
        [{key: source.tensors[original] for key, original in names.items()} for _, names in naming.readings(source.tensors)],
        source.network,
    )
    this = f"this is {name}" if name and name != "auto" else _this(own)
    compared = _both(name, found, own) if name and name == source.network else f"they look like {looks}, and {this}"
    return (
        f"The weights in {source.where} are of another network: {compared}. "
        f"{count} {'tensor differs' if count == 1 else 'tensors differ'}: {'; '.join(shown)}{more}."
    )


def _both(name: str, theirs: Iterable[str], own: Iterable[str]) -> str:
    """How two networks of one name differ, by the names of their tensors: one may have been shortened."""
    there, here = _num_units(theirs), _num_units(own)
    how = "built with other options" if there == here else f"with {there} units there and {here} here"
    return f"both are {name}, but {how}"


def _num_units(names: Iterable[str]) -> int:
    return len({place[0] for name in names if (place := re.match(r"stages\.\d+\.\d+\.", name))})


def _this(own: Mapping[str, Tensor]) -> str:
    return f"this looks like {_likeness([own], None)}"


def _likeness(readings: Sequence[Mapping[str, Tensor]], name: str | None) -> str:
    """The networks of the catalogue that the tensors (in our names, as they can be read) could be of, or else their form."""
    names = [name] if name else [name for tensors in readings for name in _resembling(tensors)]
    if names:
        return " or ".join(names[:3])
    units: dict[int, set[int]] = {}
    for key in readings[0]:
        if place := re.match(r"stages\.(\d+)\.(\d+)\.", key):
            units.setdefault(int(place[1]), set()).add(int(place[2]))
    if not units:
        return "none of the catalogue"
    layers = len({key for key in readings[0] if re.fullmatch(r"stages\.0\.0\.branch\.conv\d+\.weight", key)})
    kind = {2: " basic", 3: " bottleneck"}.get(layers, "")
    return f"none of the catalogue, with stages of {', '.join(str(len(units[s])) for s in sorted(units))}{kind} units"


def _resembling(tensors: Mapping[str, Tensor]) -> list[str]:
    """The published networks that have these tensors (in our names), the classifiers and the first layer left open."""
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items() if not key.endswith(COUNTER)}
    body = {key: shape for key, shape in found.items() if not CLASSIFIER.fullmatch(key)}
    count = sum(tensors[key].numel() for key in body if not key.endswith(("running_mean", "running_var")))
    rows = max((found[key][-1] for key in found.keys() - body.keys()), default=4096)
    names = []
    for name, entry in CATALOG.items():
        # What is left open is some thousand rows of each classifier and a first kernel: few networks are worth building.
        if not isinstance(entry, Published) or not -100_000 < entry.parameters - count < 3 * 1_001 * (rows + 1) + 100_000:
            continue
        with torch.device("meta"):
            own = {key: value for key, value in entry().state_dict().items() if not key.endswith(COUNTER)}
        first = first_layer(own)
        inner = {key: tuple(value.shape) for key, value in own.items() if key != first and not CLASSIFIER.fullmatch(key)}
        if inner == {key: shape for key, shape in body.items() if key != first}:
            names.append(name)
    return names


def _close(key: str, names: Iterable[str]) -> str:
    close = nearest(key, names, 1)
    return f" (nearest: {close[0]})" if close else ""


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _listed(reasons: Mapping[str, str]) -> str:
    """The tensors with their reasons, those of one reason together."""
    groups: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        groups.setdefault(reason, []).append(key)
    return "; ".join(f"{_some(keys)} ({reason})" for reason, keys in groups.items())
