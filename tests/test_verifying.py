"""A kept run repeated: equal to the last digit, in agreement to rounding, or different; and what is said of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reproductions import make_shelf, on_a_usual_machine

from residua.errors import RequestError
from residua.reproducing import reproduce
from residua.verifying import CLOSELY, FIRST, TOLERANCE, Verification, verify

SHELF = make_shelf()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two kept runs and of what was computed from them."""
    out = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        on_a_usual_machine(patch)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert not reproduce("he2015/works", budget="small", seeds=1, out=out, papers=SHELF, keep=out / "kept").failed
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
    return verify(card["id"], results=folder, out=out, **options)


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
        against(card, tmp_path, repeated)


def test_a_run_that_two_arms_share_is_found_under_either_name(kept: Path, repeated: Path) -> None:
    card = card_of(kept)
    other = "another" + card["id"][card["id"].rfind("-s") :]
    assert verify(other, results=kept, out=repeated).id == card["id"]
