"""Units that are gone for good: the same function as with an identity there, the same names, refusals with reasons."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from residua import weights
from residua.errors import RequestError
from residua.models import create_model
from residua.network import Network
from residua.removal import outermost, remove, taken_out, why_kept
from residua.unit import Unit, switched_off


def built(name: str = "cifar_resnet", **options: object) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name, **options).double().train()
        for _ in range(2):
            model(torch.randn(8, 3, 8, 8, dtype=torch.float64))
        return model.eval()


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


GONE = ["stages.0.1", "stages.2.2"]


def test_what_is_taken_out_for_a_moment_is_what_is_removed() -> None:
    model, x = built(depth=20), images()
    before = model(x)
    with taken_out(*(found.unit for found in outermost(model) if found.path in GONE)):
        out = model(x)
    assert not torch.equal(out, before)
    assert torch.equal(model(x), before)
    remove(model, GONE)
    assert torch.equal(model(x), out)
    assert model.removed_units == tuple(GONE)
    assert [found.path for found in outermost(model)] == [f"stages.{s}.{u}" for s in range(3) for u in range(3) if
                                                           f"stages.{s}.{u}" not in GONE]  # fmt: skip


def test_behind_a_rectifier_to_remove_a_unit_is_to_switch_it_off() -> None:
    model, x = built(depth=20), images()
    units = [found.unit for found in outermost(model) if found.path in GONE]
    with switched_off(*units):
        off = model(x)
    with taken_out(*units):
        assert torch.equal(model(x), off)


def test_the_option_builds_the_shorter_network_with_the_names_of_the_longer() -> None:
    long, short = built(depth=20), create_model("cifar_resnet", depth=20, removed_units=GONE).double().eval()
    names = set(short.state_dict())
    assert names == {key for key in long.state_dict() if not key.startswith(tuple(f"{path}." for path in GONE))}
    loaded = weights.load(short, long.state_dict())
    assert loaded.taken == len(names)
    assert all(key.startswith(tuple(GONE)) for key in loaded.ignored)
    assert len(loaded.ignored) == len(long.state_dict()) - len(names)
    remove(long, GONE)
    assert torch.equal(short(images()), long(images()))


def test_weights_with_units_that_were_not_removed_are_still_refused() -> None:
    with pytest.raises(RequestError, match=r"stages\.1\.1"):
        weights.load(create_model("cifar_resnet", depth=20, removed_units=["stages.1.2"]),
                     {k: v for k, v in built(depth=20).state_dict().items() if not k.startswith("stages.1.1.")})  # fmt: skip


def test_a_plain_unit_of_unchanged_shape_can_go() -> None:
    model = built(depth=14, plain=True)
    remove(model, ["stages.0.1"])
    assert model(images()).shape == (4, 10)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["stages.0.7"], r"no unit called 'stages\.0\.7'"),
        (["stages.1.0"], "shortcut is not the identity"),
        (["stages.0.1", "stages.0.1"], r"no unit called 'stages\.0\.1'"),
        ("stages.0.1", "is a list"),
        ([3], "is a list"),
    ],
)
def test_what_cannot_be_removed_is_refused_with_the_reason(paths: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        create_model("cifar_resnet", depth=20, removed_units=paths)


def test_the_reasons_are_those_of_the_unit() -> None:
    assert "concatenates" in why_kept(outermost(built("densenet_40_12"))[0].unit)
    assert "from 16 channels to 32" in why_kept(outermost(built(depth=14, plain=True))[2].unit)
    assert "a layer of it strides" in why_kept(Unit(nn.Conv2d(4, 4, 3, stride=2, padding=1)))
    assert "cannot be read from its layers" in why_kept(Unit(nn.ReLU()))
    assert why_kept(outermost(built(depth=14))[1].unit) == ""
    assert isinstance(built(depth=14, removed_units=["stages.0.1"]).get_submodule("stages.0.1"), nn.Identity)
