"""What other libraries call the tensors of a network: tables of rules between their paths and ours. Layer 0.

A rule is a pair of paths of a module, ours and theirs. `{s}` stands for a number, the same on both sides, and `{s+1}` for that
number counted from 1 instead of 0. What follows the module's path (`weight`, `running_mean`, ...) is the same everywhere. A
family whose paths no table knows is added by a table; nothing else has to be edited.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

__all__ = ["LAYOUTS", "NAMINGS", "PEER_NAMES", "Naming", "naming_for", "naming_of", "readings"]

Rules = tuple[tuple[str, str], ...]

_FIELD = re.compile(r"\{(\w)([+-]\d+)?\}")


@dataclass(frozen=True)
class Naming:
    """How the libraries `layouts` name the tensors of networks of the form `form`; without rules, as we do."""

    layouts: tuple[str, ...]
    form: str
    rules: Rules = ()

    def ours(self, key: str) -> str | None:
        """Our name of their tensor `key`; None if no rule covers it."""
        return self._translated(key, 1, 0)

    def theirs(self, key: str) -> str | None:
        """Their name of our tensor `key`; None if no rule covers it."""
        return self._translated(key, 0, 1)

    def _translated(self, key: str, source: int, target: int) -> str | None:
        if not self.rules:
            return key
        path, _, leaf = key.rpartition(".")
        for rule in self.rules:
            numbers = _numbers(rule[source], path)
            if numbers is not None:
                return f"{_written(rule[target], numbers)}.{leaf}"
        return None


@cache
def _pattern(path: str) -> re.Pattern[str]:
    """The regular expression of a rule's path."""
    literals = _FIELD.split(path)[::3]
    fields = [rf"(?P<{field[1]}>\d+)" for field in _FIELD.finditer(path)]
    return re.compile("".join(re.escape(text) + field for text, field in zip(literals, [*fields, ""])))


def _numbers(pattern: str, path: str) -> Mapping[str, int] | None:
    """The numbers for which the rule's path is `path`, counted from 0; None if there are none."""
    found = _pattern(pattern).fullmatch(path)
    if not found:
        return None
    numbers = {field[1]: int(found[field[1]]) - int(field[2] or 0) for field in _FIELD.finditer(pattern)}
    return numbers if all(number >= 0 for number in numbers.values()) else None


def _written(pattern: str, numbers: Mapping[str, int]) -> str:
    return _FIELD.sub(lambda field: str(numbers[field[1]] + int(field[2] or 0)), pattern)


RESNET: Rules = (
    ("stem.conv", "conv1"),
    ("stem.norm", "bn1"),
    ("stages.{s}.{u}.branch.conv{i}", "layer{s+1}.{u}.conv{i}"),
    ("stages.{s}.{u}.branch.norm{i}", "layer{s+1}.{u}.bn{i}"),
    ("stages.{s}.{u}.shortcut.conv", "layer{s+1}.{u}.downsample.0"),
    ("stages.{s}.{u}.shortcut.norm", "layer{s+1}.{u}.downsample.1"),
    ("head.classifier", "fc"),
)
"""torchvision's and timm's ResNets, ResNeXts and Wide ResNets for ImageNet; plain and CIFAR forms have the same names."""

RESNET_TRANSFORMERS: Rules = (
    ("stem.conv", "resnet.embedder.embedder.convolution"),
    ("stem.norm", "resnet.embedder.embedder.normalization"),
    ("stages.{s}.{u}.branch.conv{i+1}", "resnet.encoder.stages.{s}.layers.{u}.layer.{i}.convolution"),
    ("stages.{s}.{u}.branch.norm{i+1}", "resnet.encoder.stages.{s}.layers.{u}.layer.{i}.normalization"),
    ("stages.{s}.{u}.shortcut.conv", "resnet.encoder.stages.{s}.layers.{u}.shortcut.convolution"),
    ("stages.{s}.{u}.shortcut.norm", "resnet.encoder.stages.{s}.layers.{u}.shortcut.normalization"),
    ("head.classifier", "classifier.1"),
)
"""transformers' ResNetForImageClassification."""


