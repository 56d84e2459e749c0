"""The analyses signal, paths and attribution as a whole: numbers against references, other networks, drawing, reading."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import residua
from residua.analyses.attribution import attribution
from residua.analyses.paths import paths
from residua.analyses.signal import signal
from residua.analysis import Analysis, Budget, NotApplicable, Subject
from residua.analyzing import analyze
from residua.attributions import integrated_gradients
from residua.gates import run_in_series
from residua.models import create_model
from residua.skip_gates import GatedSkips
from residua.subjects import module_subject
from residua.unit import Unit

SIDE = 8


def batches(count: int = 24, classes: int = 4, side: int = SIDE) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(16), (torch.arange(count) % classes).split(16)))


def network(name: str = "cifar_resnet", **options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, num_classes=4, **options).train()
        with torch.no_grad():
            for _ in range(3):
                model(batches()[0][0])
        return model.eval()


def subject(name: str = "cifar_resnet", **options: Any) -> Subject:
    return module_subject(network(name, **options), batches(), name=name)


class Foreign(nn.Module):
    """A residual network in another's words, with or without a skip in a parallel tower."""

    def __init__(self, units: int = 4, parallel: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(units))
        self.end = nn.Linear(6, 4)
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.parallel:
            towers = x + torch.tanh(self.layers[0](x)), x * 2 + torch.tanh(self.layers[1](x))
            x = torch.cat(towers, 1)[:, ::2]
            return self.end(x.mean((2, 3)))
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.end(x.mean((2, 3)))


