"""The gradient over paths of each length, and the lengths that carry it (veit2016, section 5 and figure 6). Layer 3.

The network is seen as the sum of its 2^n paths, each taking the branch or the shortcut of every unit. A backward pass is let
through one of the two ways of each unit only, with the activations of the full forward pass; the norm of what arrives at the
image is the path's gradient. Its mean over paths of one length, times the number of paths of that length, says which lengths
carry the gradient. The product adds norms, as the paper does, and so ignores that paths cancel; the norm of the *sum* over all
paths of a length, which does not, is given beside it, exactly (`residua.path_gradients.sums_by_length`).

Departures from the paper: the gradient is that at the image, of each image's own loss; a unit that is plain has no choice and
adds one to every length; a unit nested in another belongs to the outer one's branch; ReLUs after an addition lie on all paths.
Where units do not run one after the other, each once, the skips that the census finds stand in their place.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from residua import keyed
from residua.analyses._paths_figures import draw, read
from residua.analysis import Analysis, Budget, NotApplicable, Subject
from residua.errors import RequestError
from residua.gates import Ways, in_series, run_in_series, watched
from residua.path_gradients import Pass, drawn, effective, every, norms, orders, products, sums_by_length
from residua.skip_gates import GatedSkips

__all__ = ["paths"]

EXACT = 10  # up to so many units every path is measured
MOST_LENGTHS = 65
MOST_ROUNDS = 64
MEMORY = 512 * 2**20  # bytes of activations kept for the backward passes
SHARE = 0.95


def _measure(subject: Subject, budget: Budget) -> dict[str, Any]:
    one, label = subject.images(1)
    with _gates(subject, subject.model, one) as (model, ways):
        choices = len(ways.gated)
        most = max(1, min(64, MEMORY // max(1, _kept_bytes(model, ways, one, label))))
        exact = choices <= EXACT
        found = (_all_paths if exact else _sampled)(subject, model, ways, budget, most)
    together = _together(subject, budget)
    shares = products(choices, range(choices + 1), _filled(found["norm"]))
    low, high, among = effective(choices, range(choices + 1), shares, SHARE)
    plain = ways.rows - choices
    return {
        "units": ways.rows, "choices": choices, "num_paths": 2**choices, "exact": exact,
        "length": [plain + length for length in range(choices + 1)],
        "paths_of_length": [math.comb(choices, length) / 2**choices for length in range(choices + 1)],
        **{name: found[name] for name in ("norm", "standard_error")},
        "share_of_gradient": shares,
        **together,
        "effective": {"share": SHARE, "from": plain + low, "to": plain + high, "share_of_paths": among},
        "mean_length": plain + choices / 2,
        "mean_effective_length": plain + math.fsum(length * share for length, share in enumerate(shares)),
        "used": {**found["used"], **({"images of the exact sums": together["images"]} if together else {})},
    }  # fmt: skip


@contextmanager
def _gates(subject: Subject, model: nn.Module, image: Tensor) -> Iterator[tuple[nn.Module, Ways]]:
    """The network with gates on both ways of its units where they run in series, or else of the skips that its census finds."""
    if in_series(model) and run_in_series(model, image):
        with watched(model) as ways:
            yield model, ways
        return
    try:
        network = GatedSkips(model, image)
    except RequestError as error:
        raise NotApplicable(f"The paths of {subject.name} cannot be told apart. {error}") from error
    yield network, network.ways


def _all_paths(subject: Subject, model: nn.Module, ways: Ways, budget: Budget, most: int) -> dict[str, Any]:
    """Every path of each image, as many images as the budget allows."""
    choices = len(ways.gated)
    paths = torch.cat([every(choices, length) for length in range(choices + 1)], dim=1)
    lengths = paths.sum(0).long()
    size = min(most, paths.shape[1])
    means: list[Tensor] = []
    images, labels = subject.images(64)
    for place in range(len(images)):
        once = Pass(model, ways, images[[place] * size], labels[[place] * size])
        parts = [norms(once, _padded(paths[:, start : start + size], size)).cpu() for start in range(0, paths.shape[1], size)]
        values = torch.cat(parts)[: paths.shape[1]].double()
        means.append(torch.zeros(choices + 1, dtype=torch.float64).index_add_(0, lengths, values) / lengths.bincount())
        done = place + 1
        budget.progress(0.75 * max(done / len(images), budget.spent / (0.75 * budget.seconds)))
        if done & (done - 1) == 0 and 2 * budget.spent > 0.75 * budget.seconds:  # as many again would be too many
            break
    table = torch.stack(means)
    return {**_moments(table), "used": {"images": len(means), "paths of each image": paths.shape[1]}}


def _sampled(subject: Subject, model: nn.Module, ways: Ways, budget: Budget, most: int) -> dict[str, Any]:
    """For each length another path drawn for each image; rounds with other images until the budget says to stop."""
    choices = len(ways.gated)
    lengths = sorted({round(place * choices / (MOST_LENGTHS - 1)) for place in range(MOST_LENGTHS)})
    images, labels = subject.images(most * MOST_ROUNDS)
    size = min(most, len(images))

    once = Pass(model, ways, images[:size], labels[:size])
    back = budget.timed(partial(norms, once, torch.zeros(choices, size)))
    forth = budget.timed(lambda: Pass(model, ways, images[:size], labels[:size]))
    allowed = 0.75 * budget.seconds - budget.spent
    lengths = [lengths[place] for place in _spread(len(lengths), max(2, int(allowed / back)))]
    rounds = min(MOST_ROUNDS, 2 ** int(math.log2(max(1.0, allowed / (forth + len(lengths) * back)))))
    generator = torch.Generator().manual_seed(keyed.generator_seed(subject.seed, "paths"))
    table = torch.full((rounds * size, choices + 1), math.nan, dtype=torch.float64)
    for number in range(rounds):
        rows = torch.arange(number * size, (number + 1) * size)
        once = Pass(model, ways, images[rows % len(images)], labels[rows % len(images)])
        order = orders(choices, size, generator)
        for place, length in enumerate(lengths):
            table[rows, length] = norms(once, drawn(order, length)).cpu()
            budget.progress(0.75 * (number + (place + 1) / len(lengths)) / rounds)
    used = {"images": min(len(images), rounds * size), "paths of each length": rounds * size, "lengths": len(lengths)}
    return {**_moments(table), "used": used}


def _together(subject: Subject, budget: Budget) -> dict[str, Any]:
    """The norm of the sum over all paths of each length, in float64, on few images; nothing where the time is too short."""
    images, labels = subject.images(8)
    with torch.random.fork_rng(devices=[]):
        model = copy.deepcopy(subject.model).double()
    images = images.double()
    with _gates(subject, model, images[:1]) as (network, ways):
        if not ways.gated:
            return {}

        def one_pass(count: int) -> Tensor:
            return Pass(network, ways, images[:count], labels[:count], doubled=True).gradient()

        pace = budget.timed(lambda: one_pass(1)) * (len(ways.gated) // 2 + 2)
        count = min(len(images), int(0.9 * budget.left / pace))
        if not count:
            return {}
        sums = sums_by_length(network, ways, images[:count], labels[:count])
        full = Pass(network, ways, images[:count], labels[:count]).gradient().flatten(1)
    size = sums.flatten(2).norm(dim=2)
    floor = 1e-13 * size.amax(0)
    return {
        "sum_norm": [_finite(float(row.mean())) if (row > floor).all() else None for row in size],
        "full_norm": float(full.norm(dim=1).mean()),
        "completeness_error": float((sums.sum(0).flatten(1) - full).norm() / full.norm().clamp_min(1e-300)),
        "images": count,
    }


def _kept_bytes(model: nn.Module, ways: Ways, image: Tensor, label: Tensor) -> int:
    """Bytes of the tensors that one image's forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        once = Pass(model, ways, image, label)
    del once
    return sum(kept.values())


