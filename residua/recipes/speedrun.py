"""CIFAR-10 in little time, by a residual network."""

from __future__ import annotations

from residua.recipe import Augment, Average, Data, Model, Optim, Recipe, Schedule

__all__ = ["speedrun", "speedrun_96"]


def speedrun(model: str = "speed_resnet") -> Recipe:
    """CIFAR-10 in minutes on two processor cores.

    What makes it fast, after Page 2018 ("How to train your ResNet") and Jordan 2024 ("94 % on CIFAR-10 in 3.29 seconds on a
    single GPU"), whose parts these are; docs/performance.md says what each of them is worth here:

    - the network (`residua.models.speed`): an identity past every convolution behind a pooling, a head that starts near zero,
      and in the first layer nothing to learn but offsets, and these in the first fifth of the run only;
    - small images first: 20 pixels a side at the start, then 24, 28, and 32 for the last fifth, which is 63 % of the work;
    - Muon, each update a fixed share of the weight's norm; rates that fall linearly from the first update on, no warm-up;
    - batches of 1,000, so that an update's own cost does not count;
    - offsets of the normalisations learn eight times as fast as the rest; the classifier a tenth as fast, and it decays;
    - shifts by 2 pixels with reflected borders; mirror images in turns rather than by a coin;
    - labels smoothed by 0.2.

    Expected: 6.56 % error, 5.88 % by six views (seeds 0 to 4: 5.76 to 6.05 %); 4 minutes on two cores of an AMD EPYC.

    `residua evaluate RUN --protocol six-view` averages over mirror images and shifts by one pixel, as the published records do.

        residua train cifar10 --recipe speedrun
    """
    scales = ((0.0, 0.625), (0.35, 0.75), (0.6, 0.875), (0.8, 1.0))
    optim = Optim(
        name="muon",
        lr=0.15,
        momentum=0.8,
        weight_decay=0.01,
        decay_all=False,
        bias_factor=8.0,
        head_factor=0.1,
        keep_norm=True,
        stem_until=0.2,
    )
    return Recipe(
        name="speedrun",
        data=Data(source="cifar10"),
        model=Model(name=model),
        augment=_augment(pad=2, scales=scales),
        optim=optim,
        schedule=Schedule(shape="linear"),
        batch_size=1000,
        epochs=14,
        label_smoothing=0.2,
        evaluations=1,
    )


def speedrun_96(model: str = "speed_resnet") -> Recipe:
    """CIFAR-10 to a lower error, in 66 minutes on two processor cores: a wider and deeper network, 50 epochs at full size, shifts
    by 4 pixels and a square of 13 cut out, trained by SGD with a look-ahead.

    Widths, depth, augmentation, rates and decays are those of Jordan 2024, "airbench96" (whose squares lie within the image
    whole; ours may hang over its border, and are larger by a pixel): offsets learn 64 times as fast as weights, scales of
    normalisations stay 1, all decay alike, and every five updates the weights go back to their average, which follows them ever
    more slowly towards the end.

    Aimed at 96 % by six views. Expected: 4.48 % error, 3.85 % by six views (seed 1); 66 minutes on two cores of an AMD EPYC.
    With 40 epochs 4.74 and 4.07 % (seed 0).

        residua train cifar10 --recipe speedrun-96
    """
    larger = {"widths": [128, 384, 512], "units": [1, 1, 1], "convolutions": 2}
    optim = Optim(
        name="sgd",
        lr=1.15,
        momentum=0.85,
        nesterov=True,
        weight_decay=0.00133,
        bias_factor=64.0,
        scale_factor=0.0,
        head_factor=1 / 81,
        stem_factor=1 / 64,
        stem_until=0.08,
    )
    return Recipe(
        name="speedrun-96",
        data=Data(source="cifar10"),
        model=Model(name=model, options=larger if model == "speed_resnet" else {}),
        augment=_augment(pad=4, cutout=13),
        optim=optim,
        schedule=Schedule(shape="linear", warmup=0.1, warmup_factor=0.2),
        average=Average(decay=0.774, every=5, rise=3.0, lookahead=True),
        batch_size=1000,
        epochs=50,
        label_smoothing=0.2,
        evaluations=1,
    )


def _augment(*, pad: int, cutout: int = 0, scales: tuple[tuple[float, float], ...] = ()) -> Augment:
    return Augment(crop="pad", pad=pad, padding="reflect", flip=True, alternate=True, cutout=cutout, scales=scales)
