"""Generating functions with exact coefficients: how many things there are of which length. Layer 0.

The function sum of c_l z^l is kept as its terms. Either of two things adds functions, both in series multiply them, and both side
by side, as long as the longer, multiply their cumulated coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ONE", "Terms", "added", "longest", "product", "shifted", "times"]

Terms = tuple[tuple[int, int], ...]  # (length, number), by length

ONE: Terms = ((0, 1),)
_MANY = 4  # from this power on the recurrence is cheaper than repeated multiplication


def shifted(terms: Terms, by: int) -> Terms:
    """All longer by `by`."""
    return tuple((length + by, count) for length, count in terms) if by else terms


def added(left: Terms, right: Terms) -> Terms:
    """Either of two."""
    total = dict(left)
    for length, count in right:
        total[length] = total.get(length, 0) + count
    return tuple(sorted(total.items()))


def longest(several: Iterable[Terms]) -> Terms:
    """Several side by side, as long as the longest of them: the numbers up to a length multiply."""
    several = [terms for terms in several if terms != ONE]
    if len(several) < 2:
        return several[0] if several else ONE
    lengths = sorted({length for terms in several for length, _ in terms})
    most: list[tuple[int, int]] = []
    running, before = [0] * len(several), 0
    by_length = [dict(terms) for terms in several]
    for length in lengths:
        running = [total + counts.get(length, 0) for total, counts in zip(running, by_length)]
        reached = math.prod(running)
        if reached > before:
            most.append((length, reached - before))
        before = reached
    return tuple(most)


def product(factors: Mapping[Terms, int]) -> Terms:
    """All in series, each as often as `factors` says."""
    shift, scale = 0, 1
    powers: list[tuple[dict[int, int], int]] = []
    for terms, power in factors.items():
        least = terms[0][0]
        shift += least * power
        if len(terms) == 1:
            scale *= terms[0][1] ** power
        else:
            powers.append(({length - least: count for length, count in terms}, power))
    total = {0: 1}
    high = _expanded([(terms, power) for terms, power in powers if power >= _MANY])
    for factor in [high] + [terms for terms, power in powers if power < _MANY for _ in range(power)]:
        total = times(total, factor)
    return tuple((length + shift, count * scale) for length, count in sorted(total.items()))


def times(left: Mapping[int, int], right: Mapping[int, int]) -> dict[int, int]:
    """Two in series, as maps from length to number."""
    total: dict[int, int] = {}
    for length, count in left.items():
        for further, number in right.items():
            total[length + further] = total.get(length + further, 0) + count * number
    return total


def _expanded(powers: Sequence[tuple[dict[int, int], int]]) -> dict[int, int]:
    """F = product of p_i^n_i, every p_i with a constant term, from F'/F = sum of n_i p_i'/p_i.

    With Q = product of p_i and R = sum of n_i p_i' Q / p_i, Q F' = R F gives each coefficient from a few before it. (For one
    p = 1 + z this is the recurrence of the binomial coefficients, C(n, k + 1) = C(n, k) (n - k) / (k + 1).)
    """
    q, r = {0: 1}, dict[int, int]()
    for terms, power in powers:
        slope = {length - 1: power * length * count for length, count in terms.items() if length}
        r = dict(added(tuple(times(r, terms).items()), tuple(times(slope, q).items())))
        q = times(q, terms)
    lead = q.pop(0)
    coefficients = [math.prod(terms[0] ** power for terms, power in powers)]
    for k in range(sum(max(terms) * power for terms, power in powers)):
        total = sum(c * coefficients[k - j] for j, c in r.items() if j <= k and coefficients[k - j])
        total -= sum(c * (k + 1 - j) * coefficients[k + 1 - j] for j, c in q.items() if j <= k and coefficients[k + 1 - j])
        coefficients.append(total // (lead * (k + 1)))
    return {length: count for length, count in enumerate(coefficients) if count}
