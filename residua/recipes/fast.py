"""The default recipe: good accuracy for the time given, on small sets and large ones."""

from __future__ import annotations

from residua.recipe import Augment, Average, Model, Optim, Recipe, Schedule

__all__ = ["fast"]


def fast(model: str = "auto") -> Recipe:
    """A short training: the rate rises over the first fifth of the run and then falls linearly to zero.

    Muon (Jordan et al. 2024: each convolution's update is made orthogonal) at rate 0.05 with decoupled decay 0.01, and SGD with
    Nesterov's momentum 0.9 for the classifier, biases and normalisations, the last two without decay; batch 128; label
    smoothing 0.1; an average of the weights (decay 0.999) is what is measured. The crop is by the data: padding for small
    uniform images, random resized crops for others; mirror images where the data says so. Smith and Topin 2018 for the shape
    of the schedule. What each part is worth stands in docs/performance.md.

    Expected on two CPU cores: the embedded digits (the default, some 400 updates, 10 to 18 s) 0.3 to 0.8 % error of 359 test
    images, by the seed; CIFAR-10 with ResNet-20 in 15 minutes, without a matrix unit, 9.6 %.

        residua train
        residua train cifar10 --model resnet20 --minutes 15
    """
    return Recipe(
        name="fast",
        model=Model(name=model),
        augment=Augment(crop="auto"),
        optim=Optim(name="muon", lr=0.05, momentum=0.9, weight_decay=0.01, decay_all=False),
        schedule=Schedule(shape="linear", warmup=0.2, warmup_factor=0.05, warmup_shape="linear"),
        average=Average(decay=0.999),
        batch_size=128,
        label_smoothing=0.1,
    )
