"""The lesion study: every damage is what it says, counted with what lies before it computed once."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

import doc_lesions
import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor, nn

from residua.analyses.lesion import lesion
from residua.analysis import Budget, Subject
from residua.lesions import Damage, Patient, kendall_tau, pairs_drawn, patient
from residua.models import create_model
from residua.network import Network
from residua.subjects import module_subject
from residua.unit import Unit, switched_off, walk
from residua.weight_layers import removed

CLASSES = 10


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def trained(name: str, **options: Any) -> Network:
    """Random weights and batch statistics of one batch; the classes are told apart somehow."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **options).train()
        with torch.no_grad():
            model(images(32))
    return model.eval()


def subject(model: nn.Module, count: int = 60, size: int = 25) -> Subject:
    """Labels are what the model says, but for every third image."""
    x = images(count)
    with torch.inference_mode():
        labels = model(x).argmax(1)
    labels = torch.where(torch.arange(count) % 3 == 0, (labels + 1) % CLASSES, labels)
    return module_subject(model, list(zip(x.split(size), labels.split(size))))


def error(model: nn.Module, of: Subject) -> float:
    """The error in per cent, the whole network on all images."""
    with torch.inference_mode():
        wrong = torch.cat([model(x).argmax(1) != labels for x, labels in of.batches()])
    return 100 * float(wrong.double().mean())


