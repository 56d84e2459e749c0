"""Evaluation against the same computed by hand from the run's network and its decoded images."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V
from toy_runs import CLASSES, SIZE, make_run, network_state, one_thread, write_folder, write_image  # noqa: F401

from residua import runs
from residua.augment import normalized
from residua.batches import Batch, CentralView
from residua.dataset import FileSamples
from residua.errors import RequestError, RunError, RunWarning
from residua.evaluation import Evaluation, evaluate, evaluation_view, watch
from residua.images import decode
from residua.models import create_model
from residua.network import Network, Stage, fully_connected_head, small_stem
from residua.runs import Run
from residua.scoring import chosen_device, dense_logits, dense_scales, dense_window, grouped_by_shape
from residua.views import central_view, shorter_side

CPU = torch.device("cpu")
RAGGED = ((SIZE, SIZE), (20, 31), (40, 17), (23, 23))
NOT_AN_IMAGE = b"this is not an image"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), sizes=RAGGED)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "run", folder)


def measured(runs: Any, **options: Any) -> Evaluation:
    return evaluate(runs, **{"device": "cpu", "save": False, **options})


def test_a_runs_data_that_is_not_there_is_told_as_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pets", per_class=1)
    (tmp_path / "elsewhere").mkdir()
    run = make_run(tmp_path / "run", "pets")
    monkeypatch.chdir(tmp_path)
    assert measured(run).num_samples == len(CLASSES)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match=r"trained on 'pets', and there is no such folder or file, seen from .*elsewhere"):
        measured(run)
    assert measured(run, data="../pets").num_samples == len(CLASSES)


def files(folder: Path) -> list[Path]:
    """The test images in the order of their places."""
    return sorted((folder / "test").glob("*/*.png"))


def labels_of(folder: Path) -> Tensor:
    return torch.tensor([CLASSES.index(path.parent.name) for path in files(folder)])


@torch.inference_mode()
def by_hand(run: Run, folder: Path, scored: Callable[[torch.nn.Module, Tensor], Tensor]) -> Tensor:
    """Probabilities [N, K]: `scored` gets the network and one decoded image."""
    network = runs.load(run)
    return torch.stack([scored(network, decode(path, 3)) for path in files(folder)])


def centre(run: Run) -> Callable[[torch.nn.Module, Tensor], Tensor]:
    return lambda network, image: network(normalized(central_view(image, SIZE)[None], run.normalization)).softmax(1)[0]


def agree(result: Evaluation, probabilities: Tensor, labels: Tensor) -> None:
    """The result's numbers are those of `probabilities`."""
    own = probabilities[torch.arange(len(labels)), labels]
    assert result.num_samples == len(labels)
    assert result.nll == pytest.approx(float(-own.log().mean()), abs=2e-6)
    wrong = probabilities.argmax(1) != labels
    assert result.top1_error == pytest.approx(100 * float(wrong.double().mean()))
    missed = (probabilities.topk(5).indices != labels[:, None]).all(1)
    assert result.top5_error == pytest.approx(100 * float(missed.double().mean()))
    confusion = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for label, predicted in zip(labels, probabilities.argmax(1)):
        confusion[label, predicted] += 1
    assert torch.equal(torch.tensor(result.confusion_matrix), confusion)


# --------------------------------------------------------------------------------------------------------------- results


def test_the_centre_crop_gives_what_the_network_says(run: Run, folder: Path) -> None:
    probabilities = by_hand(run, folder, centre(run))
    result = measured(run)
    agree(result, probabilities, labels_of(folder))
    low, high = result.top1_interval
    assert 0 <= low < result.top1_error < high <= 100
    recalls = [item["recall"] for item in result.per_class]
    assert result.balanced_accuracy == pytest.approx(sum(recalls) / len(CLASSES))
    assert [item["class"] for item in result.per_class] == list(CLASSES) == list(result.classes)
    assert sum(item["count"] for item in result.calibration["bins"]) == result.num_samples
    assert (result.split, result.protocol, result.scales, result.data) == ("test", "center", None, str(folder))
    assert result.seconds > 0
    assert result.images_per_second == pytest.approx(len(probabilities) / result.seconds)


