"""A report is one file that shows what the run directory holds, whatever the names in it, and says what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from report_runs import CLASSES, HOSTILE, make_run

from residua import runs
from residua.errors import RequestError, RunError
from residua.report import write_report
from residua.report_inputs import read_inputs

VOID = {"meta", "img", "br", "link", "hr"}
REFERENCES = {"src", "href", "srcset", "poster", "data", "action", "xlink:href", "background"}


@dataclass
class Page(HTMLParser):
    """What is looked at of a page: tags with attributes, the text, and whether all that was opened was closed."""

    html: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " " if tag in {"br", "dd", "h4", "li", "span", "td", "th"} else ""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.tags if attribute in attributes]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def checked(path: Path) -> Page:
    """The page, after what must hold of every report."""
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert path.stat().st_size < 5_000_000
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base", "a:href"})
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in REFERENCES & attributes.keys():
            assert str(attributes[name]).startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", html)
    assert "http:" not in html
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in page.values("href")} <= set(ids)
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", html)
    return page


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = make_run(tmp_path_factory.mktemp("usual") / "run")
    path = write_report(run)
    assert path == run.path / "report.html"
    return checked(path)


def test_the_headline_states_result_interval_size_and_cost(usual: Page) -> None:
    for text in (
        "cifar_resnet on cifar10", "mistakes 44 of 1,000 test images", "4.40 %", "95 % interval 3.29 to 5.86 %", "Top-5 error",
        "11 min 42 s", "on 2 CPU cores", "272 k", "40.8 M multiply-adds an image", "5,000 images in 10 classes",
    ):  # fmt: skip
        assert text in usual.words
    assert "Balanced accuracy" not in usual.words


def test_all_sections_are_there_in_order(usual: Page) -> None:
    assert [i for i in usual.values("id") if "-" not in i] == ["run", "data", "curves", "result", "mistakes", "repeat", "limits"]


def test_what_was_run_is_told(usual: Page) -> None:
    for text in (
        "24 epochs; seed 0", "batch_size 128", "weight_decay 0.0001", "in_channels 3", "Plan bf16: 2.20 times the speed of fp32",
        "fp32-channels-last 331 ms 1.24", "no C++ compiler", "AMD EPYC 7B13", "torchvision 0.30.0", "4b1d2f0a9c7e", "655 MiB",
    ):  # fmt: skip
        assert text in usual.words


def test_the_data_and_what_was_found_in_it_are_told(usual: Page) -> None:
    for text in (
        "CIFAR-10 by its own files.", "RGB images, 32 x 32 pixels.",
        "train: 5,000 images, test: 1,000 images.", "1 unreadable, 1 duplicate, 1 empty",
        "train/cat/00001.jpg", "5,990 decoded before training", "1 file turned out to be unreadable during training",
        "train/dog/7.jpg", "The first batch of the first epoch.",
    ):  # fmt: skip
        assert text in usual.words


def test_plots_and_images_are_shown_with_their_data(usual: Page) -> None:
    assert usual.count("svg") == 7
    classes = usual.values("class")
    assert (classes.count("curve"), classes.count("bar") >= 20, classes.count("cell") > 10) == (6, True, True)
    assert usual.count("img") == 40 + 24
    assert all(usual.values("alt"))


def test_mistakes_name_label_prediction_and_probability(usual: Page) -> None:
    assert re.search(r"\w+ taken for \w+ \(\d+\.\d %\) own label: \d+\.\d % test/\w+/\d+\.png", usual.words)


def test_it_can_be_repeated(usual: Page) -> None:
    assert "residua train cifar10 --model resnet20 --epochs 24 --set optim.lr=0.4" in usual.words
    assert 'source = "cifar10"' in usual.text


def test_limits_are_told(usual: Page) -> None:
    assert "The training loss contains label smoothing, the measured loss does not" in usual.words
    for text in ("One run with one seed (0)", "also watched during training", "1 image could not be read", "5,990 of 6,000"):
        assert text in usual.words


def test_it_reads_in_the_dark_on_a_phone_and_on_paper(usual: Page) -> None:
    for rule in ("@media (prefers-color-scheme: dark)", "@media (max-width: 40rem)", "@media print"):
        assert rule in usual.html
    assert 'name="viewport"' in usual.html
    assert "default-src 'none'" in usual.html


def test_hostile_names_are_text_in_a_report_of_10_000_points(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", HOSTILE, num_points=10_000, findings=120)
    page = checked(write_report(run))
    for text in ("<script>alert(1)</script>", "onerror=alert(1)", "{{ 7 * 7 }}", "קלב נובח", HOSTILE[4], HOSTILE[5]):
        assert text in page.words
    assert "</style></svg>&amp;" in page.words
    assert "x" * 100 not in page.words
    assert "And 70 more" in page.words
    assert "train/cat/00049.jpg" in page.words
    assert "train/cat/00050.jpg" not in page.words


def test_names_and_command_of_the_run_itself_are_escaped_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_points=0, samples=False)
    evil = "<img src=x onerror=alert(1)>"

    def poison(values: dict[str, Any]) -> None:
        values["command"] = ["residua", "train", f"./{evil}", "a b\udce9"]
        values["hardware"] = {evil: evil}
        values["plan"] = {"name": evil, "note": evil, "tried": [{"name": evil, "outcome": evil}]}
        values["created"] = values["git"] = values["residua"] = evil

    edited(run.path / "manifest.json", poison)
    edited(run.path / "data.json", lambda values: values.update(source=evil, note=evil))
    for name in ("cifar10-test-center.json", "cifar10-test-ten-crop.json"):
        edited(run.path / "evaluations" / name, lambda values: values.update(note=evil))
    page = checked(write_report(run.path))
    assert page.count("img") == 0
    assert page.words.count(evil) >= 8


def test_a_new_run_has_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_points=0, evaluated=False, samples=False, findings=0)
    (run.path / "metrics.jsonl").write_text("", encoding="utf-8")
    for path in sorted(run.checkpoints.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    page = checked(write_report(str(run.path)))
    for text in (
        "not finished: it has come to step 0 of 24", "No final evaluation", "Nothing amiss", "keeps no sample images",
        "no metric lines yet", "known once the run has been evaluated",
    ):  # fmt: skip
        assert text in page.words


def test_the_smallest_manifest_and_data_card_suffice(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_points=24)
    (run.path / "manifest.json").write_text(json.dumps({"format": runs.FORMAT, "total_steps": 24}))
    (run.path / "data.json").write_text(json.dumps({"classes": list(CLASSES)}))
    page = checked(write_report(run.path))
    for text in ("states no plan", "states no class counts", "does not say by which command", "4.40 %"):
        assert text in page.words


def test_a_result_without_its_tables_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_points=0)
    for name in ("confusion_matrix", "per_class", "calibration", "worst", "top1_interval"):
        edited(run.path / "evaluations" / "cifar10-test-center.json", lambda values, name=name: values.pop(name))  # type: ignore[misc]
    (run.path / "evaluations" / "cifar10-test-ten-crop.json").write_text('{"top1_err')
    (run.path / "samples" / "worst.png").write_bytes(b"")
    page = checked(write_report(run.path))
    for text in ("calibration was not stored", "table of classes was not stored", "left out: cifar10-test-ten-crop.json"):
        assert text in page.words


def test_pictures_of_another_result_are_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_points=0)

    def rename(values: dict[str, Any]) -> None:
        for number, item in enumerate(values["worst"]):
            item["name"] = f"other/{number}.png"

    edited(run.path / "evaluations" / "cifar10-test-center.json", rename)
    page = checked(write_report(run.path))
    assert page.count("img") == 40
    assert "other/0.png" in page.words


def test_mistakes_without_pictures_are_a_table(tmp_path: Path) -> None:
    page = checked(write_report(make_run(tmp_path / "run", num_points=0, samples=False)))
    assert "keeps no pictures of them" in page.words
    assert re.search(r"test/\w+/\d+\.png \w+ \w+ \d+\.\d % \d+\.\d %", page.words)


def test_many_classes_are_summed_up_and_confusions_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [f"class {i}" for i in range(60)], num_points=0, per_class=40, samples=False)
    edited(run.path / "data.json", lambda values: values["counts"]["train"].__setitem__(7, 3))
    page = checked(write_report(run.path))
    assert page.count("svg") == 1
    assert "fewest: class 7;" in page.words
    assert "The 20 classes that are found least." in page.words
    assert "All 60 classes" in page.words
    assert "Balanced accuracy" in page.words


def test_only_the_central_crop_of_the_final_weights_on_the_final_split_makes_the_headline(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_points=0, samples=False)
    center = run.path / "evaluations" / "cifar10-test-center.json"
    values = json.loads(center.read_text())
    for number, change in enumerate(({"weights": "last"}, {"split": "train"}, {"data": "svhn"}, {"runs": ["a", "b"]})):
        other = {**values, **change, "top1_error": 90.0 + number}
        (run.path / "evaluations" / f"other-{number}.json").write_text(json.dumps(other))
    inputs = read_inputs(run)
    assert inputs.main == values
    assert sorted(result["top1_error"] for result in inputs.evaluations)[-4:] == [90.0, 91.0, 92.0, 93.0]


def test_large_noisy_sample_images_stay_within_the_size(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (40, 3, 224, 224), dtype=torch.uint8)
    page = checked(write_report(make_run(tmp_path / "run", num_points=0, images=images)))
    assert 40 < page.count("img") < 64


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a run directory"):
        write_report(tmp_path)


def test_a_report_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_points=0, samples=False, evaluated=False)
    (run.path / "report.html").mkdir()
    with pytest.raises(RunError, match=r"report\.html cannot be written"):
        write_report(run)