@pytest.fixture(scope="module", autouse=True)
def single_precision() -> Iterator[None]:
    """So that equal counts can be asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("residua.analyses.lesion.precision_here", lambda *_: "fp32")
        yield


@pytest.fixture(scope="module")
def residual() -> tuple[Subject, dict[str, Any]]:
    of = subject(trained("resnet20"))
    return of, lesion.measure(of, Budget(60))


@pytest.fixture(scope="module")
def plain() -> tuple[Subject, dict[str, Any]]:
    of = subject(trained("plain20"))
    return of, lesion.measure(of, Budget(60))


def test_the_error_with_one_unit_off_is_that_of_the_whole_network_with_that_unit_off(
    residual: tuple[Subject, dict[str, Any]],
) -> None:
    of, result = residual
    assert result["kind"] == "units"
    assert result["used"] == {"images": 60, "draws": 20, "precision": "fp32"}
    assert result["baseline"] == result["baseline_in_fp32"] == pytest.approx(100 * 20 / 60)
    located = list(walk(of.model))
    assert [row["path"] for row in result["single"]] == [item.path for item in located]
    assert [row["path"] for row in result["single"] if row["transition"]] == ["stages.1.0", "stages.2.0"]
    for item, row in zip(located, result["single"]):
        with switched_off(item.unit):
            assert row["error"] == pytest.approx(error(of.model, of)), item.path
    assert len({row["error"] for row in result["single"]}) > 3


def test_several_units_off_are_all_off(residual: tuple[Subject, dict[str, Any]]) -> None:
    of, result = residual
    found, units = patient(of), [item.unit for item in walk(of.model)]
    x, _ = next(of.batches())
    with torch.inference_mode():
        signals = found.signals(x)
        for chosen in [(0,), (8,), (3, 5), (0, 4, 8), tuple(range(9))]:
            with switched_off(*(units[place] for place in chosen)):
                expected = of.model(x)
            given = found.logits(found.without([found.targets[place] for place in chosen]), x, signals)
            assert torch.equal(given, expected)
    assert [row["k"] for row in result["random"]] == [1, 2, 3, 4, 5, 6]
    for row in result["random"]:
        assert len(row["errors"]) == 20
        assert row["errors"][0] <= row["q1"] <= row["median"] <= row["q3"] <= row["errors"][-1]


def test_swapped_units_are_those_of_a_network_in_which_they_stand_in_each_others_place() -> None:
    of = subject(trained("resnet20"))
    found = patient(of)
    assert [len(group) for group in found.swappable] == [3, 2, 2]
    x, _ = next(of.batches())
    first = found.swappable[0]
    for pairs, order in (([(0, 1)], (1, 0, 2)), ([(0, 1), (1, 2)], (1, 2, 0)), ([(0, 2), (0, 2)], (0, 1, 2))):
        damage, tau = found.shuffled([(first[a], first[b]) for a, b in pairs])
        other = copy.deepcopy(of.model)
        other.stages[0] = nn.Sequential(*(of.model.stages[0][place] for place in order))
        with torch.inference_mode():
            assert torch.equal(found.logits(damage, x, found.signals(x)), other(x))
        whole = [*order, *range(3, 9)]
        assert tau == pytest.approx(kendalltau(range(9), whole).statistic)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet", {"depth": 20}),
        ("cifar_resnet", {"depth": 20, "shortcut": "B"}),
        ("preact_cifar_resnet", {"depth": 20}),
        ("cifar_wide_resnet", {"depth": 22, "width": 1}),
        ("cifar_resnext", {"cardinality": 4, "width": 8}),
    ],
    ids=str,
)
def test_steps_that_are_ready_for_inference_give_what_the_network_gives(name: str, options: dict[str, Any]) -> None:
    of = subject(trained(name, **options))
    exact, fp32, bf16 = patient(of), patient(of, "fp32"), patient(of, "bf16")
    assert (exact.dtype, fp32.dtype, bf16.dtype) == (None, torch.float32, torch.bfloat16)
    x, _ = next(of.batches())
    ks = [found.without([found.targets[place] for place in (0, 4, 5)]) for found in (exact, fp32, bf16)]
    ones = [found.without([found.targets[3]]) for found in (exact, fp32, bf16)]
    swaps = [found.shuffled([found.swappable[-1][:2]])[0] for found in (exact, fp32, bf16)]  # type: ignore[list-item]
    with torch.inference_mode():
        signals = [found.signals(x) for found in (exact, fp32, bf16)]
        for damages in ([Damage()] * 3, ones, ks, swaps):
            wanted, close, near = (
                found.logits(damage, x, known) for found, damage, known in zip((exact, fp32, bf16), damages, signals)
            )
            torch.testing.assert_close(close, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
            assert float((near - wanted).norm() / (wanted - wanted.mean()).norm()) < 0.2


def test_networks_whose_units_cannot_be_replaced_are_damaged_as_they_are() -> None:
    for model in (trained("densenet_40_12", num_classes=CLASSES), trained("plain20"), Foreign().eval()):
        assert patient(subject(model, count=10), "bf16").dtype is None
    hooked = trained("resnet20")
    hooked.stages[0].register_forward_hook(lambda *_: None)
    assert patient(subject(hooked, count=10), "bf16").dtype is None


def test_kendalls_tau_is_scipys() -> None:
    for order in itertools.permutations(range(5)):
        assert kendall_tau(order) == pytest.approx(kendalltau(range(5), order).statistic)


def test_pairs_are_of_one_group_and_a_function_of_their_keys() -> None:
    groups = [(1, 2, 3), (7, 8)]
    drawn = pairs_drawn(groups, 200, 0, "swap")
    assert drawn == pairs_drawn(groups, 200, 0, "swap")
    assert drawn != pairs_drawn(groups, 200, 1, "swap")
    assert set(drawn) == {(1, 2), (1, 3), (2, 3), (7, 8)}


def test_of_a_plain_network_each_layer_that_keeps_its_shape_is_removed_and_the_others_are_zero(
    plain: tuple[Subject, dict[str, Any]],
) -> None:
    of, result = plain
    found = patient(of)
    assert result["kind"] == "layers"
    assert len(result["single"]) == 19
    assert [row["path"] for row in result["single"] if row["left"] == "zero"] == [
        "stem.conv", "stages.1.0.branch.conv1", "stages.2.0.branch.conv1",
    ]  # fmt: skip
    for target, row in zip(found.targets, result["single"]):
        if target.what == "input":
            assert target.layer is not None
            with removed(target.layer):
                assert row["error"] == pytest.approx(error(of.model, of)), target.path


def test_a_plain_network_with_a_layer_of_zeros_says_one_class_whatever_it_sees(plain: tuple[Subject, dict[str, Any]]) -> None:
    of, result = plain
    found = patient(of)
    x, labels = next(of.batches())
    with torch.inference_mode():
        signals = found.signals(x)
        for target, row in zip(found.targets, result["single"]):
            logits = found.logits(found.without([target], zero=True), x, signals)
            assert torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-5)
            assert row["error_when_zero"] == pytest.approx(100 * float((logits.argmax(1) != labels).float().mean()))


class Foreign(nn.Module):
    """No chain, no units: convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def test_a_module_that_is_no_chain_is_damaged_as_a_whole() -> None:
    torch.manual_seed(0)
    of = subject(Foreign().eval())
    found: Patient = patient(of)
    assert found.chain is None
    result = lesion.measure(of, Budget(60))
    assert result["swaps"] == []
    assert "chain" in result["without_swaps"]
    model = of.model
    with torch.inference_mode():
        wrong = [
            model.head(torch.relu(torch.relu(model.first(x))).mean((2, 3))).argmax(1) != labels  # type: ignore[operator]
            for x, labels in of.batches()
        ]
    assert result["single"][1]["error"] == pytest.approx(100 * float(torch.cat(wrong).double().mean()))