def test_the_worst_are_the_wrong_ones_whose_label_got_least(run: Run, folder: Path) -> None:
    probabilities, labels = by_hand(run, folder, centre(run)), labels_of(folder)
    worst = measured(run).worst
    given = [item.label_probability for item in worst]
    assert given == sorted(given)
    assert len(worst) == int((probabilities.argmax(1) != labels).sum())
    for item in worst:
        row = probabilities[item.place]
        assert files(folder)[item.place].as_posix().endswith(item.name)
        assert item.label != item.predicted == CLASSES[int(row.argmax())]
        assert item.label_probability == pytest.approx(float(row[CLASSES.index(item.label)]), abs=1e-6)
        assert item.predicted_probability == pytest.approx(float(row.max()), abs=1e-6)


@pytest.mark.parametrize("protocol", ["center", "ten-crop", "six-view", "dense"])
def test_no_result_depends_on_the_batch_size(run: Run, protocol: str) -> None:
    scales = (12, 20) if protocol == "dense" else None
    results = [measured(run, protocol=protocol, scales=scales, batch_size=size) for size in (1, 4, 20)]
    for result in results[1:]:
        assert result.confusion_matrix == results[0].confusion_matrix
        assert result.nll == pytest.approx(results[0].nll, abs=1e-5)
        assert result.num_samples == 3 * len(CLASSES)


def test_workers_change_nothing(run: Run) -> None:
    results = [measured(run, batch_size=8, workers=workers) for workers in (0, 1)]
    assert results[0].nll == results[1].nll
    assert results[0].confusion_matrix == results[1].confusion_matrix


