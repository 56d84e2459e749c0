"""The recipes of Xie et al. 2016, "Aggregated Residual Transformations for Deep Neural Networks" (ResNeXt)."""

from __future__ import annotations

from residua.recipe import Augment, Data, Model, Optim, Recipe, Schedule

__all__ = ["resnext_cifar", "resnext_imagenet"]


def resnext_cifar(model: str = "resnext29_8x64d") -> Recipe:
    """Appendix A, table 7: CIFAR-10 and CIFAR-100.

    SGD, momentum 0.9, decay 5e-4 on all parameters, batch 128 (on eight GPUs), 300 epochs, learning rate 0.1 divided by 10 after
    150 and 225; a 32 x 32 crop of the image padded to 40 x 40, or its mirror image. Averages of ten runs.

    Not in the paper: how the pixels are normalised; here by mean and standard deviation per channel, the padding being zero
    after it. The batch statistics of the paper are of 16 images a GPU; here they are of a whole (micro-)batch.

    Expected, table 7, error on CIFAR-10 and CIFAR-100: 8x64d 3.65 % and 17.77 %, 16x64d 3.58 % and 17.31 %.

        residua train cifar10 --model resnext29_8x64d --recipe resnext-cifar
        residua train cifar100 --model resnext29_16x64d --recipe resnext-cifar
    """
    return Recipe(
        name="resnext-cifar",
        data=Data(source="cifar10", normalize="channel"),
        model=Model(name=model),
        augment=Augment(crop="pad", pad=4, flip=True),
        optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, decay_all=True),
        schedule=Schedule(shape="steps", drops=(150 / 300, 225 / 300), drop_factor=0.1),
        batch_size=128,
        epochs=300,
    )


def resnext_imagenet(model: str = "resnext50_32x4d") -> Recipe:
    """Section 4, tables 3 to 5: ImageNet, 50 and 101 layers of any cardinality.

    SGD, momentum 0.9, decay 1e-4 on all parameters, batch 256 (on eight GPUs, 32 each), learning rate 0.1 divided by 10 three
    times, every 30 epochs; a random 224 crop with scale and aspect ratio jitter, or its mirror image.

    Not in the paper: the end of training; here 120 epochs, so that the last of the three drops has its 30 epochs.

    Expected, single centre crop of 224 from 256, top-1 error, table 3: 50 layers 1x64d 23.9 %, 2x40d 23.0 %, 4x24d 22.6 %,
    8x14d 22.3 %, 32x4d 22.2 %; 101 layers 22.0 %, 21.7 %, 21.4 %, 21.3 %, 21.2 %; table 4: 101 layers 2x64d 20.7 %, 64x4d
    20.4 %. Without shortcuts (section 5.1, `--set model.plain=true`): 31.2 % for 1x64d and 26.1 % for 32x4d, 50 layers.

        residua train imagenet --data-dir DIR --model resnext50_32x4d --recipe resnext-imagenet

    The paper: 0.95 s an update for 101 layers of 32x4d on eight GPUs of its day (so these 120 epochs: 6.6 days).
    """
    return Recipe(
        name="resnext-imagenet",
        data=Data(source="imagenet", image_size=224, normalize="channel"),
        model=Model(name=model),
        augment=Augment(crop="random-resized", min_area=0.08, flip=True),
        optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True),
        schedule=Schedule(shape="steps", drops=(30 / 120, 60 / 120, 90 / 120), drop_factor=0.1),
        batch_size=256,
        epochs=120,
        evaluations=120,
    )
