"""Keyed draws: known answers, agreement of all forms of keys, and distributions."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from residua import keyed

MASK = 2**64 - 1
# The first outputs of splitmix64 seeded with 0, as its reference implementation gives them.
SPLITMIX64_OF_ZERO = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]

integers = st.integers(-(2**63), 2**63 - 1)


def reference(*keys: int) -> int:
    """The documented chain in Python's unbounded integers."""
    state = 0
    for key in keys:
        z = (state + 0x9E3779B97F4A7C15 * (key + 1)) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        state = z ^ (z >> 31)
    return state


def unsigned(value: torch.Tensor) -> int:
    return int(value) & MASK


def test_the_hash_of_n_is_the_nth_output_of_splitmix64() -> None:
    assert [unsigned(keyed.bits(n)) for n in range(5)] == SPLITMIX64_OF_ZERO
    assert [value & MASK for value in keyed.bits(torch.arange(5)).tolist()] == SPLITMIX64_OF_ZERO


@given(st.lists(integers, min_size=1, max_size=4))
def test_plain_keys_tensor_keys_and_mixtures_of_both_agree_with_unbounded_integers(keys: list[int]) -> None:
    expected = reference(*keys)
    assert unsigned(keyed.bits(*keys)) == expected
    assert unsigned(keyed.bits(*(torch.tensor(key) for key in keys))) == expected
    assert unsigned(keyed.bits(*(torch.tensor(key) if place % 2 else key for place, key in enumerate(keys)))) == expected
    assert keyed.generator_seed(*keys) == expected >> 1


def test_tensor_keys_broadcast() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(-2, 2)
    table = keyed.bits(5, rows, columns)
    assert table.shape == (3, 4)
    assert all(int(table[i, j]) == int(keyed.bits(5, i, j - 2)) for i in range(3) for j in range(4))


def test_smaller_integer_types_are_the_same_keys() -> None:
    assert torch.equal(keyed.bits(torch.tensor([3, -4], dtype=torch.int32)), keyed.bits(torch.tensor([3, -4])))


def test_strings_are_hashed_alike_in_every_process() -> None:
    expected = int.from_bytes(hashlib.blake2b(b"order", digest_size=8).digest(), "little") >> 1
    assert keyed.string_key("order") == expected
    assert torch.equal(keyed.bits(1, "order"), keyed.bits(1, expected))


def test_the_order_and_the_number_of_keys_matter() -> None:
    draws = [keyed.bits(*keys).item() for keys in ((1, 2), (2, 1), (1,), (1, 0), (1, 2, 0), (0, 1, 2), (-1,), (-1, 0))]
    assert len(set(draws)) == len(draws)


def test_uniform_is_the_upper_53_bits() -> None:
    for key in (0, 1, -1, 2**62):
        assert float(keyed.uniform(key)) == (reference(key) >> 11) * 2.0**-53


@pytest.mark.parametrize("keys", [(0,), (1, "crop"), (2**63 - 1, 7)])
def test_uniform_draws_are_uniform_and_independent_of_their_neighbours(keys: tuple[int | str, ...]) -> None:
    draws = keyed.uniform(*keys, torch.arange(20_000))
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-3
    pairs = torch.stack(((draws[:-1] * 8).long(), (draws[1:] * 8).long()))
    counts = torch.bincount(pairs[0] * 8 + pairs[1], minlength=64)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_streams_of_different_names_seeds_and_epochs_are_independent() -> None:
    index = torch.arange(20_000)
    streams = [keyed.uniform(seed, epoch, index, name) for seed in (0, 1) for epoch in (0, 1) for name in ("top", "left")]
    correlations = torch.corrcoef(torch.stack(streams)) - torch.eye(8, dtype=torch.float64)
    assert float(correlations.abs().max()) < 5 / 20_000**0.5


def test_every_bit_is_fair() -> None:
    draws = keyed.bits(3, torch.arange(20_000))
    ones = torch.stack([((draws >> place) & 1).double().mean() for place in range(64)])
    assert float((ones - 0.5).abs().max()) < 5 * 0.5 / 20_000**0.5


def test_normal_draws_are_normal() -> None:
    draws = keyed.normal(1, torch.arange(20_000))
    assert draws.dtype == torch.float64
    assert stats.kstest(draws.numpy(), "norm").pvalue > 1e-3


@given(st.integers(-1000, 1000), st.integers(1, 1000), integers)
def test_integers_stay_in_their_range(low: int, span: int, key: int) -> None:
    draws = keyed.integers(low, low + span, key, torch.arange(50))
    assert low <= int(draws.min()) <= int(draws.max()) < low + span


def test_integers_are_uniform_and_take_a_bound_for_each() -> None:
    counts = torch.bincount(keyed.integers(0, 9, 1, torch.arange(18_000)), minlength=9)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    bounds = torch.tensor([1, 2, 3]).repeat(100)
    draws = keyed.integers(0, bounds, 4, torch.arange(300))
    assert bool((draws < bounds).all())
    assert {int(draw) for draw, bound in zip(draws, bounds) if bound == 3} == {0, 1, 2}


@given(st.integers(0, 300), integers)
def test_a_permutation_is_one(size: int, key: int) -> None:
    order = keyed.permutation(size, key, "order")
    assert sorted(order.tolist()) == list(range(size))
    assert torch.equal(order, keyed.permutation(size, key, "order"))


def test_all_permutations_are_equally_likely() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in range(6_000):
        order = tuple(keyed.permutation(3, key).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_generator_seed_fits_torchs_generators() -> None:
    seeds = [keyed.generator_seed(3, "network", step) for step in range(1_000)]
    assert len(set(seeds)) == 1_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_are_the_same_on_a_gpu() -> None:
    index = torch.arange(-1_000, 1_000)
    for draw in (keyed.bits, keyed.uniform, lambda *keys: keyed.integers(0, 7, *keys)):
        assert torch.equal(draw(5, index, "top").cuda(), draw(5, index.cuda(), "top"))
