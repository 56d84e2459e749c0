"""Predictions agree with evaluation, file by file, and bad files are entries, not failures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from toy_runs import CLASSES, make_run, one_thread, write_folder, write_image  # noqa: F401

from residua.errors import RequestError
from residua.evaluation import evaluate
from residua.prediction import predict, predictions_csv
from residua.runs import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), sizes=((16, 16), (20, 31), (40, 17)))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("runs") / "run", folder, changes={"augment.crop": "random-resized"})


def test_a_file_gets_the_score_that_evaluation_gives_it(run: Run, folder: Path) -> None:
    result = evaluate(run, device="cpu", save=False)
    predictions = predict(run, folder / "test", device="cpu", top=len(CLASSES), batch_size=4)
    assert [item.path for item in predictions] == sorted(str(path) for path in (folder / "test").glob("*/*.png"))
    by_path = {item.path: item for item in predictions}
    assert len(result.worst) > 5
    for wrong in result.worst:
        item = next(by_path[path] for path in by_path if path.endswith(wrong.name))
        assert item.label == wrong.predicted
        assert item.probability == pytest.approx(wrong.predicted_probability, abs=1e-6)
        assert dict(item.top)[wrong.label] == pytest.approx(wrong.label_probability, abs=1e-6)
    missed = sum(item.label != Path(item.path).parent.name for item in predictions)
    assert 100 * missed / len(predictions) == pytest.approx(result.top1_error)


def test_the_likeliest_come_first_and_are_cut_to_the_classes(run: Run, folder: Path) -> None:
    file = folder / "test" / "ant" / "0.png"
    (item,) = predict(run.path, file, device="cpu", top=100)
    assert (item.label, item.probability) == item.top[0]
    assert [p for _, p in item.top] == sorted((p for _, p in item.top), reverse=True)
    assert sum(p for _, p in item.top) == pytest.approx(1, abs=1e-5)
    assert {label for label, _ in item.top} == set(CLASSES)
    assert len(predict(run, file, device="cpu", top=2)[0].top) == 2


def test_files_come_in_the_order_given_and_bad_ones_are_entries(run: Run, folder: Path, tmp_path: Path) -> None:
    good = folder / "test" / "cat" / "1.png"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_image(tmp_path / "deep" / "er" / "z.PNG", 9, 9, seed=1, channels=1)
    (tmp_path / "deep" / "a.jpg").write_bytes(b"")
    (tmp_path / "deep" / "notes.txt").write_text("skipped in a folder")
    (tmp_path / "deep" / "x.jpg").mkdir()
    named = tmp_path / "deep" / "notes.txt"
    predictions = predict(run, [named, good, tmp_path / "deep", good], device="cpu", batch_size=2)
    assert [Path(item.path).name for item in predictions] == ["notes.txt", "1.png", "a.jpg", "z.PNG", "1.png"]
    assert [item.error is None for item in predictions] == [False, True, False, True, True]
    assert predictions[1] == predictions[4]
    bad = predictions[2]
    assert bad.label is bad.probability is None
    assert bad.top == ()
    assert "empty" in str(bad.error)


def test_folders_are_searched_as_those_of_a_data_set_are(run: Run, tmp_path: Path) -> None:
    for place, name in enumerate(("real/cat/a.png", "photos/b.png", "photos/.hidden.png", "photos/__MACOSX/c.png")):
        write_image(tmp_path / name, 9, 9, seed=place)
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos")
    paths = [item.path for item in predict(run, tmp_path / "photos", device="cpu")]
    assert paths == [str(tmp_path / "photos" / name) for name in ("b.png", "linked/cat/a.png")]


def test_all_files_may_be_bad(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    assert [item.label for item in predict(run, tmp_path, device="cpu")] == [None]


def test_a_dangling_link_is_an_entry(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    assert "no such file" in str(predict(run, tmp_path / "a.png", device="cpu")[0].error)


def test_what_does_not_exist_is_refused_with_what_does(run: Run, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"tset.*test"):
        predict(run, folder / "tset")
    with pytest.raises(RequestError, match="no images in the folder"):
        predict(run, tmp_path)
    with pytest.raises(RequestError, match="nothing to predict"):
        predict(run, [])
    with pytest.raises(RequestError, match="at least 1"):
        predict(run, folder, top=0)
    with pytest.raises(RequestError, match="no run directory"):
        predict(tmp_path / "no-run", folder)


def test_csv_and_json_hold_every_file(run: Run, folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'a,"b"\nc.png'
    odd.write_bytes(b"no")
    predictions = predict(run, [odd, folder / "test" / "elk"], device="cpu")
    rows = list(csv.DictReader(io.StringIO(predictions_csv(predictions))))
    assert [row["path"] for row in rows] == [item.path for item in predictions]
    assert rows[0]["label"] == rows[0]["probability"] == ""
    assert [float(row["probability"]) for row in rows[1:]] == [item.probability for item in predictions[1:]]
    values = json.loads(json.dumps([item.to_dict() for item in predictions], allow_nan=False))
    assert sorted(values[0]) == ["error", "label", "path", "probability", "top"]
    assert values[1]["top"][0] == {"label": values[1]["label"], "probability": values[1]["probability"]}


def test_csv_has_two_columns_for_each_further_class(run: Run, folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd.png"
    odd.write_bytes(b"no")
    predictions = predict(run, [odd, folder / "test" / "elk"], top=3, device="cpu")
    rows = list(csv.reader(io.StringIO(predictions_csv(predictions, 3))))
    assert rows[0] == ["path", "label", "probability", "error", "label_2", "probability_2", "label_3", "probability_3"]
    assert rows[1][4:] == ["", "", "", ""]
    for row, item in zip(rows[2:], predictions[1:], strict=True):
        assert [(row[1], float(row[2])), (row[4], float(row[5])), (row[6], float(row[7]))] == list(item.top)
    assert next(csv.reader(io.StringIO(predictions_csv(predictions)))) == ["path", "label", "probability", "error"]
    many = list(csv.reader(io.StringIO(predictions_csv(predict(run, folder / "test", top=99, device="cpu"), 9))))
    assert {len(row) for row in many} == {4 + 2 * 8}
    assert many[1][-4:] == ["", "", "", ""], "there are seven classes"


def test_nothing_is_drawn_and_workers_change_nothing(run: Run, folder: Path) -> None:
    before = torch.get_rng_state()
    assert predict(run, folder, device="cpu", workers=1) == predict(run, folder, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
