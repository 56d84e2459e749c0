"""The default recipe: good accuracy for the time given, on small sets and large ones."""

from __future__ import annotations

from residua.recipe import Augment, Average, Model, Optim, Recipe, Schedule

__all__ = ["fast"]


def fast(model: str = "auto") -> Recipe:
    """What today gives the best accuracy for a given time."""
    return Recipe(
        name="fast",
        model=Model(name=model),
        augment=Augment(crop="auto"),
        optim=Optim(name="sgd", lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_all=False),
        schedule=Schedule(shape="linear", warmup=0.2, warmup_factor=0.05, warmup_shape="linear"),
        average=Average(decay=0.999),
        batch_size=128,
        label_smoothing=0.1,
    )
