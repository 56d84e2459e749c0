"""Orthogonal updates in loops of our own against the iteration in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from residua import native, orthogonal
from residua.models import create_model
from residua.optim import Muon, build_optimizer, orthogonalized
from residua.recipe import Optim

pytestmark = pytest.mark.skipif(orthogonal.obstacle() is not None, reason=str(orthogonal.obstacle()))

SHAPES = [
    (16, 144), (144, 16), (48, 432), (64, 144), (80, 64), (96, 400), (112, 304), (128, 1152), (1152, 128), (176, 640),
    (256, 2304), (208, 4608), (1024, 256),
]  # fmt: skip


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    """With directions of very different length, as gradients have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(columns, generator=generator) ** 3


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_update_is_that_of_the_iteration_in_float64_up_to_rounding(shape: tuple[int, int]) -> None:
    """What multiplies the update is rounded to 8 bits, and so is the update; that in bf16 throughout is several times as far."""
    update, weight = drawn(*shape), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    direction = orthogonalized(update[None].double())[0]
    exact = 0.75 * weight.double() - 0.5 * direction
    found = weight.clone()
    orthogonal.update_(found, update, kept=0.75, scale=0.5)
    assert float((found.double() - exact).norm() / (0.5 * direction.norm())) < 0.01
    alone = torch.zeros(shape)
    orthogonal.update_(alone, update, kept=0.0, scale=-1.0)
    throughout = orthogonalized(update[None].bfloat16())[0]
    assert error(alone, direction) < 0.01
    assert not error(throughout, direction) < 2 * error(alone, direction)
    values = torch.linalg.svdvals(alone.double())
    assert values.max() < 1.3


def test_the_scale_of_an_update_does_not_matter_and_nothing_is_turned_into_nothing() -> None:
    update = drawn(128, 640)
    found = [torch.zeros(128, 640) for _ in range(3)]
    for out, factor in zip(found, (1.0, 2.0**-20, 2.0**20)):
        orthogonal.update_(out, factor * update, kept=0.0, scale=-1.0)
    assert error(found[1], found[0].double()) < 1e-2
    assert error(found[2], found[0].double()) < 1e-6
    weight = torch.randn(128, 640)
    still = weight.clone()
    orthogonal.update_(still, torch.zeros(128, 640), kept=1.0, scale=1.0)
    assert torch.equal(still, weight)


def test_the_bytes_do_not_depend_on_the_number_of_threads() -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(torch.zeros(208, 640))
            orthogonal.update_(found[-1], drawn(208, 640), kept=0.0, scale=1.0)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(128, 64, 3, 3), (512, 64, 1, 1), (64, 256, 1, 1)], ids=str)
def test_muon_in_bf16_steps_as_in_float32_to_within_a_hundredth(
    shape: tuple[int, ...], order: torch.memory_format, keep_norm: bool
) -> None:
    torch.manual_seed(0)
    start = torch.randn(shape).contiguous(memory_format=order)
    steps = []
    for bf16 in (False, True):
        weight = nn.Parameter(start.clone(memory_format=torch.preserve_format))
        settings = {"lr": 0.1, "base_lr": 0.1, "weight_decay": 0.5}
        optimizer = Muon([{"params": [weight], **settings}], keep_norm=keep_norm, bf16=bf16)
        assert optimizer.loops is bf16
        for seed in range(2):
            gradient = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            weight.grad = gradient.contiguous(memory_format=order)
            optimizer.step()
        steps.append(weight.detach() - start)
    assert 0 < error(steps[1], steps[0].double()) < 0.01


def test_small_and_odd_weights_are_updated_as_in_float32() -> None:
    torch.manual_seed(0)
    network = create_model("cifar_resnet", depth=8)
    other = copy.deepcopy(network)
    optim = Optim(name="muon", lr=0.1, momentum=0.9)
    optimizers = [build_optimizer(network, optim), build_optimizer(other, optim, bf16=True)]
    for one, two in zip(network.parameters(), other.parameters()):
        one.grad = torch.randn_like(one)
        two.grad = one.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
    for (name, one), two in zip(network.named_parameters(), other.parameters()):
        by_loops = one.ndim == 4 and orthogonal.suits(one.shape[0], one[0].numel())
        assert torch.equal(one, two) is not by_loops, name
    assert not orthogonal.suits(128, 27)
    assert not orthogonal.suits(8, 144)


def test_a_processor_without_products_of_bf16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "processor", lambda: "flags: avx2")
    native.forget()
    try:
        assert "AVX-512 BF16" in str(orthogonal.obstacle())
        assert not Muon([{"params": [nn.Parameter(torch.zeros(64, 64, 3, 3))], "lr": 0.1, "base_lr": 0.1}], bf16=True).loops
    finally:
        native.forget()