def _moments(table: Tensor) -> dict[str, Any]:
    """Mean and its standard error of each column of [values, lengths]; None where nothing was measured."""
    count = len(table)
    error = table.std(0) / math.sqrt(count) if count > 1 else torch.full((table.shape[1],), math.nan)
    return {
        "norm": [_finite(value) for value in table.mean(0).tolist()],
        "standard_error": [_finite(value) for value in error.tolist()],
    }


def _padded(paths: Tensor, size: int) -> Tensor:
    return torch.cat((paths, paths[:, :1].expand(-1, size - paths.shape[1])), dim=1)


def _spread(count: int, allowed: int) -> list[int]:
    """At most `allowed` of `count` places, evenly spread, both ends among them."""
    if count <= allowed:
        return list(range(count))
    return sorted({round(place * (count - 1) / (allowed - 1)) for place in range(allowed)})


def _filled(values: list[float | None]) -> list[float]:
    """The lengths that were not measured, geometrically between their neighbours."""
    known = [(place, math.log(value)) for place, value in enumerate(values) if value]
    if not known:
        return [0.0] * len(values)
    result = []
    for place in range(len(values)):
        below = max((k for k in known if k[0] <= place), default=None)
        above = min((k for k in known if k[0] >= place), default=None)
        if below is None or above is None or values[place] == 0:
            result.append(0.0)
        elif below[0] == above[0]:
            result.append(math.exp(below[1]))
        else:
            part = (place - below[0]) / (above[0] - below[0])
            result.append(math.exp(below[1] + part * (above[1] - below[1])))
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


paths = Analysis(
    name="paths",
    title="Paths and their gradients",
    about="Gradient norm over single paths by their length, and the lengths that carry it, by path-limited backward passes "
    "(veit2016, section 5 and figure 6).",
    measure=_measure,
    draw=draw,
    read=read,
    share=1.5,
)
