"""A kept run repeated: equal to the last digit, in agreement to rounding, or different; and what is said of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from image_folders import write_splits
from reproductions import arm, make_shelf, on_a_usual_machine

from residua import remeasuring
from residua.claims import Works
from residua.errors import RequestError
from residua.recipe import replaced
from residua.remeasuring import FACTOR, ROUNDING, TOLERANCE
from residua.reproducing import Unwatched, reproduce
from residua.selection import Shelf
from residua.tables import verification
from residua.verifying import CLOSELY, FIRST, Verification, verify

SHELF = make_shelf()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two kept runs, what was measured on one and computed from both, and a probe."""
    out = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        on_a_usual_machine(patch)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        names = ["he2015/works", "he2015/norms", "he2015/halves"]
        assert not reproduce(names, budget="small", seeds=1, out=out, papers=SHELF, keep=out / "kept").failed
    return out / "kept"


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where repetitions lie: one that is there is compared again without being made again."""
    return tmp_path_factory.mktemp("repeated")


def card_of(kept: Path, arm: str = "residual") -> dict[str, Any]:
    return dict(json.loads(next((kept / "small").glob(f"{arm}-s0-*.json")).read_text(encoding="utf-8")))


def against(card: dict[str, Any], folder: Path, out: Path, **options: Any) -> Verification:
    """The verification of a card that is kept in `folder`."""
    path = folder / "small" / f"{card['id']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(card), encoding="utf-8")
    return verify(card["id"], results=folder, out=out, **{"papers": SHELF, **options})


def test_a_run_repeated_as_it_was_made_is_equal_to_the_last_digit(kept: Path, repeated: Path, tmp_path: Path) -> None:
    found = against(card_of(kept), tmp_path, repeated)
    assert (found.verdict, found.largest, found.updates) == ("equal", 0.0, found.total)
    assert found.kept_error == found.repeated_error
    assert "equal to the last digit" in found.why


def test_a_run_repeated_under_another_plan_agrees_to_rounding(kept: Path, tmp_path: Path) -> None:
    card = card_of(kept)
    assert card["manifest"]["plan"] == "fp32"
    card["manifest"]["plan"] = "fp32-fused"
    found = against(card, tmp_path, tmp_path / "out")
    assert found.verdict == "agrees", found
    assert 0 < found.largest < TOLERANCE / 10
    assert found.updates == found.total
    assert "as other rounding does" in found.why


@pytest.mark.parametrize(("factor", "verdict"), [(1 + 0.8 * TOLERANCE, "agrees"), (1 + 1.2 * TOLERANCE, "differs")])
def test_losses_agree_within_the_tolerance_and_no_further(
    kept: Path, repeated: Path, tmp_path: Path, factor: float, verdict: str
) -> None:
    card = card_of(kept)
    card["opening"][CLOSELY][1] *= factor
    found = against(card, tmp_path, repeated)
    assert found.verdict == verdict
    assert found.largest == pytest.approx(1 - 1 / factor, rel=1e-6)


@pytest.mark.parametrize(
    ("column", "amount", "verdict"),
    [
        (1, 0.008, "agrees"),
        (1, 0.012, "differs"),
        (2, 100 / 32, "agrees"),
        (2, 300 / 32, "differs"),
        (2, float("nan"), "differs"),
    ],
)
def test_the_first_updates_are_compared_closely(
    kept: Path, repeated: Path, tmp_path: Path, column: int, amount: float, verdict: str
) -> None:
    """A loss that is another seed's, or three images of 32 that are classified otherwise, before rounding can have grown."""
    card = card_of(kept)
    card["opening"][1][column] += amount * (card["opening"][1][1] if column == 1 else 1.0)
    assert against(card, tmp_path, repeated).verdict == verdict


def test_another_run_differs(kept: Path, repeated: Path, tmp_path: Path) -> None:
    card = card_of(kept)
    other = card_of(kept, "plain")
    assert against(card | {"opening": other["opening"]}, tmp_path, repeated).verdict == "differs"


def test_a_run_that_broke_off_differs_from_one_that_did_not(kept: Path, repeated: Path, tmp_path: Path) -> None:
    card = card_of(kept) | {"broken_off": "Training broke off: the loss was nan at update 20."}
    found = against(card, tmp_path, repeated)
    assert found.verdict == "differs"
    assert "came to its end" in found.why


def test_losses_after_the_first_lines_may_have_grown_apart(kept: Path, repeated: Path, tmp_path: Path) -> None:
    card = card_of(kept)
    assert len(card["opening"]) > FIRST
    card["opening"][FIRST][1] *= 1.5
    assert against(card, tmp_path, repeated).verdict == "agrees"


