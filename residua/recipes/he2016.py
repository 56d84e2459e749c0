"""The recipes of He et al. 2016, "Identity Mappings in Deep Residual Networks" (appendix)."""

from __future__ import annotations

from residua.recipe import Augment, Data, Model, Optim, Recipe, Schedule

__all__ = ["he2016_cifar", "he2016_imagenet"]


def he2016_cifar(model: str = "preact_resnet110") -> Recipe:
    """Appendix, tables 1 to 4: CIFAR-10 and CIFAR-100, any unit of the paper.

    SGD, momentum 0.9, decay 1e-4 on all parameters, batch 128 (on two GPUs), learning rate 0.1 divided by 10 at 32,000 and 48,000
    iterations; the first 400 iterations run at 0.01, in every run ("we note that this warm-up is not necessary for our
    proposed residual unit"). Translation and mirror images only; initialisation of He et al. 2015b; medians of five runs.

    Expected, table 3, CIFAR-10 error: 110 layers 6.61 % with the original unit and 6.37 % pre-activated, 164 layers 5.93 % and
    5.46 %, 1001 layers 7.61 % and 4.92 % (4.89 +- 0.14 %); CIFAR-100: 164 layers 25.16 % and 24.33 %, 1001 layers 27.82 % and
    22.71 %. Departures: the paper does not print the end of training, which is he2015's, 64,000 iterations, as are the per-pixel
    mean and the padding by 4 (with the mean colour).

        residua train cifar10 --model preact_resnet110 --recipe he2016-cifar
        residua train cifar100 --model preact_resnet164 --recipe he2016-cifar
        residua train cifar10 --model preact_resnet1001 --recipe he2016-cifar --set batch_size=64       (4.62 %, table 4)

    The paper: 27 hours for 1001 layers on two GPUs of its day.
    """
    return Recipe(
        name="he2016-cifar",
        data=Data(source="cifar10", normalize="pixel"),
        model=Model(name=model),
        augment=Augment(crop="pad", pad=4, flip=True),
        optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True),
        schedule=Schedule(
            shape="steps",
            drops=(32_000 / 64_000, 48_000 / 64_000),
            drop_factor=0.1,
            warmup=400 / 64_000,
            warmup_factor=0.1,
            warmup_shape="constant",
        ),
        batch_size=128,
        steps=64_000,
    )


def he2016_imagenet(model: str = "preact_resnet200") -> Recipe:
    """Appendix, table 5: ImageNet, 101 to 200 layers.

    SGD, momentum 0.9, decay 1e-4, batch 256 (on eight GPUs), learning rate 0.1 divided by 10 at 30 and 60 epochs, no warm-up;
    augmentation as he2015: shorter side uniform in [256, 480], random 224 crop or its mirror image, the PCA colour change.
    `--set augment.crop=random-resized` is the "scale and aspect ratio" of the table's last row.

    Expected, single centre crop of 320 from 320, top-1 error: ResNet-152 21.3 % with the original unit and 21.1 % pre-activated,
    ResNet-200 21.8 % and 20.7 %, with aspect ratio 20.1 %. Departures: the paper does not print the end of training; here it is
    90 epochs. Mean and standard deviation are per channel (`--set data.normalize=pixel` for the mean image).

        residua train imagenet --data-dir DIR --model preact_resnet200 --recipe he2016-imagenet

    The paper: about three weeks for 200 layers on eight GPUs of its day.
    """
    return Recipe(
        name="he2016-imagenet",
        data=Data(source="imagenet", image_size=224),
        model=Model(name=model),
        augment=Augment(crop="scale-jitter", min_side=256, max_side=480, flip=True, colour=0.1),
        optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True),
        schedule=Schedule(shape="steps", drops=(30 / 90, 60 / 90), drop_factor=0.1),
        batch_size=256,
        epochs=90,
        evaluations=90,
    )
