"""The recipes of Srivastava, Greff and Schmidhuber 2015, "Highway Networks" and "Training Very Deep Networks".

The convolutional ones follow the solver files that the authors released; the papers say little more than "SGD with momentum".
"""

from __future__ import annotations

from residua.recipe import Augment, Data, Model, Optim, Recipe, Schedule

__all__ = ["highway_mnist", "highway_mnist_conv", "highway_cifar"]


def highway_mnist(model: str = "highway_50") -> Recipe:
    """Section 3.1, figure 1: MNIST, the fully connected highway nets of 10 to 100 layers and their plain counterparts.

    SGD with momentum and an exponentially decaying learning rate (by a factor at the end of each epoch); no augmentation, no
    weight decay. Departure: the papers draw 40 (100) settings at random for each net, over learning rate, momentum, decay,
    activation and gate bias, show the best and do not print it. What stands here is one setting: 0.05, 0.9, 0.95 an epoch,
    batch 100, 100 epochs. Search with `--set optim.lr=... --set optim.momentum=... --set schedule.drop_factor=...
    --set model.activation=tanh --set model.gate_bias=-3`.

    Expected, figure 1, training cross-entropy of the best of the search: about 1e-4 for 10 plain layers and 0.1 for 100,
    about 1e-5 for 100 highway layers. Not yet measured with this setting.

        residua train mnist --model highway_50 --recipe highway-mnist
        residua train mnist --model highway_plain_50 --recipe highway-mnist
    """
    epochs = 100
    return Recipe(
        name="highway-mnist",
        data=Data(source="mnist"),
        model=Model(name=model),
        augment=Augment(crop="none", flip=False),
        optim=Optim(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.0),
        schedule=Schedule(shape="steps", drops=tuple(epoch / epochs for epoch in range(1, epochs)), drop_factor=0.95),
        batch_size=100,
        epochs=epochs,
    )


def highway_mnist_conv(model: str = "highway_conv_10_32") -> Recipe:
    """Section 3.2, table 1: MNIST, ten layers of width 16 or 32 (dropout is part of the network).

    SGD with Nesterov's momentum 0.9, learning rate 0.01 divided by 10 at 60,000 and 120,000 of 180,000 iterations, batch 100,
    decay 1e-3 on weights; no augmentation. Departures from the release: it doubles the rate of biases, has ten times the decay
    on the classifier, and only divides pixels by 256, where here mean and standard deviation are normalised.

    Expected, table 1: 99.43 % (width 16) and 99.55 % (width 32), the best of five runs.

        residua train mnist --model highway_conv_10_32 --recipe highway-mnist-conv
    """
    return Recipe(
        name="highway-mnist-conv",
        data=Data(source="mnist"),
        model=Model(name=model),
        augment=Augment(crop="none", flip=False),
        optim=Optim(name="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3, decay_all=False),
        schedule=Schedule(shape="steps", drops=(60_000 / 180_000, 120_000 / 180_000), drop_factor=0.1),
        batch_size=100,
        steps=180_000,
    )


def highway_cifar(model: str = "highway_conv_19") -> Recipe:
    """Section 3.3.2, table 3: CIFAR-10 and CIFAR-100, 19 layers (dropout is part of the network).

    SGD with Nesterov's momentum 0.9, learning rate 0.025 divided by 10 at 100,000, 150,000 and 175,000 of 200,000 iterations,
    batch 100, decay 1e-3 on weights; padding by 8, random crop and mirror image. Departures from the release: it doubles the
    rate of biases, has ten times the decay on the classifier, and normalises the contrast of each image, where here mean and
    standard deviation are normalised per channel.

    Expected, table 3: 92.40 % (92.31 +- 0.12 % over five runs) on CIFAR-10, 67.76 % (67.61 +- 0.15 %) on CIFAR-100.

        residua train cifar10 --model highway_conv_19 --recipe highway-cifar
        residua train cifar100 --model highway_conv_19 --recipe highway-cifar
    """
    return Recipe(
        name="highway-cifar",
        data=Data(source="cifar10"),
        model=Model(name=model),
        augment=Augment(crop="pad", pad=8, flip=True),
        optim=Optim(name="sgd", lr=0.025, momentum=0.9, nesterov=True, weight_decay=1e-3, decay_all=False),
        schedule=Schedule(shape="steps", drops=(100_000 / 200_000, 150_000 / 200_000, 175_000 / 200_000), drop_factor=0.1),
        batch_size=100,
        steps=200_000,
    )