def _vgg(groups: tuple[int, ...], normalized: bool) -> Rules:
    """torchvision's VGG: the layers of all groups (our stem and stages) in one chain, each group followed by its pooling."""
    rules, place = [], 0
    for group, count in enumerate(groups):
        for layer in range(count):
            ours = f"stages.{group - 1}.{layer}" if group else f"stem.{layer}"
            rules.append((f"{ours}.conv", f"features.{place}"))
            if normalized:
                rules.append((f"{ours}.norm", f"features.{place + 1}"))
            place += 3 if normalized else 2
        place += 1
    heads = (("head.linear1", "classifier.0"), ("head.linear2", "classifier.3"), ("head.classifier", "classifier.6"))
    return (*rules, *heads)


def _densenet(last: int, norm: str, conv: str) -> Rules:
    """The DenseNets for ImageNet: a block whose last one has `last` layers. Our stages but the first begin with a transition."""
    return (
        ("stem.conv", "features.conv0"),
        ("stem.norm", "features.norm0"),
        (f"stages.3.{last + 1}.norm", "features.norm5"),
        ("stages.{s}.0.norm", "features.transition{s}.norm"),
        ("stages.{s}.0.conv", "features.transition{s}.conv"),
        ("stages.0.{u}.branch.norm{i}", f"features.denseblock1.denselayer{{u+1}}.{norm}"),
        ("stages.0.{u}.branch.conv{i}", f"features.denseblock1.denselayer{{u+1}}.{conv}"),
        ("stages.{s}.{u}.branch.norm{i}", f"features.denseblock{{s+1}}.denselayer{{u}}.{norm}"),
        ("stages.{s}.{u}.branch.conv{i}", f"features.denseblock{{s+1}}.denselayer{{u}}.{conv}"),
        ("head.classifier", "classifier"),
    )


ALEXNET: Rules = (
    ("stem.conv", "features.0"),
    ("stages.0.0.conv", "features.3"),
    ("stages.1.0.conv", "features.6"),
    ("stages.1.1.conv", "features.8"),
    ("stages.1.2.conv", "features.10"),
    ("head.linear1", "classifier.1"),
    ("head.linear2", "classifier.4"),
    ("head.classifier", "classifier.6"),
)

VGG_GROUPS = ((1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4))
DENSENET_LAST = (16, 32, 24, 48)

NAMINGS: tuple[Naming, ...] = (
    Naming(("residua",), "any"),
    Naming(("torchvision", "timm"), "resnet", RESNET),
    Naming(("transformers",), "resnet", RESNET_TRANSFORMERS),
    *(Naming(("torchvision",), "vgg", _vgg(groups, normalized)) for groups in VGG_GROUPS for normalized in (False, True)),
    *(Naming(("torchvision", "timm"), "densenet", _densenet(last, "norm{i}", "conv{i}")) for last in DENSENET_LAST),
    *(Naming(("torchvision",), "densenet", _densenet(last, "norm.{i}", "conv.{i}")) for last in DENSENET_LAST),  # old files
    Naming(("torchvision",), "alexnet", ALEXNET),
)

LAYOUTS = tuple(dict.fromkeys(layout for naming in NAMINGS for layout in naming.layouts))

PEER_NAMES = {"wrn_50_2": "wide_resnet50_2", "wrn_101_2": "wide_resnet101_2"}
"""Our name of a network -> torchvision's, where they differ."""


def readings(theirs: Collection[str]) -> list[tuple[Naming, dict[str, str]]]:
    """The namings that cover most of the tensors called `theirs`, each with what it covers as {our name: their name}."""
    found = []
    for naming in NAMINGS:
        names = {name: key for key in theirs if (name := naming.ours(key)) is not None}
        # Our own naming says any name at all, so that only names of our form count for it.
        found.append((len(names) if naming.rules else sum(map(_is_ours, names)), naming, names))
    most = max(count for count, _, _ in found)
    return [(naming, names) for count, naming, names in found if count == most]


def naming_of(theirs: Collection[str], ours: Collection[str]) -> tuple[Naming, dict[str, str]]:
    """The one of these readings that hits most of `ours`."""
    return max(readings(theirs), key=lambda reading: len(reading[1].keys() & set(ours)))


def _is_ours(name: str) -> bool:
    return name.startswith(("stem.", "stages.", "head.", "auxiliaries."))


def naming_for(layout: str, ours: Iterable[str]) -> tuple[Naming | None, list[str]]:
    """The naming of `layout` that covers most of our tensors, and those that it does not cover."""
    ours = list(ours)
    best, left = None, ours
    for naming in NAMINGS:
        if layout in naming.layouts:
            uncovered = [key for key in ours if naming.theirs(key) is None]
            if best is None or len(uncovered) < len(left):
                best, left = naming, uncovered
    return best, left