def foreign(**options: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Foreign(**options).eval()


# ----------------------------------------------------------------------------------------------------------------- paths


def test_few_units_are_measured_over_all_paths() -> None:
    of = subject(depth=8)
    found = paths.measure(of, Budget(20))
    assert found["exact"]
    assert (found["num_paths"], found["length"]) == (8, [0, 1, 2, 3])
    assert found["used"]["paths of each image"] == 8
    assert found["paths_of_length"] == [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    assert sum(found["share_of_gradient"]) == pytest.approx(1)
    ratio = [n * math.comb(3, k) for k, n in enumerate(found["norm"])]
    assert found["share_of_gradient"] == pytest.approx([value / sum(ratio) for value in ratio])
    assert found["completeness_error"] < 1e-10
    # the norm of a sum is at most the sum of the norms: here of the very same images
    few = paths.measure(module_subject(of.model, batches(8)), Budget(20))
    assert all(
        whole <= each * (1 + 1e-5)
        for whole, each in zip(few["sum_norm"], [n * math.comb(3, k) for k, n in enumerate(few["norm"])])
    )


def test_many_units_are_sampled_and_agree_with_all_paths() -> None:
    of = subject(depth=20)
    exact = paths.measure(of, Budget(20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("residua.analyses.paths.EXACT", 3)
        sampled = paths.measure(of, Budget(20))
    assert exact["exact"]
    assert not sampled["exact"]
    assert sampled["used"]["paths of each length"] >= 24
    for drawn, error, whole in zip(sampled["norm"], sampled["standard_error"], exact["norm"]):
        assert drawn == pytest.approx(whole, abs=5 * error + 1e-9)
    assert sampled["sum_norm"] == pytest.approx(exact["sum_norm"])


def test_the_same_subject_gives_the_same_numbers_and_draws_from_no_global_generator() -> None:
    of = subject(depth=14)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = paths.measure(of, Budget(20))
    assert torch.equal(before, torch.random.get_rng_state())
    assert paths.measure(of, Budget(20)) == first


def test_a_short_budget_measures_fewer_lengths_and_fills_in_between() -> None:
    clock = itertools.count(0.0, 0.5)
    found = paths.measure(subject("preact_cifar_resnet", depth=74), Budget(8, clock=lambda: next(clock)))
    measured = [value is not None for value in found["norm"]]
    assert measured[0]
    assert measured[-1]
    assert 2 <= sum(measured) < len(measured)
    assert sum(found["share_of_gradient"]) == pytest.approx(1)


def test_a_plain_network_is_one_path_of_all_its_units() -> None:
    found = paths.measure(subject(depth=14, plain=True), Budget(10))
    assert (found["num_paths"], found["length"], found["share_of_gradient"]) == (1, [6], [1.0])
    assert "single path" in paths.read({"plain": found})[1]


def test_the_paths_of_a_network_that_is_not_built_of_units_are_those_of_its_skips() -> None:
    model = foreign()
    found = paths.measure(module_subject(model, batches()), Budget(20))
    assert (found["num_paths"], found["length"]) == (16, [0, 1, 2, 3, 4])
    assert found["completeness_error"] < 1e-10
    x, labels = batches()[0]
    exact: dict[int, list[float]] = {}
    for taken in itertools.product((0, 1), repeat=4):  # by hand: the chain rule with one way of each skip
        image = x[:1].clone().requires_grad_()
        signals, y = [], model.stem(image)  # type: ignore[operator]
        for layer in model.layers:  # type: ignore[union-attr]
            signals.append(y)
            y = y + torch.tanh(layer(y))
        loss = nn.functional.cross_entropy(model.end(y.mean((2, 3))), labels[:1])  # type: ignore[operator]
        (g,) = torch.autograd.grad(loss, y, retain_graph=True)
        for layer, start, branch in zip(reversed(model.layers), reversed(signals), reversed(taken)):  # type: ignore[arg-type]
            if branch:
                point = start.detach().requires_grad_()
                (g,) = torch.autograd.grad(torch.tanh(layer(point)), point, g)
        (g,) = torch.autograd.grad(signals[0], image, g, retain_graph=True)
        exact.setdefault(sum(taken), []).append(float(g.norm()))
    one = paths.measure(module_subject(model, [(x[:1], labels[:1])]), Budget(20))
    assert one["norm"] == pytest.approx([sum(values) / len(values) for _, values in sorted(exact.items())], rel=1e-4)


def test_skips_in_parallel_are_refused_with_the_reason() -> None:
    with pytest.raises(NotApplicable, match="nested or stand in parallel"):
        paths.measure(module_subject(foreign(parallel=True), batches()), Budget(5))


class Units(nn.Module):
    """Units that are used in an unusual way: one of them three times, two in parallel towers, or one not at all."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.stem, self.end = way, nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 4)
        self.one, self.two = (
            Unit(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh()), None if way == "plain towers" else nn.Identity())
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if "towers" in self.way:
            x = torch.cat((self.one(x), self.two(2 * x)), 1)[:, ::2]
        elif self.way == "shared":
            x = torch.cat((self.one(x), self.one(2 * x)), 1)[:, ::2]
        else:
            x = self.one(x)
            x = self.one(self.one(x)) if self.way == "thrice" else x
        return self.end(x.mean((2, 3)))


def units(way: str) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module_subject(Units(way).eval(), batches(), name=way)


@pytest.mark.parametrize("way", ["thrice", "one unused"])
def test_the_paths_of_units_that_do_not_run_once_each_are_those_of_the_inspection(way: str) -> None:
    of = units(way)
    found = paths.measure(of, Budget(20))
    known = residua.inspect(of.model, batches()[0][0][:1])
    assert known.path_lengths is not None
    assert found["num_paths"] == known.num_paths == {"thrice": 8, "one unused": 2}[way]
    assert found["length"] == list(known.path_lengths["units"].counts)
    assert found["completeness_error"] < 1e-10
    with pytest.raises(NotApplicable, match={"thrice": "one .* 3 times", "one unused": "two .* 0 times"}[way]):
        signal.measure(of, Budget(5))


@pytest.mark.parametrize("way", ["towers", "plain towers", "shared"])
def test_units_in_towers_are_refused_as_choices_that_multiply(way: str) -> None:
    of = units(way)
    assert not run_in_series(of.model, batches()[0][0][:1])
    if way != "plain towers":
        with pytest.raises(NotApplicable, match="nested or stand in parallel"):
            paths.measure(of, Budget(5))


@pytest.mark.parametrize(
    "name", ["cifar_resnet", "preact_cifar_resnet", "cifar_densenet", "highway_conv_19", "inception_resnet_v1"]
)
def test_the_units_of_our_networks_run_in_series(name: str) -> None:
    options = {"depth": 10, "growth": 4} if name == "cifar_densenet" else {"depth": 20} if name.endswith("cifar_resnet") else {}
    model = create_model(name, **options).eval()
    x = torch.randn(1, 3, *[96 if name.startswith("inception") else 40] * 2)
    assert run_in_series(model, x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gated_skips_leave_the_outputs_as_they_are() -> None:
    model, (x, _) = foreign(), batches()[0]
    gated = GatedSkips(model, x[:1])
    assert len(gated.names) == 4
    torch.testing.assert_close(gated(x), model(x))
    torch.testing.assert_close(gated(x[:3]), model(x[:3]))


@pytest.mark.slow
def test_a_published_network_of_torchvision_has_its_65536_paths() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.resnet50().eval()
    found = paths.measure(module_subject(model, batches(4, 10, 64)), Budget(30))
    assert found["num_paths"] == 2**16
    assert found["completeness_error"] < 1e-8


# ---------------------------------------------------------------------------------------------------------------- signal


def test_signal_says_which_units_break_the_identities() -> None:
    for name, exact in (("cifar_resnet", 0), ("preact_cifar_resnet", 4)):
        found = signal.measure(subject(name, depth=14), Budget(20))
        kept = [row for row in found["identities"] if row["signal"] is not None and row["signal"] < 1e-12]
        assert len(kept) == exact
        assert f"{exact} of 6 units are exact identities" in signal.read({"net": found})[1]
        assert len(found["trained"]["signal"]) == len(found["similarity"]) == 7
        assert found["similarity"][-1] == pytest.approx(1)
        assert found["carried"][-1] is not None
    assert found["trained"]["sum_derivative"]["kept"][1][-1] > 0


def test_signal_asks_the_identities_of_no_unit_that_concatenates() -> None:
    with torch.random.fork_rng(devices=[]):
        dense = create_model("cifar_densenet", depth=13, growth=4)
    found = signal.measure(module_subject(dense, batches()), Budget(20))
    said = signal.read({"net": found})[1]
    assert "all 9 units concatenate, of which the identities of a sum are not asked" in said
    assert "exact identities" not in said
    titles = [drawing.title for drawing in signal.draw({"net": found})]
    assert "How far each unit is from the identities" not in titles
    both = {"net": found, "sum": signal.measure(subject("preact_cifar_resnet", depth=14), Budget(20))}
    assert "How far each unit is from the identities" in [drawing.title for drawing in signal.draw(both)]


def test_signal_at_initialisation_has_the_plain_twin_beside_it() -> None:
    of = module_subject(network(depth=14), batches())
    of = Subject(**{**of.__dict__, "fresh": lambda: network(depth=14)})
    found = signal.measure(of, Budget(20))
    assert found["initial"]["signal"] != found["initial_twin"]["signal"]
    assert found["initial"]["signal"][0] == pytest.approx(found["initial_twin"]["signal"][0])
    assert of.model.training is False


@pytest.mark.parametrize("count", [1, 2, 3])
def test_signal_of_few_images_leaves_out_the_similarity_that_needs_four(count: int) -> None:
    result = analyze(network(depth=8), batches=batches(count), only=["signal"], minutes=0.2)
    (found,) = result["signal"].values()
    assert found["used"]["images"] == count
    assert found["similarity"] == [None] * 4
    assert found["trained"]["signal"][-1] > 0
    json.dumps(result.to_dict(), allow_nan=False)
    assert all(drawing.svg.startswith("<svg") for drawing in signal.draw(result["signal"]))


def test_signal_needs_units() -> None:
    with pytest.raises(NotApplicable, match="not built of units"):
        signal.measure(module_subject(foreign(), batches()), Budget(5))


# ----------------------------------------------------------------------------------------------------------- attribution


def test_attribution_keeps_pictures_and_the_error_that_it_prints() -> None:
    of = subject(depth=8)
    found = attribution.measure(of, Budget(20))
    assert [found["map"]["path"], found["map"]["shape"]] == ["stages.2", [64, 2, 2]]
    for row in found["images"]:
        for key, mode in (("picture", "RGB"), ("grad_cam", "L"), ("integrated_gradients", "L")):
            image = Image.open(io.BytesIO(base64.b64decode(row[key])))
            assert (image.size, image.mode) == ((SIDE, SIDE), mode)
        assert 0 < row["half_of_grad_cam"] <= 0.75
    x, _ = of.images(6)
    again = integrated_gradients(of.model, x, of.model(x).argmax(1), found["used"]["steps of the integral"])
    assert found["completeness_error"] == pytest.approx(again.error(), rel=1e-3, abs=1e-6)
    assert found["completeness_error"] < 0.01
    assert "misses the change of the score" in attribution.read({"net": found})[1]


def test_a_network_of_vectors_is_attributed_without_grad_cam() -> None:
    found = attribution.measure(subject("residual_mlp", image_size=SIDE, units=(2,)), Budget(10))
    assert found["map"] is None
    assert all(row["grad_cam"] is None for row in found["images"])
    assert "no map of features" in attribution.read({"net": found})[1]


# ------------------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("analysis", [signal, paths, attribution], ids=lambda analysis: analysis.name)
def test_results_are_plain_json_and_are_drawn_side_by_side_from_it(analysis: Analysis) -> None:
    results = {
        "one": analysis.measure(subject(depth=8), Budget(5)),
        "its <plain> twin": analysis.measure(subject(depth=8, plain=True), Budget(5)),
    }
    stored = json.loads(json.dumps(results, allow_nan=False))
    assert stored == results
    for of in ({"one": stored["one"]}, {"two": stored["its <plain> twin"]}, stored):
        drawings = analysis.draw(of)
        assert drawings
        assert all(drawing.svg.startswith("<svg") for drawing in drawings)
        sentences = analysis.read(of)
        assert len(sentences) == 2
        assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in sentences)
        assert all(name in sentences[1].lower() for name in of)
    assert results["one"]["used"]


@pytest.mark.parametrize("analysis", [signal, paths, attribution], ids=lambda analysis: analysis.name)
def test_the_network_is_left_as_it_was(analysis: Analysis) -> None:
    of = subject(depth=8)
    before = {key: value.clone() for key, value in of.model.state_dict().items()}
    done: list[float] = []
    analysis.measure(of, Budget(5, done.append))
    assert all(torch.equal(before[key], value) for key, value in of.model.state_dict().items())
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in of.model.modules())
    assert all(parameter.grad is None for parameter in of.model.parameters())
    assert done
    assert all(0 <= share <= 1 for share in done)
