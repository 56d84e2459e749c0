"""Networks as chains of steps: the same outputs from any step on, units that are off, steps that are exchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from residua.chains import chain_of, shortcut_alone, swapped
from residua.layers import conv, sequence
from residua.models import create_model
from residua.unit import Add, Concat, SampledAdd, Unit, switched_off, walk

SEEDED = torch.Generator().manual_seed(3)


def images(count: int = 3, side: int = 16) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["resnet20", "plain20", "densenet_40_12", "preact_resnet110", "vgg11_bn"])
def test_a_chain_gives_what_its_network_gives_from_every_step_on(name: str) -> None:
    model, x = create_model(name).eval(), images(2, 32)
    chain = chain_of(model, x)
    assert chain is not None
    with torch.inference_mode():
        expected = model(x)
        signals = chain.signals(x)
        assert len(signals) == len(chain) + 1
        assert torch.equal(signals[-1], expected)
        for start in (0, 1, len(chain) // 2, len(chain) - 1):
            assert torch.equal(chain.after(signals[start], start), expected)


def test_every_unit_of_a_network_is_in_the_step_that_its_path_names() -> None:
    model = create_model("resnet20").eval()
    chain = chain_of(model, images())
    assert chain is not None
    for item in walk(model):
        assert chain.steps[chain.place_of(item.path)] is item.unit
        assert chain.place_of(f"{item.path}.branch.conv1") == chain.place_of(item.path)
    assert chain.place_of("nowhere") == -1
    assert chain.place_of("stages.0.00") == -1


def test_what_is_no_chain_is_none() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x).mean((2, 3))

    class Late(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    assert chain_of(Two(), images()) is None
    assert chain_of(Late(nn.Conv2d(3, 3, 1)), images()) is None


@pytest.mark.parametrize("merge", [Add(), SampledAdd(0.3)])
def test_the_shortcut_alone_is_the_unit_that_is_off(merge: nn.Module) -> None:
    unit = Unit(conv(3, 6, 3), conv(3, 6, 1), merge, nn.ReLU()).eval()
    alone = shortcut_alone(unit)
    assert alone is not None
    with torch.inference_mode(), switched_off(unit):
        assert torch.equal(alone(images()), unit(images()))


def test_where_the_shape_of_the_branch_is_needed_there_is_no_shortcut_alone() -> None:
    assert shortcut_alone(Unit(conv(3, 3, 3))) is None
    assert shortcut_alone(Unit(conv(3, 3, 3), nn.Identity(), Concat())) is None


def test_steps_that_are_exchanged_run_in_their_new_order() -> None:
    model = sequence(a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(3, 3)).eval()
    x = torch.randn(4, 3, generator=SEEDED)
    chain = chain_of(model, x)
    assert chain is not None
    with torch.inference_mode():
        found = chain.after(x, 0, swapped(chain.steps, {0: 2, 1: 1, 2: 0}))
        assert torch.equal(found, model.a(model.b(model.c(x))))