@pytest.mark.parametrize(("points", "verdict"), [(1.0, "agrees"), (25.0, "differs")])
def test_the_final_error_may_differ_as_that_of_another_seed(
    kept: Path, repeated: Path, tmp_path: Path, points: float, verdict: str
) -> None:
    card = card_of(kept)
    there = card["values"]["test_error"]
    card["values"]["test_error"] = there + (points if there < 60 else -points)
    found = against(card, tmp_path, repeated)
    assert found.verdict == verdict
    assert f"{card['values']['test_error']:.2f} %" in found.why


def test_the_training_error_counts_too(kept: Path, repeated: Path, tmp_path: Path) -> None:
    card = card_of(kept)
    card["values"]["train_error"] = abs(card["values"]["train_error"] - 30.0)
    found = against(card, tmp_path, repeated)
    assert found.verdict == "differs"
    assert "training error" in found.why


def test_the_beginning_of_a_run_is_compared_where_the_time_is_short(kept: Path, tmp_path: Path) -> None:
    found = against(card_of(kept), tmp_path, tmp_path / "out", minutes=1e-6)
    assert found.verdict == "equal"
    assert 1 <= found.updates < found.total
    assert found.kept_error is None
    assert found.repeated_error is None


def test_what_is_no_training_names_its_parts_and_other_data_are_told(kept: Path, repeated: Path, tmp_path: Path) -> None:
    card = card_of(kept, "both")
    with pytest.raises(RequestError, match=r"residual-s0-.*plain-s0-"):
        against(card, tmp_path, repeated)
    card = card_of(kept)
    card["manifest"]["data_fingerprint"] = "0" * 64
    with pytest.raises(RequestError, match="no kept run called 'he2015'"):
        verify("he2015", results=kept, out=tmp_path)
    with pytest.raises(RequestError, match="fingerprints differ"):
        against(card, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "it is told before any training"


@pytest.mark.parametrize("in_memory", [True, False])
def test_other_files_are_told_at_the_first_update(tmp_path: Path, in_memory: bool) -> None:
    """The fingerprint of files that are held in memory is that of their pixels, which only training knows."""
    write_splits(tmp_path / "images", train={"a": 40, "b": 40}, val={"a": 4, "b": 4})
    recipe = replaced(SHELF.arms["residual"].recipe, {"data.source": str(tmp_path / "images"), "data.in_memory": in_memory})  # type: ignore[union-attr]
    own = arm("own", 8)
    own = replace(own, recipe=recipe)
    claim = replace(SHELF.papers["he2015"].claims[0], arms=("own",), rule=Works("own", 100.0), id="own")
    papers = make_shelf(own)
    papers = replace(papers, papers={"he2015": replace(papers.papers["he2015"], claims=(claim,), items=())})
    assert not reproduce("he2015/own", budget="small", seeds=1, out=tmp_path, papers=papers, keep=tmp_path / "kept").failed
    card = card_of(tmp_path / "kept", "own")
    assert against(card, tmp_path, tmp_path / "same", papers=papers).verdict == "equal"
    card["manifest"]["data_fingerprint"] = "0" * 64
    seen = Seen()
    with pytest.raises(RequestError, match="fingerprints differ"):
        against(card, tmp_path, tmp_path / "other", papers=papers, watcher=seen)
    assert seen.updates == [1]


def test_a_probe_is_computed_anew_and_compared_number_by_number(kept: Path, tmp_path: Path) -> None:
    card = card_of(kept, "halves")
    found = against(card, tmp_path, tmp_path / "out")
    assert (found.verdict, found.lines, found.total) == ("equal", 2, 0)
    assert "2 numbers, all equal to the last digit" in verification(found.to_dict())
    assert "updates" not in verification(found.to_dict())
    for factor, verdict in ((1 + 0.5 * ROUNDING, "agrees"), (1 + 2 * ROUNDING, "differs")):
        assert against(card | {"values": {"value": 0.5 * factor}}, tmp_path, tmp_path / "out").verdict == verdict
    assert against(card | {"measurements": {}}, tmp_path, tmp_path / "out").verdict == "differs"


def test_times_are_taken_anew_and_not_compared(kept: Path, tmp_path: Path) -> None:
    papers = with_probe(timed=True)
    card = card_of(kept, "halves") | {"values": {"value": 0.75}}
    found = against(card, tmp_path, tmp_path / "out", papers=papers)
    assert found.verdict == "not compared"
    assert "value 0.500, and was 0.750" in found.why
    assert card["manifest"]["hardware"]["processor"] in found.why
    card["manifest"] = {"residua": "0.1.0"}
    assert "not known" in against(card, tmp_path, tmp_path / "out", papers=papers).why


def test_a_probe_that_has_changed_or_is_gone_is_not_repeated(kept: Path, tmp_path: Path) -> None:
    card = card_of(kept, "halves")
    with pytest.raises(RequestError, match="has changed since"):
        against(card, tmp_path, tmp_path / "out", papers=with_probe(version=2))
    with pytest.raises(RequestError, match="no paper computes gone"):
        against(card | {"arm": "gone"}, tmp_path, tmp_path / "out")


def test_what_was_measured_on_a_run_is_measured_anew_at_its_end(kept: Path, repeated: Path, tmp_path: Path) -> None:
    card = card_of(kept)
    found = against(card, tmp_path, repeated)
    assert found.measurements["norms"].verdict == "equal"
    assert "Measured anew and in agreement: norms." in found.why
    for factor, verdict in ((1 + 0.8 * TOLERANCE, "agrees"), (1 + 1.2 * TOLERANCE, "differs")):
        found = against(forged(card, factor), tmp_path, repeated)
        assert (found.verdict, found.measurements["norms"].verdict) == ("differs" if verdict == "differs" else "equal", verdict)
        assert found.measurements["norms"].largest == pytest.approx(1 - 1 / factor)
        assert "sum_of_squares" in found.measurements["norms"].why


def test_measurements_of_a_network_that_rounding_led_elsewhere_may_differ_as_those_of_seeds(
    kept: Path, repeated: Path, tmp_path: Path
) -> None:
    card = card_of(kept)
    card["opening"][FIRST][1] *= 1.5
    for factor, verdict in ((0.9 * FACTOR, "agrees"), (1.1 * FACTOR, "differs")):
        found = against(forged(card, factor), tmp_path, repeated)
        assert found.verdict == found.measurements["norms"].verdict == verdict
        assert "to rounding only" in found.measurements["norms"].why


def test_what_cannot_be_measured_anew_says_why(kept: Path, repeated: Path, tmp_path: Path) -> None:
    card = card_of(kept)
    short = against(card, tmp_path, tmp_path / "short", minutes=1e-6)
    assert short.to_dict()["measurements"]["norms"]["verdict"] == "not compared"
    assert "not repeated to its end" in short.why
    anew = replace(SHELF, measurements={"norms": replace(SHELF.measurements["norms"], version=2)})
    found = against(card, tmp_path, repeated, papers=anew)
    assert (found.verdict, found.measurements["norms"].verdict) == ("equal", "not compared")
    assert "defined it anew" in found.why
    gone = against(card, tmp_path, repeated, papers=replace(SHELF, measurements={}))
    assert gone.measurements["norms"].verdict == "not compared"


def test_numbers_of_a_measurement_are_held_against_those_of_the_same_name() -> None:
    theirs = {"single": [{"path": "a", "error": 3.0}, {"path": "b", "error": 4.0}], "used": {"images": 10}}
    ours = {"single": [{"path": "a", "error": 3.0}, {"path": "b", "error": 4.1}], "used": {"images": 10}}
    held = remeasuring._held(theirs, ours, True)
    assert held.largest == pytest.approx(0.1 / 5)
    assert remeasuring._held(theirs, {**ours, "single": ours["single"][:1]}, True).verdict == "differs"
    more = {"single": [{"path": "a", "error": 6.0}], "used": {"images": 20}}
    assert remeasuring._held(theirs, more, True).verdict == "agrees"
    none = {"single": [{"path": "a", "error": 0.0}], "used": {"images": 1}}
    assert remeasuring._held(theirs, none, True).verdict == "agrees"
    assert remeasuring._held({"single": [{"error": 90.0}]}, none, True).verdict == "differs"


class Seen(Unwatched):
    """Remembers the updates that it hears of."""

    def __init__(self) -> None:
        self.updates: list[int] = []

    def progress(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self.updates.append(step)


def forged(card: dict[str, Any], factor: float) -> dict[str, Any]:
    norms = card["measurements"]["norms"]
    return card | {"measurements": {"norms": norms | {"sum_of_squares": norms["sum_of_squares"] * factor}}}


def with_probe(**fields: Any) -> Shelf:
    return replace(SHELF, arms={**SHELF.arms, "halves": replace(SHELF.arms["halves"], **fields)})


def test_a_run_that_two_arms_share_is_found_under_either_name(kept: Path, repeated: Path) -> None:
    card = card_of(kept)
    other = "another" + card["id"][card["id"].rfind("-s") :]
    assert verify(other, results=kept, out=repeated, papers=SHELF).id == card["id"]
