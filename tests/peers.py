"""A network of ours against the same network of another library, with the same weights, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from residua.network import Network

Outputs = Tensor | tuple[Tensor, ...]


@contextmanager
def in_float64() -> Iterator[None]:
    """Within the block modules are built in float64 from seed 0, so that constants too have its precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


def heads(outputs: Outputs) -> list[Tensor]:
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def assert_equal_to_the_peer(
    ours: Network,
    theirs: nn.Module,
    x: Tensor,
    training: bool,
    *,
    order: Callable[[str], object] | None = None,
    reverse_auxiliary: bool = False,
    tolerance: float = 1e-9,
) -> None:
    """Asserts equal outputs of all heads and, in training, equal losses, gradients of every parameter and buffers, to `tolerance`
    times the largest number of the tensor.

    Both get the same weights: those of ours, with biases, scales and running statistics drawn at random. The peer's tensors are
    taken in their own order, or sorted by the key `order` of their names; `reverse_auxiliary`: it gives its auxiliary heads from
    the last to the first.
    """
    draw_vectors(ours)
    own, other = dict(ours.state_dict()), dict(theirs.state_dict())
    names = sorted(other, key=order) if order else list(other)
    assert [tuple(tensor.shape) for tensor in own.values()] == [tuple(other[name].shape) for name in names]
    theirs.load_state_dict(dict(zip(names, (tensor.clone() for tensor in own.values()))))
    ours.train(training)
    theirs.train(training)
    with torch.set_grad_enabled(training):
        found, expected = heads(ours(x)), heads(theirs(x))
    if reverse_auxiliary:
        expected = [expected[0], *expected[:0:-1]]
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        close(a, b, tolerance)
    if not training:
        return
    labels = torch.arange(len(x)) % found[0].shape[1]
    losses = [sum(nn.functional.cross_entropy(y, labels) for y in outputs) for outputs in (found, expected)]
    close(losses[0], losses[1], tolerance)
    for loss in losses:
        loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    mapping = dict(zip(own, names))
    for name, parameter in ours.named_parameters():
        expected_gradient = gradients[mapping[name]]
        assert parameter.grad is not None
        assert expected_gradient is not None
        # Biases before a batch normalisation have no gradient but rounding: the largest of all sets the floor.
        close(parameter.grad, expected_gradient, tolerance, floor=1e-13 * scale)
    after = theirs.state_dict()
    for name, tensor in ours.state_dict().items():
        close(tensor, after[mapping[name]], tolerance)


def draw_vectors(network: nn.Module) -> None:
    """Biases, scales, offsets and running statistics that are neither 0 nor 1, so that none can stand in for another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 1:
                drawn = torch.rand(tensor.shape, dtype=tensor.dtype, generator=generator)
                offset = name.endswith(("bias", "running_mean"))
                tensor.copy_(0.2 * drawn - 0.1 if offset else 0.5 + drawn)


def close(found: Tensor, expected: Tensor, tolerance: float, floor: float = 0.0) -> None:
    atol = tolerance * float(expected.detach().abs().max()) + floor
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=atol)