class Rows(nn.Module):
    """The rows of an image one after the other, through recurrent layers or attention, which give tuples; the second keeps the
    shape of its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first = kind, nn.LSTM(48, 12, batch_first=True)
        recurrent = {"LSTM": nn.LSTM, "GRU": nn.GRU}
        self.second = (
            recurrent[kind](12, 12, batch_first=True) if kind in recurrent else nn.MultiheadAttention(12, 2, batch_first=True)
        )
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor, without: str = "") -> Tensor:
        x = x.permute(0, 2, 1, 3).flatten(2)
        x = torch.zeros(len(x), 16, 12) if without == "first" else self.first(x)[0]
        if without != "second":
            x = self.second(x, x, x)[0] if self.kind == "attention" else self.second(x)[0]
        return self.head(x[:, -1])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "attention"])
def test_a_layer_that_gives_a_tuple_is_removed_or_silenced_like_any_other(kind: str) -> None:
    torch.manual_seed(0)
    model = Rows(kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that the rows matter
    of = subject(model)
    result = lesion.measure(of, Budget(60))
    assert [(row["path"], row["left"]) for row in result["single"]] == [("first", "zero"), ("second", "input")]
    for row in result["single"]:
        with torch.inference_mode():
            wrong = [model(x, row["path"]).argmax(1) != labels for x, labels in of.batches()]
        assert row["error"] == pytest.approx(100 * float(torch.cat(wrong).double().mean()))
        assert row["error"] > result["baseline"]
    assert all(row["error_when_zero"] is not None for row in result["single"])


def test_a_sequence_whose_layers_hand_on_tuples_is_damaged_as_a_whole() -> None:
    class Last(nn.Module):
        def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
            return x[0][:, -1]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(2), nn.LSTM(256, 256, batch_first=True), Last(), nn.Linear(256, CLASSES)).eval()
    of = subject(model)
    assert patient(of).chain is None
    assert [row["left"] for row in lesion.measure(of, Budget(60))["single"]] == ["input"]


class Towers(nn.Module):
    """No chain, and signals that two layers read: the first layer's input is the image itself."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.act, self.head = act, nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        towers = self.act(self.second(x)), self.third(x)
        return self.head((towers[0] * towers[1]).mean((2, 3)))


def rectified(kind: str, inplace: bool) -> nn.Module:
    """A network with leaky rectifiers that work in place or not, of the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        act = nn.LeakyReLU(0.4, inplace)
        if kind == "towers":
            return Towers(act).eval()
        end = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)]
        convs: list[nn.Module] = [nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)]
        convs += [nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)  # type: ignore[arg-type]
        if kind == "layers":
            return nn.Sequential(*(part for conv in convs for part in (conv, act)), *end).eval()
        if kind == "act first":
            return nn.Sequential(*convs[:2], *(nn.Sequential(act, conv) for conv in convs[2:]), *end).eval()
        return nn.Sequential(*convs[:2], *(Unit(conv, nn.Identity(), post=act) for conv in convs[2:]), *end).eval()


@pytest.mark.parametrize("kind", ["layers", "act first", "units", "towers"])
def test_what_works_in_place_does_not_reach_the_signals_that_damages_share(kind: str) -> None:
    of = [subject(rectified(kind, inplace)) for inplace in (False, True)]
    before = [images.clone() for images, _ in of[1].batches()]
    results = [lesion.measure(one, Budget(60)) for one in of]
    assert results[0] == results[1]
    assert len({row["error"] for row in results[0]["single"]}) > 1
    assert all(torch.equal(images, kept) for (images, _), kept in zip(of[1].batches(), before))


def test_little_time_means_fewer_images_and_draws_and_the_result_says_how_many() -> None:
    of = subject(trained("resnet20"), count=120, size=40)
    ticks = iter(range(10**6))  # a second passes at each look at the clock
    result = lesion.measure(of, Budget(60.0, clock=lambda: float(next(ticks))))
    assert result["used"]["images"] < 120
    assert result["used"]["draws"] < 20
    assert json.dumps(result, allow_nan=False)


def test_the_sentences_say_the_figures(residual: tuple[Subject, dict[str, Any]], plain: tuple[Subject, dict[str, Any]]) -> None:
    results = {"with": residual[1], "without": plain[1]}
    how, said = lesion.read(results)
    assert "veit2016" in how
    assert said.startswith("In with the error of 33.3")
    assert "7 units inside a stage" in said
    assert "in without" in said
    assert "16 layers inside a stage" in said
    drawings = lesion.draw(results)
    assert [drawing.title for drawing in drawings] == ["One at a time", "Several at a time", "Swapped"]
    assert all(text in drawings[0].svg for text in ("with, one unit less", "without, one layer less"))


def test_the_figures_and_the_table_of_the_documentation_follow_their_numbers() -> None:
    results = json.loads(doc_lesions.KEPT.read_text(encoding="utf-8"))
    text = doc_lesions.PAGE.read_text(encoding="utf-8")
    assert doc_lesions.page(text, results) == text
    for name, svg in doc_lesions.drawings(results).items():
        assert (doc_lesions.FIGURES / name).read_text(encoding="utf-8") == svg, f"{name} is old: run tests/doc_lesions.py"
