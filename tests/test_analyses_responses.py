"""The responses of the layers: standard deviations as a float64 reference computes them, of the right signals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from residua.analyses.responses import responses
from residua.analysis import Budget, NotApplicable, Subject
from residua.models import create_model
from residua.subjects import module_subject


def batches(count: int = 40, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(size), torch.zeros(count, dtype=torch.int64).split(size)))


def subject(name: str) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name).train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.3, 3)
                nn.init.normal_(module.bias)
        with torch.no_grad():
            model(batches()[0][0])
    return module_subject(model, batches())


def test_the_standard_deviation_is_that_of_the_signal_before_relu_and_addition() -> None:
    of = subject("resnet20")
    found = {row["layer"]: row for row in responses.measure(of, Budget(60))["layers"]}
    exact = of.model.double()
    x = torch.cat([images for images, _ in of.batches()]).double()
    with torch.no_grad():
        stem = exact.stem.norm(exact.stem.conv(x))
        signal = stem.relu()
        for stage in range(3):
            for place in range(3):
                branch = exact.stages[stage][place].branch
                one = branch.norm1(branch.conv1(signal))
                two = branch.norm2(branch.conv2(one.relu()))
                for layer, response in (("conv1", one), ("conv2", two)):
                    row = found[f"stages.{stage}.{place}.branch.{layer}"]
                    assert row["std"] == pytest.approx(float(response.std(correction=0)), rel=1e-5)
                    assert row["mean"] == pytest.approx(float(response.mean()), rel=1e-4, abs=1e-5)
                signal = exact.stages[stage][place](signal)
    assert found["stem.conv"]["std"] == pytest.approx(float(stem.std(correction=0)), rel=1e-5)
    assert found["stem.conv"]["normalization"] == "stem.norm"
    assert len(found) == 20


def test_shortcuts_and_the_classifier_are_named_and_stand_outside_the_figure() -> None:
    with torch.random.fork_rng(devices=[]):
        model = create_model("cifar_resnet", depth=8, shortcut="B").eval()
    result = responses.measure(module_subject(model, batches()), Budget(60))
    parts = {row["layer"]: row["part"] for row in result["layers"]}
    assert sorted(layer for layer, part in parts.items() if part == "shortcut") == [
        "stages.1.0.shortcut.conv", "stages.2.0.shortcut.conv",
    ]  # fmt: skip
    assert [layer for layer, part in parts.items() if part == "head"] == ["head.classifier"]
    assert sum(part == "main" for part in parts.values()) == 7


def test_a_layer_without_normalisation_is_said() -> None:
    result = responses.measure(subject("preact_resnet110"), Budget(60))
    assert result["without_normalization"] == 54
    assert "54 of them not normalised directly behind" in responses.read({"it": result})[1]


def test_of_layers_that_are_concatenated_it_is_not_said_that_they_are_added() -> None:
    network = create_model("cifar_densenet", depth=13, growth=4)
    said = responses.read({"it": responses.measure(module_subject(network, batches()), Budget(60))})[1]
    assert "11 of them not normalised directly behind the layer" in said
    assert "added" not in said


def test_two_networks_are_compared_by_their_medians() -> None:
    results = {name: responses.measure(subject(name), Budget(60)) for name in ("resnet20", "plain20")}
    text = responses.read(results)[1]
    assert f"{results['resnet20']['median_std'] / results['plain20']['median_std']:.3g}" in text
    order, ranked = responses.draw(results)
    assert "resnet20" in order.svg
    assert "plain20" in ranked.svg


def test_a_module_without_layers_has_no_responses() -> None:
    class Means(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(NotApplicable, match="no module with weights"):
        responses.measure(module_subject(Means(), batches()), Budget(60))
