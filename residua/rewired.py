"""Any network with its skips found, so that their branches can be switched off. Layer 3."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from residua.census import Skip, census, wired
from residua.errors import RequestError
from residua.graph import capture

__all__ = ["Rewired"]


class Rewired:
    """`module`, captured with a factor on both ways of every skip that the census finds (`residua.census.wired`).

    A captured graph may hold the number of images of the batch that it was captured with; then it is captured anew for every
    other number. Raises `RequestError` where the module cannot be captured.
    """

    def __init__(self, module: nn.Module, sample: Tensor) -> None:
        self.module = module
        found = census(capture(module, (sample,)))
        self.skips: tuple[Skip, ...] = found.skips
        self._wired = {len(sample): wired(found)}
        self._sample = len(sample)
        self._any_number = self._takes(sample[:1])

    def __call__(self, images: Tensor, off: Collection[int] = ()) -> Tensor:
        """The logits for images [N, C, H, W] with the branches of the skips numbered in `off` counting as zero."""
        network = self._for(images)
        factors = network.factors
        assert isinstance(factors, Tensor)
        with torch.no_grad():
            factors[list(off), 1] = 0
            try:
                return network(images)
            finally:
                factors.fill_(1)

    def _for(self, images: Tensor) -> nn.Module:
        number = self._sample if self._any_number else len(images)
        if number not in self._wired:
            with torch.inference_mode(False), torch.enable_grad():
                found = census(capture(self.module, (images.clone(),)))
            if [(skip.merge, skip.kind) for skip in found.skips] != [(skip.merge, skip.kind) for skip in self.skips]:
                raise RequestError(f"The network has other skips for batches of {len(images)} images than for {self._sample}.")
            self._wired[number] = wired(found)
        return self._wired[number]

    def _takes(self, images: Tensor) -> bool:
        """Whether the network captured for some number of images computes the same for another."""
        with torch.inference_mode():
            try:
                found, expected = self._wired[self._sample](images), self.module(images)
                return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
            except Exception:  # a graph that holds its batch size can fail in any operation
                return False
