"""Contributions: the parts of a prediction add up, units are off as they should be, readouts are those of the shortcuts alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from residua.analyses.contribution import contribution
from residua.analysis import Budget, NotApplicable, Subject
from residua.decomposition import decomposed, margin
from residua.models import create_model
from residua.subjects import module_subject
from residua.unit import switched_off, walk

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibex", "jay")


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def subject(name: str, **options: Any) -> Subject:
    """Every second image has the label that the model gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **options).train()
        with torch.no_grad():
            model(images(24))
    model.eval()
    x = images(24)
    with torch.inference_mode():
        labels = (model(x).argmax(1) + torch.arange(24) % 2) % 10
    return module_subject(model, list(zip(x.split(10), labels.split(10))), classes=CLASSES)


@pytest.fixture(scope="module")
def residual() -> tuple[Subject, dict[str, Any]]:
    of = subject("resnet20")
    return of, contribution.measure(of, Budget(60))


def test_the_parts_of_a_prediction_add_up_to_its_margin(residual: tuple[Subject, dict[str, Any]]) -> None:
    of, result = residual
    assert result["completeness_error"] < 1e-11
    for part in (result["mean"], *result["examples"]):
        assert sum(part["direct"]) + part["start"] + part["constant"] == pytest.approx(part["margin"], rel=1e-9)
    with torch.no_grad():
        top = of.model.double()(images(24).double()).topk(2, dim=1).values
    of.model.float()
    assert result["mean"]["margin"] == pytest.approx(float((top[:, 0] - top[:, 1]).mean()), rel=1e-9)
    division = decomposed(of.model, images(24), of.units, margin)
    assert result["mean"]["direct"] == pytest.approx(division.units.mean((1, 2)).tolist())


def test_the_examples_are_the_first_right_and_the_first_wrong_image(residual: tuple[Subject, dict[str, Any]]) -> None:
    _, result = residual
    right, wrong = result["examples"]
    assert (right["place"], wrong["place"]) == (0, 1)
    assert right["label"] == right["predicted"]
    assert wrong["label"] != wrong["predicted"]
    assert 0 < right["probability"] <= 1


def test_when_off_is_the_fall_of_the_margin_with_the_unit_off(residual: tuple[Subject, dict[str, Any]]) -> None:
    of, result = residual
    x = images(24)
    with torch.inference_mode():
        whole = of.model(x)
        top = whole.topk(2, dim=1).indices
        for item, found in zip(walk(of.model), result["mean"]["when_off"]):
            with switched_off(item.unit):
                fall = (whole - of.model(x)).gather(1, top)
            assert found == pytest.approx(float((fall[:, 0] - fall[:, 1]).mean()), abs=1e-4)


@pytest.mark.parametrize(("name", "options"), [("resnet20", {}), ("cifar_densenet", {"depth": 13})])
def test_the_readout_is_the_network_with_all_later_units_off(name: str, options: dict[str, int]) -> None:
    of = subject(name, **options)
    result = contribution.measure(of, Budget(60))
    units = [item.unit for item in walk(of.model)]
    assert len(result["readout_error"]) == len(units) + 1
    for number in (0, len(units) // 2, len(units)):
        wrong = same = 0
        for x, labels in of.batches():
            with torch.inference_mode():
                final = of.model(x).argmax(1)
                with switched_off(*units[number:]):
                    said = of.model(x).argmax(1)
            wrong += int((said != labels).sum())
            same += int((said == final).sum())
        assert result["readout_error"][number] == pytest.approx(100 * wrong / 24)
        assert result["readout_agreement"][number] == pytest.approx(100 * same / 24)
    assert result["readout_agreement"][-1] == 100


def test_a_plain_network_is_read_out_only_where_its_shape_fits_the_head() -> None:
    of = subject("plain20")
    result = contribution.measure(of, Budget(60))
    assert [error is None for error in result["readout_error"]] == [True] * 7 + [False] * 3
    with torch.inference_mode():
        model: Any = of.model
        signal = model.stages[2][0](model.stages[1](model.stages[0](model.stem(images(24)))))
        said = model.head(signal).argmax(1)
        agreed = 100 * float((said == model(images(24)).argmax(1)).double().mean())
    assert result["readout_agreement"][7] == pytest.approx(agreed)
    assert result["mean"]["direct"][:-1] == [0.0] * 8
    assert "no direct way" in result["way"]


def test_a_preactivation_network_has_nothing_between_its_additions() -> None:
    ways = {
        name: contribution.measure(subject(name, depth=8), Budget(60))["way"] for name in ("preact_cifar_resnet", "cifar_resnet")
    }
    assert "nothing stands between the additions" in ways["preact_cifar_resnet"]
    assert "ReLU after each addition" in ways["cifar_resnet"]


def test_the_sentences_say_the_figures(residual: tuple[Subject, dict[str, Any]]) -> None:
    _, result = residual
    direct = result["mean"]["direct"]
    largest = max(range(9), key=lambda number: abs(direct[number]))
    text = contribution.read({"it": result})[1]
    does = "adds" if direct[largest] >= 0 else "takes away"
    assert text.startswith(f"In it {result['units'][largest]} {does} most")
    titles = [drawing.title for drawing in contribution.draw({"it": result})]
    assert titles == ["One prediction", "Mean over images", "Read out after every unit"]


def test_a_module_without_skips_has_no_contributions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    of = module_subject(model, [(images(4), torch.zeros(4, dtype=torch.int64))])
    with pytest.raises(NotApplicable, match="no units, and no skips"):
        contribution.measure(of, Budget(60))
