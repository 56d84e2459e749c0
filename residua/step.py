"""One update: batch -> loss -> gradient -> weights, the same for any number of micro-batches and processes. Layer 4."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from residua import keyed, optim
from residua.augment import Key, Mix, resized, scale_at, transformed
from residua.batches import Batch, Share, even_cuts
from residua.errors import RunError
from residua.network import Network
from residua.plan import Plan, compiled
from residua.recipe import Optim, Recipe
from residua.replay import Recurring
from residua.tasks import classify
from residua.unit import SampledAdd, draw_depth

__all__ = ["NonFiniteLoss", "Outcome", "Step"]

Trained = Literal["head", "all", "past the stem"]
"""Which parameters an update changes."""


class NonFiniteLoss(RunError):
    """The loss was not finite; the weights are those before the step. `draws` are the samples of this process."""

    def __init__(self, step: int, value: float, draws: Tensor) -> None:
        super().__init__(f"The loss is {value} at step {step}.")
        self.step, self.value, self.draws = step, value, draws


@dataclass(frozen=True)
class Outcome:
    """What one update showed, over all processes: mean `loss`, `error` in per cent, the learning rate, images counted."""

    loss: float
    error: float
    lr: float
    count: int


def trained_at(optim: Optim, step: int, total_steps: int) -> Trained:
    """What update number `step` (from 0) of `total_steps` changes."""
    if step < round(optim.head_first * total_steps):
        return "head"
    return "all" if step < round(optim.stem_until * total_steps) else "past the stem"


class Step:
    """Computes updates of `network` as the recipe says and the plan allows.

    The network's own draws (dropout, stochastic depth) are seeded anew before each forward pass from (seed, step, micro-batch,
    process), so a step depends on nothing but its number and the weights.

    Under a plan that compiles, a micro-batch that lost images (files that could not be decoded) goes through the same network
    without compilation: each number of images would be compiled anew, for a minute. What is lost follows from the data and the
    position, so a run stays repeatable.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        plan: Plan,
        normalization: Mapping[str, Tensor],
        total_steps: int,
        *,
        device: torch.device,
        class_weights: Tensor | None = None,
        share: Share | None = None,
    ) -> None:
        memory_format = torch.channels_last if plan.memory_format == "channels_last" else torch.contiguous_format
        self.network = network.to(device, memory_format=memory_format)  # type: ignore[call-overload]
        self.recipe, self.plan, self.total_steps, self.device = recipe, plan, total_steps, device
        self.share = share or Share()
        self.normalization = {name: tensor.to(device) for name, tensor in normalization.items()}
        self.class_weights = class_weights.to(device) if class_weights is not None else None
        self.optimizer = optim.build_optimizer(network, recipe.optim, bf16=plan.fused and plan.precision == "bf16")
        self.average = optim.Averaged(network, recipe.average) if recipe.average.decay else None
        self.parameters = list(network.parameters())
        self.sampled = [module for module in network.modules() if isinstance(module, SampledAdd)]
        self.parallel: DistributedDataParallel | None = None
        self.twin: Any = compiled(network, plan) if plan.fused else network  # shares all layers with weights
        self.forward: Callable[[Tensor], Any] | None = None
        if self.share.world == 1:
            self.forward = self.twin if plan.fused else compiled(network, plan)
        self.trained: Trained | None = None
        self.standing = network.recompute_every > 0 and self.share.world == 1
        own = plan.fused and plan.precision == "bf16" and device.type == "cpu"
        alike = own and not (self.sampled or self.standing or self.share.world > 1 or self._num_micro_batches() > 1)
        self.recurring: Recurring | None = Recurring(cast(nn.Module, self.twin)) if alike else None
        self.train()
        self.last = Outcome(math.nan, math.nan, math.nan, 0)

    def __call__(self, batch: Batch) -> Outcome:
        """Makes update number `batch.step` (from 0); raises `NonFiniteLoss` before anything is changed."""
        self._enter(trained_at(self.recipe.optim, batch.step, self.total_steps))
        factor = optim.learning_rate_factor(self.recipe.schedule, batch.step / self.total_steps)
        optim.set_learning_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=not self.standing)
        count = self._over_processes(torch.tensor([float(batch.valid.sum())], dtype=torch.float64))[0].item()
        sums = self._over_processes(self._gradients(batch, max(1.0, count)))
        loss, wrong = (sums / max(1.0, count)).tolist()
        if not math.isfinite(loss):
            raise NonFiniteLoss(batch.step, loss, batch.draws)
        if self.recipe.optim.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.optim.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(batch.step, self.total_steps)
        self.last = Outcome(loss, 100 * wrong, self.recipe.optim.lr * factor, int(count))
        return self.last

    def _enter(self, trained: Trained) -> None:
        """Begins (or goes on with) a part of the run: in each other parameters are trained.

        Processes exchange gradients of what is trained, so each part has its own exchange."""
        if trained == self.trained:
            return
        self.trained = trained
        everything = list(self.network.parameters())
        if trained == "head":
            chosen = {id(parameter) for parameter in list(self.network.depth_order())[-1]}
        else:
            stem = () if trained == "all" else self.network.stem.parameters()
            chosen = {id(parameter) for parameter in everything} - {id(parameter) for parameter in stem}
        for parameter in everything:
            parameter.requires_grad_(id(parameter) in chosen)
            # Where memory is short gradients keep their places. Those that come and go leave holes among the maps that no map
            # fits into: a tenth of the memory of ResNet-110.
            parameter.grad = torch.zeros_like(parameter) if self.standing and parameter.requires_grad else None
        self.train()
        if self.share.world > 1:
            self.parallel = self.forward = None  # its hooks go with it
            # More than two addends are rounded by the order in which they come, which is that of the buckets of gradients. Torch
            # makes these anew after the first backward pass of a run, and of its continuation, unless it looks for parameters
            # that are not used, and then it says that there are none.
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
            self.parallel = DistributedDataParallel(self.twin, find_unused_parameters=self.share.world > 2)
            self.forward = self.parallel

    def train(self) -> None:
        """Puts the network into training mode. While only the head is trained, the rest stays in evaluation mode: its batch norms
        normalise by the statistics that came with the weights and leave them alone, and nothing in it is dropped, so that the
        head learns from the features that it will see in evaluation."""
        for network in (self.network, self.twin):
            network.train()
            if self.trained == "head":
                network.stem.eval()
                network.stages.eval()

    def _gradients(self, batch: Batch, count: float) -> Tensor:
        """Leaves the gradient of the mean loss over `count` images; returns the sums of losses and of wrong answers here."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        cuts = even_cuts(len(batch.labels), self._num_micro_batches())
        for index, (start, end) in enumerate(pairwise(cuts)):
            chosen = torch.arange(start, end)[batch.valid[start:end]]
            last = index == len(cuts) - 2
            with self._synchronised(last):
                sums += self._micro_batch(batch, chosen, index, count, lost=len(chosen) < end - start)
        return sums

    def _micro_batch(self, batch: Batch, chosen: Tensor, index: int, count: float, *, lost: bool) -> Tensor:
        whole = len(chosen) == len(batch.labels)
        images = batch.images if whole else batch.images[chosen.to(batch.images.device)]
        draws, labels = (value[chosen].to(self.device, non_blocking=True) for value in (batch.draws, batch.labels))
        if not len(chosen) and self.parallel is None:
            return torch.zeros(2, dtype=torch.float64, device=self.device)
        key = Key(self.recipe.seed, batch.epoch)
        x, mix = transformed(images.to(self.device, non_blocking=True), self.recipe.augment, self.normalization, key, draws)
        x = resized(x, scale_at(self.recipe.augment.scales, batch.step / self.total_steps))
        torch.manual_seed(keyed.generator_seed(self.recipe.seed, "network", batch.step, index, self.share.rank))
        draw_depth(self.sampled, self.recipe.seed, batch.step, index)
        x = self.plan.placed(x)
        if self.recurring is None or not whole:
            return self._sums(x, labels, mix, count, lost=lost)
        mixing = () if mix is None else (mix.partner, mix.weight)

        def computed(x: Tensor, labels: Tensor, *mixing: Tensor) -> tuple[Tensor, list[Tensor | None]]:
            sums = self._sums(x, labels, Mix(*mixing) if mixing else None, count, lost=False)
            return sums, [parameter.grad for parameter in self.parameters]

        sums, gradients = self.recurring(computed, x, labels, *mixing, about=count)
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        return sums

    def _sums(self, x: Tensor, labels: Tensor, mix: Mix | None, count: float, *, lost: bool) -> Tensor:
        """Forward and backward; returns the sums of losses and of wrong answers."""
        with self.plan.autocast(self.device):
            assert self.forward is not None
            forward = self.network if lost and self.plan.compile != "none" and self.parallel is None else self.forward
            outputs = forward(x)
        logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = self._losses(logits, labels, mix)
        for head, inner in zip(self.network.auxiliaries, auxiliary):
            losses = losses + head.weight * self._losses(inner, labels, mix)
        (losses.sum() * (self.share.world / count)).backward()
        wrong = ~classify.correct(logits.detach(), labels)
        return torch.stack((losses.detach().double().sum(), wrong.double().sum()))

    def _losses(self, logits: Tensor, labels: Tensor, mix: Mix | None) -> Tensor:
        smoothing = self.recipe.label_smoothing
        return classify.loss(logits, labels, mix=mix, smoothing=smoothing, class_weights=self.class_weights)

    def _num_micro_batches(self) -> int:
        """Forward passes in a step, the same on all processes; an odd limit counts as the even one below it (at least 2)."""
        largest = max(end - start for start, end in pairwise(even_cuts(self.recipe.batch_size, self.share.world)))
        limit = self.recipe.micro_batch
        return 1 if not limit or limit >= largest else -(-largest // max(2, limit - limit % 2))

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients in the last micro-batch only."""
        return nullcontext() if last or self.parallel is None else self.parallel.no_sync()

    def _over_processes(self, sums: Tensor) -> Tensor:
        if self.share.world > 1:
            sums = sums.to(self.device)
            dist.all_reduce(sums)
        return sums

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint must hold, by file."""
        files = {"model": self.network.state_dict(), "optimizer": optim.optimizer_tensors(self.optimizer)}
        return {**files, "average": self.average.tensors} if self.average is not None else files

    def load(self, tensors: Mapping[str, dict[str, Tensor]]) -> None:
        """Puts back what `tensors` gave."""
        self.network.load_state_dict(tensors["model"])
        optim.load_optimizer(self.optimizer, tensors["optimizer"])
        if self.average is not None:
            for name, tensor in tensors["average"].items():
                self.average.tensors[name].copy_(tensor)
