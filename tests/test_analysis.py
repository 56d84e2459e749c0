"""The frame of the analyses: budgets, subjects from runs and modules, the command, what it writes and what it refuses."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from json_page import assert_as_documented
from torch import Tensor, nn
from toy_runs import CLASSES, make_run, one_thread, write_folder  # noqa: F401
from typer.testing import CliRunner

import residua
from residua.analysis import CATALOG, LADDER, Budget, affordable, on_ladder
from residua.analyzing import allocated, analyze
from residua.cli import app
from residua.errors import RequestError
from residua.models import create_model
from residua.report_analysis import page
from residua.rewired import Rewired
from residua.runs import Run
from residua.subjects import module_subject, run_subject
from residua.unit import switched_off

QUICK = ("responses", "contribution")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "first", source)


@pytest.fixture
def other(source: Path, tmp_path: Path) -> Run:
    return make_run(tmp_path / "second", source, seed=5)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------------------------------- budget


def test_a_budget_counts_down_and_says_how_far_it_is() -> None:
    now, said = [10.0], []
    budget = Budget(5.0, said.append, lambda: now[0])
    now[0] = 13.0
    assert (budget.spent, budget.left) == (3.0, 2.0)
    now[0] = 99.0
    assert budget.left == 0.0
    for share in (-1.0, 0.25, 7.0):
        budget.progress(share)
    assert said == [0.0, 0.25, 1.0]


def test_numbers_of_images_are_those_of_the_ladder_or_all_there_are() -> None:
    assert affordable(10.0, 0.01, 5_000) == 1_000
    assert affordable(10.0, 0.01, 700) == 700
    assert affordable(0.001, 1.0, 5_000) == LADDER[0]
    assert affordable(0.001, 1.0, 3) == 3
    assert on_ladder(749.9, 5_000) == 500
    assert list(LADDER) == sorted(LADDER)


def test_time_is_shared_out_and_what_one_cannot_use_goes_to_the_others() -> None:
    forever = float("inf")
    assert allocated(60, [1, 2, 3], [forever] * 3) == [10, 20, 30]
    assert allocated(60, [1, 2, 3], [forever, 5, forever]) == pytest.approx([13.75, 5, 41.25])
    assert allocated(60, [1, 1], [10, 20]) == [10, 20]
    assert allocated(-3, [1, 1], [forever, forever]) == [0, 0]


# ------------------------------------------------------------------------------------------------------------- subjects


def test_the_images_of_a_run_come_in_an_even_mixture_and_the_same_each_time(run: Run) -> None:
    subject = run_subject(run)
    assert subject.num_images == 21
    assert subject.classes == CLASSES
    first, again = (torch.cat([labels for _, labels in subject.batches()]) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first.sort().values, torch.arange(7).repeat_interleave(3))
    assert len(first[:7].unique()) > 3
    x, labels = subject.images(10)
    assert (len(x), len(labels)) == (10, 10)
    assert torch.equal(x, torch.cat([batch for batch, _ in subject.batches()])[:10])


def test_the_error_of_a_subject_is_what_evaluation_measures(run: Run) -> None:
    subject = run_subject(run)
    with torch.inference_mode():
        wrong = torch.cat([subject.model(x).argmax(1) != labels for x, labels in subject.batches()])
    assert 100 * float(wrong.double().mean()) == pytest.approx(residua.evaluate(run, save=False).top1_error)


def test_the_units_say_where_the_shape_changes(run: Run) -> None:
    subject = run_subject(run)
    assert [(place.path, place.stage, place.changes_shape, place.shortcut) for place in subject.units] == [
        ("stages.0.0", 0, False, True), ("stages.1.0", 1, True, True), ("stages.2.0", 2, True, True),
    ]  # fmt: skip


def test_a_fresh_network_is_the_same_each_time_and_not_the_trained_one(run: Run) -> None:
    subject = run_subject(run)
    assert subject.fresh is not None
    torch.manual_seed(1)
    one = subject.fresh().state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = subject.fresh().state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["stem.conv.weight"], subject.model.state_dict()["stem.conv.weight"])


def test_a_unit_is_off_within_the_block_only(run: Run) -> None:
    subject = run_subject(run)
    x = images()
    with torch.inference_mode():
        whole = subject.model(x)
        with subject.off(subject.units[1]) as network, switched_off(subject.units[1].unit):  # type: ignore[arg-type]
            assert torch.equal(network(x), subject.model(x))
            assert not torch.equal(network(x), whole)
        assert torch.equal(subject.model(x), whole)


class Foreign(nn.Module):
    """A residual network that is not built of units: two blocks, the second with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.two = nn.Sequential(nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.projection = nn.Conv2d(8, 16, 1, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor, off: tuple[int, ...] = ()) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.one(x) * (0 not in off))
        x = torch.relu(self.projection(x) + self.two(x) * (1 not in off))
        return self.head(x.mean((2, 3)))


