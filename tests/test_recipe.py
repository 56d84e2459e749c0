"""Recipes: what they accept, what they refuse, and that files hold all of them."""

from __future__ import annotations

import dataclasses
import json
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from residua.errors import RequestError
from residua.recipe import (
    Augment,
    Data,
    Model,
    Optim,
    Recipe,
    Schedule,
    differences,
    field_names,
    from_dict,
    parse_overrides,
    read,
    replaced,
    to_dict,
    write_toml,
)

texts = st.text(string.ascii_letters + string.digits + " ._/äß\"'\\\n", max_size=12)
positive = st.floats(1e-12, 1e12, exclude_min=True)
fraction = st.floats(0, 1, exclude_max=True)

recipes = st.builds(
    Recipe,
    name=texts,
    data=st.builds(
        Data,
        source=texts,
        image_size=st.none() | st.integers(1, 200),
        normalize=st.sampled_from(["channel", "pixel"]),
        holdout=st.integers(0, 10**6),
        balance=st.sampled_from(["none", "weights", "sampler"]),
        in_memory=st.none() | st.booleans(),
        max_bad=st.floats(0, 1),
    ),
    model=st.builds(
        Model,
        name=texts,
        weights=st.none() | texts,
        options=st.dictionaries(st.sampled_from(["depth", "stem", "plain"]), st.integers() | texts | st.booleans()),
    ),
    augment=st.builds(
        Augment,
        crop=st.sampled_from(["auto", "none", "pad", "scale-jitter", "random-resized"]),
        pad=st.none() | st.integers(0, 9),
        min_side=st.integers(200, 300),
        max_side=st.integers(300, 500),
        flip=st.none() | st.booleans(),
        colour=st.floats(0, 9),
    ),
    optim=st.builds(Optim, name=st.sampled_from(["sgd", "adamw", "muon"]), lr=positive, weight_decay=st.floats(0, 1)),
    schedule=st.builds(
        Schedule,
        shape=st.sampled_from(["steps", "cosine", "linear", "constant"]),
        warmup=fraction,
        drops=st.sets(st.floats(0, 1, exclude_min=True, exclude_max=True), max_size=4).map(lambda x: tuple(sorted(x))),
    ),
    batch_size=st.integers(1, 10**6),
    micro_batch=st.none() | st.integers(1, 10**6),
    epochs=st.none() | positive,
    seed=st.integers(0, 2**63 - 1),
    label_smoothing=fraction,
)  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
@given(recipes)
def test_a_recipe_survives_toml_and_json(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "a.toml").write_text(write_toml(recipe), encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(to_dict(recipe)), encoding="utf-8")
    assert read(tmp_path / "a.toml") == recipe
    assert read(tmp_path / "a.json") == recipe
    assert from_dict(to_dict(recipe)) == recipe
    assert differences(recipe, from_dict(tomllib.loads(write_toml(recipe)))) == {}


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("batch_size = 7", encoding="utf-8-sig")
    assert read(tmp_path / "a.toml") == Recipe(batch_size=7)


def test_a_recipe_is_frozen_throughout() -> None:
    recipe = Recipe()
    for owner, field in ((recipe, "batch_size"), (recipe.optim, "lr"), (recipe.schedule, "drops")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(owner, field, 1)


def test_every_dotted_field_can_be_changed() -> None:
    names = field_names()
    assert {"optim.lr", "data.holdout", "batch_size", "schedule.drops", "model.options"} <= set(names)
    values = to_dict(Recipe())
    for name in names:
        value: Any = values
        for part in name.split("."):
            value = value[part]
        assert replaced(Recipe(), {name: value}) == Recipe()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("optim.lrr", "optim.lr"),
        ("optm.lr", "optim.lr"),
        ("lr", "optim.lr"),
        ("batchsize", "batch_size"),
        ("data.hold_out", "data.holdout"),
        ("schedule.drop", "schedule.drops"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one(name: str, words: str) -> None:
    with pytest.raises(RequestError, match=rf"no field '{name}'.*'{words}'"):
        replaced(Recipe(), {name: 1})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optm": {}}, "'optim'"),
        ({"optim": {"lrr": 1}}, "'optim.lr'"),
        ({"batchsize": 1}, "'batch_size'"),
        ({"lr": 1}, "'optim.lr'"),
        ({"zzz": 1}, "The fields are name, data.source"),
    ],
)
def test_an_unknown_field_in_a_file_is_refused_with_the_nearest_one(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        from_dict(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"optim.lr": -0.1},
        {"optim.lr": 0},
        {"optim.lr": float("nan")},
        {"optim.lr": float("inf")},
        {"optim.lr": "fast"},
        {"optim.momentum": 1.0},
        {"optim.name": "sdg"},
        {"optim.layer_decay": 0},
        {"optim.clip": -1},
        {"schedule.drops": [0.5, 1.5]},
        {"schedule.warmup": 1.0},
        {"schedule.shape": "cosin"},
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"micro_batch": 0},
        {"steps": 0},
        {"epochs": 0},
        {"minutes": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"label_smoothing": 1.0},
        {"average.decay": 1.0},
        {"average.every": 0, "average.decay": 0.5},
        {"average.lookahead": True},
        {"augment.mixup": -0.1},
        {"augment.min_area": 0},
        {"augment.crop": "centre"},
        {"data.balance": "weight"},
        {"data.max_bad": 1.1},
        {"data.image_size": 0},
        {"checkpoints.keep": 0},
        {"checkpoints.seconds": 0},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_a_value_out_of_range_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refused:
        replaced(Recipe(), changes)
    assert next(iter(changes)) in str(refused.value)


