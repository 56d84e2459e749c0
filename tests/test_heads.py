"""Means and scores in float32 by loops of our own, against float64."""

from __future__ import annotations

import pytest
import torch
from maps import made
from torch import Tensor
from torch.nn import functional as F

from residua import heads, winograd
from residua.infer import prepared
from residua.models import create_model

here = pytest.mark.skipif(heads.obstacle() is not None, reason=str(heads.obstacle()))
preferred = pytest.mark.skipif(not winograd.preferred(), reason="the loops of our own are not used here")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@here
@pytest.mark.parametrize("shape", [(1, 2048, 7, 7), (3, 64, 8, 8), (9, 100, 3, 2), (2, 8, 1, 1), (130, 17, 4, 5)], ids=str)
def test_means_are_those_in_float64_up_to_sums_in_float32(shape: tuple[int, ...]) -> None:
    x = made(*shape, seed=1) + 3
    found = heads.means(x)
    assert found.dtype == torch.float32
    assert found.shape == shape[:2]
    torch.testing.assert_close(found.double(), x.double().mean((2, 3)), rtol=1e-6, atol=1e-6)


@here
@pytest.mark.parametrize("shape", [(1, 2048, 1000), (4, 64, 10), (7, 100, 13), (9, 24, 3), (1, 5, 1)], ids=str)
@pytest.mark.parametrize("offset", [True, False])
def test_scores_are_those_in_float64_up_to_sums_in_float32(shape: tuple[int, int, int], offset: bool) -> None:
    images, channels, outputs = shape
    x, weight = drawn(images, channels, seed=1), drawn(outputs, channels, seed=2)
    bias = drawn(outputs, seed=3) if offset else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(heads.scores(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-5 * channels**0.5)


@here
def test_the_bytes_do_not_depend_on_the_number_of_threads_or_images_beside() -> None:
    x, weight, bias = made(6, 72, 5, 3, seed=1), drawn(11, 72, seed=2), drawn(11, seed=3)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(heads.scores(heads.means(x), weight, bias))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][4:5], heads.scores(heads.means(x[4:5]), weight, bias))


@preferred
def test_a_network_for_inference_takes_its_scores_so_and_sees_what_is_changed_on_it() -> None:
    torch.manual_seed(0)
    network = create_model("resnet20").eval()
    fast, x = prepared(network, "bf16"), drawn(3, 3, 32, 32, seed=1)
    with torch.no_grad():
        for _ in range(3):
            pooled = fast.features(x)[-1].double().mean((2, 3))
            linear = fast.head.classifier
            exact = F.linear(pooled, linear.weight.double(), linear.bias.double())
            torch.testing.assert_close(fast(x).double(), exact, rtol=1e-5, atol=1e-5)
        seen: list[Tensor] = []
        handle = fast.head.classifier.register_forward_hook(lambda _m, _given, y: seen.append(y))
        logits = fast(x)
        assert len(seen) == 1
        torch.testing.assert_close(seen[0], logits)
        handle.remove()
        fast.replace_head(7)
        for _ in range(3):
            assert fast(x).shape == (3, 7)
