"""What every analysis of the catalogue must do, whatever it measures."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from residua.analysis import CATALOG, Analysis, Budget, NotApplicable, Subject
from residua.models import create_model
from residua.subjects import module_subject

NAMES = CATALOG.names()
CLASSES = ("ant & bee", "<b>", "cat", "dog", "elk", "fox", "gnu", "hen", "ibex", "jay")


class Foreign(nn.Module):
    """A residual network that is not built of units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(x + self.one(x))
        return self.head(x.mean((2, 3)))


def networks() -> dict[str, nn.Module]:
    """One of each kind: with shortcuts, plain, without anything after the additions, concatenating, and not of units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "residual": create_model("cifar_resnet", depth=8),
            "plain": create_model("cifar_resnet", depth=8, plain=True),
            "preactivation": create_model("preact_cifar_resnet", depth=8),
            "dense": create_model("cifar_densenet", depth=10),
            "foreign": Foreign(),
        }


def subject(name: str) -> Subject:
    x = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = networks()[name].train()
    with torch.no_grad():
        model(x)
    labels = torch.arange(12) % 10
    built = module_subject(model.eval(), list(zip(x.split(5), labels.split(5))), classes=CLASSES, name=f"{name} <&>")
    fresh = {} if name == "foreign" else {"fresh": lambda: copy.deepcopy(networks()[name]).eval()}
    return Subject(**{**{field: getattr(built, field) for field in built.__dataclass_fields__}, **fresh})


@pytest.fixture(scope="module", params=NAMES)
def analysis(request: pytest.FixtureRequest) -> Analysis:
    entry = CATALOG.get(request.param)
    assert isinstance(entry, Analysis)
    return entry


@pytest.fixture(scope="module")
def results(analysis: Analysis) -> dict[str, dict[str, Any]]:
    """What it measures of every network that it has a meaning for."""
    found = {}
    for name in networks():
        try:
            found[f"{name} <&>"] = analysis.measure(subject(name), Budget(20))
        except NotApplicable:
            continue
    return found


def svgs(analysis: Analysis, results: dict[str, dict[str, Any]]) -> Iterator[ElementTree.Element]:
    for drawing in analysis.draw(results):
        assert drawing.title
        yield ElementTree.fromstring(drawing.svg)


def test_it_says_what_it_is(analysis: Analysis) -> None:
    assert CATALOG.get(analysis.name) is analysis
    assert analysis.title[0].isupper()
    assert analysis.about.endswith(".")
    assert analysis.share > 0
    assert analysis.work is None or analysis.work(subject("residual")) > 0


def test_it_has_a_meaning_for_a_residual_network(results: dict[str, dict[str, Any]]) -> None:
    assert "residual <&>" in results


def test_its_numbers_are_plain_json_and_say_what_they_stand_on(results: dict[str, dict[str, Any]]) -> None:
    for result in results.values():
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert 0 < result["used"]["images"] <= 12


def test_figures_and_sentences_come_from_the_numbers_alone(analysis: Analysis, results: dict[str, dict[str, Any]]) -> None:
    """What is read back from a file draws the same."""
    again = json.loads(json.dumps(results))
    one = "residual <&>"
    drawn = [[drawing.svg for drawing in analysis.draw({one: numbers[one]})] for numbers in (again, results)]
    assert drawn[0] == drawn[1]
    assert analysis.read(again) == analysis.read(results)


def test_it_draws_one_network_and_several_side_by_side(analysis: Analysis, results: dict[str, dict[str, Any]]) -> None:
    for chosen in ({"residual <&>": results["residual <&>"]}, results):
        drawn = list(svgs(analysis, chosen))
        assert drawn
        ids = [element.get("id") for svg in drawn for element in svg.iter() if element.get("id")]
        assert len(ids) == len(set(ids)), "two figures of the page use the same id"
        for svg in drawn:
            assert svg.get("aria-label")
            assert not re.search(r"http|<script", ElementTree.tostring(svg, encoding="unicode"))


def test_it_reads_them_in_two_texts_of_whole_sentences(analysis: Analysis, results: dict[str, dict[str, Any]]) -> None:
    for chosen in [{name: result} for name, result in results.items()] + [results]:
        texts = analysis.read(chosen)
        assert len(texts) == 2
        for text in texts:
            assert text.endswith(".")
            assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text), text
        assert all(name in texts[1] or name in texts[1].replace(name[0].upper(), name[0]) for name in chosen)


@pytest.mark.parametrize("name", ["residual", "plain", "foreign"])
def test_it_leaves_network_and_generators_alone_and_gives_the_same_twice(analysis: Analysis, name: str) -> None:
    of = subject(name)
    before = {path: tensor.clone() for path, tensor in of.model.state_dict().items()}
    generator = torch.get_rng_state()
    try:
        first = analysis.measure(of, Budget(1e9))
        assert analysis.measure(of, Budget(1e9)) == first
    except NotApplicable:
        pass
    after = of.model.state_dict()
    assert all(torch.equal(after[path], tensor) for path, tensor in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in of.model.modules())
    assert not any(module.training for module in of.model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in of.model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()


def test_its_progress_grows(analysis: Analysis) -> None:
    said: list[float] = []
    analysis.measure(subject("residual"), Budget(20, said.append))
    assert said
    assert said == sorted(said)
    assert 0 <= said[0] <= said[-1] <= 1