def test_a_choice_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(RequestError, match="'sgd', 'adamw', 'muon' or 'rmsprop'"):
        replaced(Recipe(), {"optim.name": "sdg"})
    with pytest.raises(RequestError, match="greater than 0"):
        replaced(Recipe(), {"optim.lr": -1})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(RequestError, match=r"batch_size.*optim\.lr|optim\.lr.*batch_size"):
        from_dict({"batch_size": 0, "optim": {"lr": -1}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 5, "epochs": 1}, "one length.*steps and epochs"),
        ({"augment.min_side": 300, "augment.max_side": 200}, "min_side 300 is larger than augment.max_side 200"),
        ({"data.image_size": 300, "augment.crop": "scale-jitter"}, "min_side 256 is smaller than the crop"),
        ({"data.image_size": 32, "augment.cutout": 33}, "cutout 33 is larger"),
        ({"schedule.drops": [0.5, 0.25]}, "must increase"),
        ({"schedule.drops": [0.5, 0.5]}, "must increase"),
        ({"optim.nesterov": True, "optim.momentum": 0}, "nesterov needs optim.momentum"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        replaced(Recipe(), changes)


def test_a_new_length_replaces_the_old_one() -> None:
    recipe = Recipe(steps=100)
    for field, value in (("epochs", 3.0), ("minutes", 2.0), ("steps", 7)):
        changed = replaced(recipe, {field: value})
        assert {name: getattr(changed, name) for name in ("steps", "epochs", "minutes")} == {
            **dict.fromkeys(("steps", "epochs", "minutes")),
            field: value,
        }
    assert replaced(recipe, {"batch_size": 3}).steps == 100


def test_options_of_the_model_are_reached_by_their_name() -> None:
    recipe = replaced(Recipe(), {"model.stem": "small", "model.options.depth": 20})
    assert recipe.model.options == {"stem": "small", "depth": 20}
    assert replaced(recipe, {"model.stem": "imagenet"}).model.options == {"stem": "imagenet", "depth": 20}
    assert Recipe().model.options == {}


def test_assignments_are_json_or_else_text() -> None:
    text = ["optim.lr=0.05", "augment.flip=false", "model.name=resnet20", "steps=none", "schedule.drops=[0.5, 0.75]", "name=a=b"]
    assert parse_overrides(text) == {
        "optim.lr": 0.05,
        "augment.flip": False,
        "model.name": "resnet20",
        "steps": None,
        "schedule.drops": [0.5, 0.75],
        "name": "a=b",
    }
    for wrong in ("optim.lr", "=3", ""):
        with pytest.raises(RequestError, match="field=value"):
            parse_overrides([wrong])


def test_differences_are_told_by_dotted_name_with_both_values() -> None:
    old = Recipe(model=Model(options={"depth": 20}))
    new = replaced(old, {"optim.lr": 0.5, "model.stem": "small", "schedule.drops": [0.5]})
    assert differences(old, new) == {
        "optim.lr": (0.1, 0.5),
        "model.options.stem": (None, "small"),
        "schedule.drops": ([], [0.5]),
    }


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("a.toml", "batch_size = ", "not valid TOML"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1]", "table of fields, not list"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.toml", "batch_size = 0", "batch_size"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path: Path, file: str, text: str, words: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(RequestError, match=words) as refused:
        read(tmp_path / file)
    assert file in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no recipe file .*none\.toml"):
        read(tmp_path / "none.toml")


def test_fields_of_the_mean_square_belong_to_the_optimisers_that_have_one() -> None:
    assert replaced(Recipe(), {"optim.name": "rmsprop", "optim.eps": 1.0}).optim.eps == 1.0
    with pytest.raises(RequestError, match="fields of adamw and rmsprop, not of sgd"):
        replaced(Recipe(), {"optim.square_decay": 0.9})