def test_nothing_is_drawn_from_the_global_generator(run: Run) -> None:
    before = torch.get_rng_state()
    measured(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_few_classes_have_no_top5_error(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images", CLASSES[:3], per_class=2)
    result = measured(make_run(tmp_path / "run", source, classes=CLASSES[:3]))
    assert result.top5_error is None
    assert result.top5_interval is None
    assert result.members[0].top5_error is None
    assert result.num_samples == 6


def test_the_average_is_measured_unless_the_last_weights_are_asked_for(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", folder, average=True)
    options = run.recipe.model.options
    network = runs.load(run)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in network_state(100, **options).items())
    assert measured(run).nll != measured(run, which="last").nll
    assert measured(run, which="last").nll == measured(make_run(tmp_path / "other", folder)).nll


def test_bfloat16_is_used_where_the_plan_says_so(tmp_path: Path, run: Run, folder: Path) -> None:
    half = make_run(tmp_path / "run", folder, precision="bf16")
    result, exact = measured(half), measured(run)
    assert (result.members[0].precision, exact.members[0].precision) == ("bf16", "fp32")
    assert result.nll != exact.nll
    assert result.nll == pytest.approx(exact.nll, rel=0.05)


# ------------------------------------------------------------------------------------------------------- data and classes


def test_unreadable_files_are_listed_and_not_counted(tmp_path: Path) -> None:
    """One file is no image, so that its header gives it away; another is cut short, which decoding finds."""
    source = write_folder(tmp_path / "images")
    run = make_run(tmp_path / "run", source)
    before = measured(run)
    write_image(source / "test" / "bee" / "1x.png", SIZE, SIZE, seed=500)
    cut = (source / "test" / "bee" / "1x.png").read_bytes()
    (source / "test" / "bee" / "1x.png").write_bytes(cut[: len(cut) * 2 // 3])
    for split in ("train", "test"):
        (source / split / "elk" / "1y.png").write_bytes(NOT_AN_IMAGE)
    after = measured(run, batch_size=4)
    assert (before.num_unreadable, after.num_unreadable) == (0, 2)
    assert after.num_samples == before.num_samples
    assert after.nll == pytest.approx(before.nll, abs=1e-6)
    assert after.confusion_matrix == before.confusion_matrix
    assert sorted(Path(name).name for name, _ in after.unreadable) == ["1x.png", "1y.png"]
    assert all(name.startswith("test") and reason for name, reason in after.unreadable)
    assert measured(run, protocol="dense", scales=[SIZE], batch_size=4).unreadable == after.unreadable


def test_unreadable_rows_of_a_table_are_named_by_their_files_and_counted_in_their_split(tmp_path: Path, run: Run) -> None:
    source = write_folder(tmp_path / "images")
    rows = [f"{path.relative_to(source)},{path.parent.name},{path.parts[-3]}" for path in sorted(source.glob("*/*/*.png"))]
    (source / "table.csv").write_text("\n".join(["path,label,split", *rows, "test/no.png,ant,test", "train/no.png,ant,train"]))
    result = measured(run, data=str(source / "table.csv"))
    assert result.num_unreadable == 1
    assert [name for name, _ in result.unreadable] == ["test/no.png"]


def test_files_whose_names_are_not_utf8_are_measured_saved_and_shown(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images")
    for name in CLASSES:
        (source / "test" / name / "0.png").rename(os.fsdecode(os.fsencode(source / "test" / name) + b"/H\xfcn.png"))
    (source / "test" / "ant" / "1.png").rename(os.fsdecode(os.fsencode(source / "test" / "ant") + b"/\xe9.png"))
    Path(os.fsdecode(os.fsencode(source / "test" / "ant") + b"/\xe9.png")).write_bytes(NOT_AN_IMAGE)
    run = make_run(tmp_path / "run", source)
    result = evaluate(run, device="cpu")
    assert result.saved is not None
    saved = json.loads(Path(result.saved).read_text(encoding="utf-8"))
    assert any(item["name"].endswith("H\\xfcn.png") for item in saved["worst"])
    assert [Path(item["name"]).name for item in saved["unreadable"]] == ["\\xe9.png"]


def test_what_an_unfinished_run_gives_is_not_kept_for_the_finished_one(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", folder)
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"total_steps": 2}))
    with pytest.warns(RunWarning, match="is not finished"):
        result = evaluate(run.path, device="cpu")
    assert result.saved is None
    assert "Not saved: the run is not finished." in result.note
    assert not (run.path / "evaluations").exists()


def test_data_without_one_readable_image_is_refused(tmp_path: Path, run: Run) -> None:
    source = write_folder(tmp_path / "images", per_class=1)
    for path in (source / "test").glob("*/*.png"):
        path.write_bytes(NOT_AN_IMAGE)
    with pytest.raises(RequestError):
        measured(run, data=str(source))


def test_classes_are_matched_by_name(tmp_path: Path, run: Run) -> None:
    """The data's ids 0 and 1 are the run's 2 and 5."""
    source = write_folder(tmp_path / "images", ("cat", "fox"))
    result = measured(run, data=str(source))
    assert [item["count"] for item in result.per_class] == [0, 0, 3, 0, 0, 3, 0]
    assert result.missing_classes == ("ant", "bee", "dog", "elk", "gnu")
    assert "5 of the run's 7 classes" in result.note
    assert result.per_class[0]["recall"] is None
    network = runs.load(run)
    with torch.inference_mode():
        own = [
            float(centre(run)(network, decode(path, 3))[CLASSES.index(path.parent.name)].log())
            for path in (source / "test").glob("*/*.png")
        ]
    assert result.nll == pytest.approx(-sum(own) / 6, abs=2e-6)


def test_a_class_that_the_run_does_not_know_is_refused_with_the_nearest(tmp_path: Path, run: Run) -> None:
    source = write_folder(tmp_path / "images", ("cat", "elks"))
    with pytest.raises(RequestError, match=r"'elks' \(nearest: 'elk'\)"):
        measured(run, data=str(source))


def test_grey_runs_read_colour_files_as_grey(tmp_path: Path, folder: Path) -> None:
    assert measured(make_run(tmp_path / "run", folder, channels=1)).num_samples == 3 * len(CLASSES)


def test_a_held_out_part_of_the_training_data_is_the_split_val(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images")
    run = make_run(tmp_path / "run", source, changes={"data.holdout": 3})
    assert measured(run, split="val").num_samples == 3
    assert measured(run, split="train").num_samples == len(CLASSES) - 3
    assert measured(run).split == "test"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "centre"}, "'center'"),
        ({"scales": [16]}, "dense"),
        ({"protocol": "dense", "scales": [0]}, "1 to 4096"),
        ({"protocol": "dense", "scales": []}, "at least one"),
        ({"split": "tset"}, "'test'"),
        ({"which": "best"}, "final"),
        ({"batch_size": 0}, "at least 1"),
        ({"device": "gpu"}, "'gpu'"),
    ],
)
def test_a_wrong_request_is_explained(run: Run, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        measured(run, **options)


def test_weights_that_are_not_finite_are_reported(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", folder)
    path = runs.checkpoints.available(run.checkpoints)[0]
    checkpoint = runs.checkpoints.read(path)
    checkpoint.tensors["model"]["head.classifier.bias"][0] = float("nan")
    runs.checkpoints.write(run.checkpoints, checkpoint)
    with pytest.raises(RunError, match="not finite"):
        measured(run)


# -------------------------------------------------------------------------------------------------------------- ensembles


def test_an_ensemble_of_one_run_is_the_run(run: Run) -> None:
    alone, ensemble = measured(run), measured([run])
    assert (alone.nll, alone.brier, alone.confusion_matrix) == (ensemble.nll, ensemble.brier, ensemble.confusion_matrix)
    assert measured([run, run]).nll == pytest.approx(alone.nll, abs=1e-6)


def test_an_ensemble_averages_the_probabilities(tmp_path: Path, run: Run, folder: Path) -> None:
    """The second run lists its classes in another order, and has another normalisation."""
    turned = CLASSES[2:] + CLASSES[:2]
    other = make_run(tmp_path / "other", folder, classes=turned, seed=7, mean=torch.full((3, 1, 1), 0.6))
    second = by_hand(other, folder, centre(other))[:, [turned.index(name) for name in CLASSES]]
    result = measured([run, other])
    agree(result, (by_hand(run, folder, centre(run)) + second) / 2, labels_of(folder))
    assert result.runs == (str(run.path), str(other.path))
    assert [member.top1_error for member in result.members] == [measured(run).top1_error, measured(other).top1_error]


def test_runs_with_different_classes_are_no_ensemble(tmp_path: Path, run: Run, folder: Path) -> None:
    other = make_run(tmp_path / "other", folder, classes=(*CLASSES[:-1], "yak"))
    with pytest.raises(RequestError, match=r"'gnu'.*'yak'"):
        measured([run, other])
    with pytest.raises(RequestError, match="no run"):
        measured([])


def test_runs_of_different_data_must_be_told_which(tmp_path: Path, run: Run) -> None:
    other = make_run(tmp_path / "other", write_folder(tmp_path / "images"))
    with pytest.raises(RequestError, match="different data"):
        measured([run, other])
    assert measured([run, other], data=str(tmp_path / "images")).num_samples == 3 * len(CLASSES)


# --------------------------------------------------------------------------------------------------------------- protocols


def test_the_view_follows_from_the_crop_of_the_recipe(tmp_path: Path, folder: Path) -> None:
    for crop, fraction in (("pad", 1.0), ("none", 1.0), ("scale-jitter", 0.875), ("random-resized", 0.875)):
        run = make_run(tmp_path / crop, folder, changes={"augment.crop": crop})
        assert evaluation_view(run.recipe) == CentralView(SIZE, fraction)


@pytest.mark.parametrize("mirrored", [True, False])
def test_ten_crops_are_the_ten_of_torchvision(tmp_path: Path, folder: Path, mirrored: bool) -> None:
    run = make_run(tmp_path / "run", folder, changes={"augment.flip": mirrored})

    def ten(network: torch.nn.Module, image: Tensor) -> Tensor:
        crops = V.ten_crop(shorter_side(image, 18), [SIZE, SIZE])
        stacked = torch.stack(list(crops)[: 10 if mirrored else 5])
        return network(normalized(stacked, run.normalization)).softmax(1).mean(0)

    result = measured(run, protocol="ten-crop")
    agree(result, by_hand(run, folder, ten), labels_of(folder))
    assert ("Five crops" in result.note) is not mirrored


@pytest.mark.parametrize("mirrored", [True, False])
def test_six_views_are_the_centre_its_two_shifts_and_their_mirror_images(tmp_path: Path, folder: Path, mirrored: bool) -> None:
    run = make_run(tmp_path / "run", folder, changes={"augment.flip": mirrored})

    def six(network: torch.nn.Module, image: Tensor) -> Tensor:
        whole = V.center_crop(shorter_side(image, SIZE), [SIZE, SIZE])
        wide = torch.nn.functional.pad(whole[None].float(), (1, 1, 1, 1), mode="reflect")[0].to(torch.uint8)
        views = [whole, wide[:, :SIZE, :SIZE], wide[:, 2:, 2:]]
        views += [view.flip(-1) for view in views] if mirrored else []
        return network(normalized(torch.stack(views), run.normalization)).softmax(1).mean(0)

    result = measured(run, protocol="six-view")
    agree(result, by_hand(run, folder, six), labels_of(folder))
    assert ("Three views" in result.note) is not mirrored


def test_dense_at_the_size_trained_for_is_the_centre_crop(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "images")
    mean = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    run = make_run(tmp_path / "run", source, changes={"augment.flip": False}, mean=mean)
    dense, central = measured(run, protocol="dense", scales=[SIZE]), measured(run)
    assert dense.nll == pytest.approx(central.nll, abs=1e-6)
    assert dense.brier == pytest.approx(central.brier, abs=1e-6)
    assert dense.confusion_matrix == central.confusion_matrix
    assert dense.scales == (SIZE,)
    assert "No mirror images" in dense.note


@pytest.mark.parametrize("shape", [(16, 16), (24, 40), (8, 20), (13, 17)])
def test_the_convolutional_head_is_the_head_on_every_crop_of_the_last_map(run: Run, shape: tuple[int, int]) -> None:
    network, window = runs.load(run), 4
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        last = network.features(images)[-1]
        height, width = min(window, last.shape[2]), min(window, last.shape[3])
        crops = [
            network.head(last[:, :, top : top + height, left : left + width])
            for top in range(last.shape[2] - height + 1)
            for left in range(last.shape[3] - width + 1)
        ]
        torch.testing.assert_close(dense_logits(network, images, window), torch.stack(crops).mean(0), rtol=1e-5, atol=1e-5)


def test_a_fully_connected_head_becomes_the_convolutions_that_its_layers_are() -> None:
    """Simonyan and Zisserman 2014, section 3.2: the first layer a 3x3 convolution here, the classifier a 1x1."""
    head = fully_connected_head(4, 3, [5], 2)
    network = Network(small_stem(3, 4), [Stage(nn.Identity())], head, feature_channels=[4], feature_reductions=[1]).eval()
    images = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        hidden = nn.functional.conv2d(network.stem(images), head.linear1.weight.view(5, 4, 3, 3), head.linear1.bias).relu()
        logits = nn.functional.conv2d(hidden, head.classifier.weight[:, :, None, None], head.classifier.bias)
        torch.testing.assert_close(dense_logits(network, images, 3), logits.mean((2, 3)))


def test_images_of_many_shapes_wait_for_company_only_so_long() -> None:
    most, read, given = 2 * 8 * 48, 0, []

    def images() -> Iterator[Batch]:
        nonlocal read
        for place in range(200):
            image = torch.zeros(1, 3, 8, 8 + place % 40, dtype=torch.uint8)
            read += image[:, 0].numel()
            yield Batch(place, 0, image, torch.tensor([place]), torch.tensor([place]), torch.tensor([True]))

    for batch in grouped_by_shape(images(), most):
        assert read - sum(one.images[:, 0].numel() for one in given) <= 9 * most
        assert batch.images[:, 0].numel() <= most
        given.append(batch)
    assert sorted(int(draw) for batch in given for draw in batch.draws) == list(range(200))


@pytest.mark.parametrize(("name", "size", "side"), [("alexnet", 224, 6), ("speed_resnet", 32, 3), ("resnet20", 32, 8)])
def test_the_dense_window_is_the_last_map_of_the_size_trained_for(name: str, size: int, side: int) -> None:
    network = create_model(name, num_classes=3, in_channels=3)
    assert dense_window(network, 3, size, [size], CPU, "fp32") == side


def test_dense_is_refused_where_there_is_no_map_and_for_images_too_small() -> None:
    flat = create_model("highway_10", num_classes=3, in_channels=1, image_size=8)
    with pytest.raises(RequestError, match="convolutional networks"):
        dense_window(flat, 1, 8, [8], CPU, "fp32")
    with pytest.raises(RequestError, match="8 x 8 is too small for the network"):
        dense_window(create_model("speed_resnet", num_classes=3, in_channels=3), 3, 32, [8, 32], CPU, "fp32")


def test_dense_averages_scales_and_mirror_images_of_whole_images(run: Run, folder: Path) -> None:
    def dense(network: torch.nn.Module, image: Tensor) -> Tensor:
        total = torch.zeros(len(CLASSES))
        for side in (12, 20):
            resized = normalized(shorter_side(image, side)[None], run.normalization)
            for x in (resized, resized.flip(-1)):
                total += dense_logits(network, x, 4).softmax(1)[0] / 4
        return total

    agree(measured(run, protocol="dense", scales=[12, 20], batch_size=3), by_hand(run, folder, dense), labels_of(folder))


def test_the_scales_of_the_paper_follow_the_image_size() -> None:
    assert dense_scales(224, 32) == (224, 256, 384, 480, 640)
    assert dense_scales(32, 4) == (32, 36, 56, 68, 92)
    assert dense_scales(8, 4) == (8, 12, 16, 24)


# ------------------------------------------------------------------------------------------------------------------ saving


def test_the_result_of_a_run_is_saved_as_json(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", folder)
    result = evaluate(str(run.path), device="cpu")
    (path,) = (run.path / "evaluations").iterdir()
    assert result.saved == str(path)
    assert path.name.endswith("-test-center.json")
    assert json.loads(path.read_text(encoding="utf-8")) == result.to_dict()
    evaluate(run, protocol="dense", scales=[SIZE], device="cpu")
    evaluate(run, which="last", device="cpu")
    assert len(list((run.path / "evaluations").iterdir())) == 3
    evaluate([run, run], device="cpu")
    assert len(list((run.path / "evaluations").iterdir())) == 3


def test_the_keys_of_the_json_are_a_promise(run: Run) -> None:
    values = measured(run).to_dict()
    assert sorted(values) == [
        "balanced_accuracy", "brier", "calibration", "classes", "confusion_matrix", "data", "device", "images_per_second",
        "members", "missing_classes", "nll", "note", "num_samples", "num_unreadable", "per_class", "protocol", "runs", "saved",
        "scales", "seconds", "split", "top1_error", "top1_interval", "top5_error", "top5_interval", "unreadable", "weights",
        "worst",
    ]  # fmt: skip
    assert sorted(values["per_class"][0]) == ["class", "count", "f1", "precision", "recall"]
    assert sorted(values["calibration"]) == ["bins", "ece"]
    assert sorted(values["calibration"]["bins"][0]) == ["accuracy", "confidence", "count", "high", "low"]
    assert sorted(values["worst"][0]) == [
        "label", "label_probability", "name", "place", "predicted", "predicted_probability",
    ]  # fmt: skip
    assert sorted(values["members"][0]) == ["image_size", "precision", "run", "scales", "top1_error", "top5_error"]
    json.dumps(values, allow_nan=False)


def test_a_run_that_cannot_be_written_still_gives_its_result(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", folder)
    (run.path / "evaluations").write_text("in the way")
    result = evaluate(run, device="cpu")
    assert result.saved is None
    assert "Not saved" in result.note
    assert result.nll == measured(run).nll


def test_samples_that_cannot_be_written_leave_the_result_as_it_is(tmp_path: Path, folder: Path) -> None:
    run = make_run(tmp_path / "run", folder)
    (run.path / "samples").write_text("in the way")
    result = evaluate(run, device="cpu")
    assert result.saved is not None
    assert "The sample images" in result.note
    assert result.nll == measured(run).nll


# --------------------------------------------------------------------------------------------------------------- watching


def samples_of(folder: Path) -> FileSamples:
    paths = files(folder)
    names = [str(path.relative_to(folder)) for path in paths]
    return FileSamples(folder, names, labels_of(folder), [0] * len(paths), partial(decode, channels=3))


def test_watched_sums_add_up_over_processes(run: Run, folder: Path) -> None:
    network, samples, result = runs.load(run), samples_of(folder), measured(run)

    def sums(indices: Tensor) -> dict[str, float]:
        options: dict[str, Any] = {"device": CPU, "precision": "fp32", "batch_size": 4, "workers": 0}
        return watch(network, samples, indices, evaluation_view(run.recipe), run.normalization, **options)

    everything = torch.arange(len(samples))
    whole, parts = sums(everything), [sums(everything[rank::3]) for rank in range(3)]
    assert {name: pytest.approx(sum(part[name] for part in parts), abs=1e-4) for name in whole} == whole
    assert whole["count"] == result.num_samples
    assert whole["loss_sum"] / whole["count"] == pytest.approx(result.nll, abs=1e-5)
    assert 100 * whole["wrong1"] / whole["count"] == pytest.approx(result.top1_error)
    assert 100 * whole["wrong5"] / whole["count"] == pytest.approx(result.top5_error)
    assert sums(everything[:0]) == {"count": 0, "loss_sum": 0.0, "wrong1": 0, "wrong5": 0}


def test_watching_leaves_the_network_and_the_generator_as_they_were(run: Run, tmp_path: Path) -> None:
    source = write_folder(tmp_path, per_class=1)
    (source / "test" / "bee" / "0.png").write_bytes(NOT_AN_IMAGE)
    network = runs.load(run).train()
    network.stages[0].eval()
    modes, before = [module.training for module in network.modules()], torch.get_rng_state()
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    sums = watch(
        network, samples_of(source), torch.arange(7), CentralView(SIZE), run.normalization,
        device=CPU, precision="fp32", batch_size=3, workers=0,
    )  # fmt: skip
    assert sums["count"] == 6
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_device_is_found_or_refused() -> None:
    assert chosen_device("cpu") == CPU
    assert chosen_device(None).type in ("cpu", "cuda")
    with pytest.raises(RequestError, match="'cuda:99' cannot be used"):
        chosen_device("cuda:99")