def test_the_skips_of_any_module_can_be_switched_off() -> None:
    torch.manual_seed(0)
    model = Foreign()
    x = images()
    subject = module_subject(model, [(x, torch.zeros(6, dtype=torch.int64))], classes=[f"class {n}" for n in range(10)])
    assert [(place.changes_shape, place.shortcut) for place in subject.units] == [(False, True), (True, True)]
    assert all(place.unit is None for place in subject.units)
    with torch.inference_mode():
        for off in [(), (0,), (1,), (0, 1)]:
            for count in (2, 5, 6):
                with subject.off(*(subject.units[place] for place in off)) as network:
                    assert torch.allclose(network(x[:count]), model(x[:count], off), atol=1e-6), (off, count)


class Offset(Foreign):
    """Its captured graph holds the number of images: for one image it gives as many equal rows as it was captured with."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.arange(10.0))

    def forward(self, x: Tensor, off: tuple[int, ...] = ()) -> Tensor:
        return super().forward(x, off) + self.offset.expand(len(x), -1)


def test_a_graph_that_holds_its_number_of_images_is_captured_anew_for_another() -> None:
    torch.manual_seed(0)
    model, x = Offset(), images()
    rewired = Rewired(model, x[:2])
    with torch.inference_mode():
        for count in (1, 2, 5):
            for off in [(), (0,), (0, 1)]:
                found = rewired(x[:count], off)
                assert found.shape == (count, 10)
                assert torch.allclose(found, model(x[:count], off), atol=1e-6)


def test_channels_that_a_concatenation_adds_are_no_transition() -> None:
    dense = module_subject(create_model("cifar_densenet", depth=13, growth=4), [(images(), torch.zeros(6, dtype=torch.int64))])
    assert [place.stage for place in dense.units] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert not any(place.changes_shape for place in dense.units)
    told = analyze(dense, only=["lesion"], minutes=0.1).entries[0]["reading"][1]
    assert "inside a stage" in told
    assert "at a transition" not in told
    foreign = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=10)
    skips = module_subject(foreign, [(torch.randn(6, 3, 32, 32), torch.zeros(6, dtype=torch.int64))]).units
    assert skips
    assert not any(place.changes_shape for place in skips)


def test_a_module_is_given_with_batches_that_can_be_read_again() -> None:
    model, labels = create_model("cifar_resnet", depth=8), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(RequestError, match="read several times"):
        module_subject(model, iter([(images(), labels)]))
    with pytest.raises(RequestError, match="batches are empty"):
        module_subject(model, [])
    with pytest.raises(RequestError, match="10 logits, and 2 classes"):
        module_subject(model, [(images(), labels)], classes=["a", "b"])
    with pytest.raises(RequestError, match=r"an analysis needs logits \[N, K\]"):
        module_subject(nn.Conv2d(3, 3, 1), [(images(), labels)])
    with pytest.raises(RequestError, match="give batches="):
        analyze(model)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 10]), "10 logits, and a label is 10: labels are from 0 to 9"),
        (torch.tensor([0, 1, 2, -1, 4, 5]), "label is -1"),
        (torch.zeros(6), r"whole numbers.*torch.float32 \[6\]"),
        (torch.zeros(6, dtype=torch.bool), "whole numbers"),
        (torch.zeros(6, 1, dtype=torch.int64), r"int64 \[6, 1\]"),
        (torch.zeros(5, dtype=torch.int64), r"one for each image; for images \[6, 3, 16, 16\]"),
        ([0] * 6, "they are list"),
    ],
)
def test_labels_that_are_no_classes_are_refused_before_any_work(labels: Any, words: str) -> None:
    fine = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(RequestError, match=words):
        analyze(create_model("cifar_resnet", depth=8), batches=[(images(), fine), (images(), labels)], only=["responses"])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.zeros(6, 3, 16, 16, dtype=torch.uint8), r"floating-point tensor .*these are torch\.uint8 \[6, 3, 16, 16\].*/ 255"),
        (images().numpy(), "these are ndarray"),
    ],
)
def test_images_that_are_no_floats_are_refused_before_any_work(wrong: Any, words: str) -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(RequestError, match=words):
        analyze(create_model("cifar_resnet", depth=8), batches=[(wrong, labels)], only=["responses"])


def test_one_logit_is_no_choice() -> None:
    model = create_model("cifar_resnet", depth=8, num_classes=1)
    with pytest.raises(RequestError, match="at least two classes"):
        module_subject(model, [(images(), torch.zeros(6, dtype=torch.int64))])


def test_labels_of_any_whole_numbers_are_taken() -> None:
    subject = module_subject(create_model("cifar_resnet", depth=8), [(images(), torch.arange(6, dtype=torch.uint8))])
    _, labels = subject.images(6)
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(range(6))


# ------------------------------------------------------------------------------------------------------------- the verb


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)])


def only(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", name)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "lesoin"], ["no analysis called 'lesoin'", "'lesion'"]),
        (["--minutes", "0"], ["minutes"]),
        (["--split", "tets"], ["'tets'", "'test'"]),
        (["--device", "tpu3"], ["tpu3"]),
    ],
)
def test_a_wrong_request_is_refused_before_any_work(run: Run, arguments: list[str], words: list[str]) -> None:
    result = command(run.path, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert all(word in result.stderr for word in words), result.stderr
    assert not (run.path / "analysis.html").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    reads = []

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            reads.append(1)
            yield images(), torch.zeros(6, dtype=torch.int64)

    for out in (file, file / "deep" / "down", tmp_path / "broken"):
        with pytest.raises(RequestError, match=f"--out {out} cannot be written"):
            analyze(create_model("cifar_resnet", depth=8), batches=Loader(), only=["responses"], minutes=0.1, out=out)
    assert not reads
    assert {item.name for item in tmp_path.iterdir()} == {"file", "broken"}


def test_the_command_writes_one_document_and_a_page(source: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a run", source)
    result = command(run.path, *only(*QUICK), "--minutes", "0.2", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert_as_documented("analyze", document)
    assert [entry["name"] for entry in document["analyses"]] == list(QUICK)
    assert document["page"] == str(run.path / "analysis.html")
    assert document["subjects"][0]["units"] == 3
    assert all(list(entry["results"]) == ["a run"] and len(entry["reading"]) == 2 for entry in document["analyses"])
    assert "at most" in result.stderr
    assert "responses of a run" in result.stderr
    text = (run.path / "analysis.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 5
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    said = command(run.path, *only("responses"), "--minutes", "0.2")
    assert "Responses of the layers" in said.stdout


def test_a_module_comes_back_in_the_mode_it_was_in() -> None:
    model = create_model("cifar_resnet", depth=8, num_classes=len(CLASSES)).train()
    model.head.eval()  # a frozen part
    batches = [(images(), torch.zeros(6, dtype=torch.int64))]
    analyze(model, batches=batches, only=["responses"], minutes=0.1)
    assert model.training
    assert model.stages.training
    assert not model.head.training


def test_the_page_repeats_the_options_that_decided_what_was_measured(source: Path, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run", source), tmp_path / "a page"
    options = ["--data", str(source), "--split", "train", "--out", str(out)]
    result = command(run.path, *only("responses"), *options, "--minutes", "0.1", "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert_as_documented("analyze", document)
    assert document["asked"] == {"data": str(source), "split": "train", "out": str(out)}
    line = re.search(r'<p class="command">(.*?)</p>', (out / "analysis.html").read_text(encoding="utf-8"))
    assert line is not None
    words = shlex.split(html.unescape(re.sub(r"<.*?>", "", line[1])))
    assert words == ["residua", "analyze", str(run.path), *options]


def test_another_analysis_of_the_same_network_joins_the_page_and_of_another_checkpoint_replaces_it(
    source: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", source)
    for name in QUICK:
        analyze(run, only=[name], minutes=0.2)
    stored = json.loads((run.path / "analysis.json").read_text(encoding="utf-8"))
    assert {entry["name"] for entry in stored["analyses"]} == set(QUICK)
    stored["subjects"][0]["checkpoint"] = "step-00000099"
    (run.path / "analysis.json").write_text(json.dumps(stored), encoding="utf-8")
    analyze(run, only=["responses"], minutes=0.2)
    stored = json.loads((run.path / "analysis.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in stored["analyses"]] == ["responses"]


def test_two_runs_stand_side_by_side_under_names_that_differ(run: Run, other: Run, tmp_path: Path) -> None:
    result = analyze([run.path, other], only=["responses"], minutes=0.2, out=tmp_path / "out")
    assert list(result["responses"]) == ["first", "second"]
    assert result.page == tmp_path / "out" / "analysis.html"
    twice = analyze([run, run], only=["responses"], minutes=0.2, out=tmp_path / "out")
    assert len(set(twice["responses"])) == 2


def test_what_has_no_meaning_is_left_out_with_its_reason_and_refused_if_nothing_else_was_asked_for() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    batches = [(images(), torch.zeros(6, dtype=torch.int64))]
    result = analyze(model, batches=batches, only=QUICK, minutes=0.2)
    left = {entry["name"]: entry["left_out"] for entry in result.entries}
    assert "no units" in left["contribution"]["Sequential"]
    assert not left["responses"]
    assert result.page is None
    with pytest.raises(RequestError, match="no units"):
        analyze(model, batches=batches, only=["contribution"], minutes=0.2)


def test_analyses_leave_the_global_generator_and_the_mode_of_the_process_alone(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    analyze(run, only=QUICK, minutes=0.2, out=tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_an_interruption_keeps_what_is_done(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    run = make_run(tmp_path / "run", source)
    entry = CATALOG.get("contribution")
    monkeypatch.setattr("residua.analyses.contribution.contribution", replace(entry, measure=interrupted))
    with pytest.raises(KeyboardInterrupt):
        analyze(run, only=["responses", "contribution"], minutes=0.2)
    stored = json.loads((run.path / "analysis.json").read_text(encoding="utf-8"))
    assert [item["name"] for item in stored["analyses"]] == ["responses"]


def test_texts_of_the_page_that_come_from_outside_are_escaped(run: Run, tmp_path: Path) -> None:
    document = analyze(run, only=["responses"], minutes=0.2, out=tmp_path).to_dict()
    subjects = [{**document["subjects"][0], "name": "<b>&\u202e"}]
    text = page({**document, "subjects": subjects})
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "\u202e" not in text


def test_batches_of_a_loader_are_read_anew_each_time() -> None:
    reads = []

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            reads.append(1)
            yield images(), torch.zeros(6, dtype=torch.int64)

    subject = module_subject(create_model("cifar_resnet", depth=8), Loader())
    before = len(reads)
    subject.images(3)
    assert len(reads) == before + 1
