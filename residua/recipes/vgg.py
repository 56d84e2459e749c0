"""The recipe of Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition"."""

from __future__ import annotations

from residua.recipe import Augment, Data, Model, Optim, Recipe, Schedule

__all__ = ["vgg_imagenet"]


def vgg_imagenet(model: str = "vgg16") -> Recipe:
    """Section 3.1: ImageNet, 11 to 19 layers.

    SGD, momentum 0.9, decay 5e-4 on all parameters, batch 256, 370,000 iterations (74 epochs), learning rate 0.01 divided by 10
    three times; dropout of 0.5 in the head (part of the network); shorter side 256, random 224 crop, mirror image, the PCA colour
    change. With scale jitter: `--set augment.max_side=512`.

    Departures. The paper divides the rate when the validation error stops to fall, a rule that depends on the person who looks;
    here it falls after a fourth, a half and three fourths. The deeper networks start from random weights and not from a trained
    network A, as section 3.1 says is possible.

    Expected, table 3, dense evaluation at 256, top-1 and top-5 error: A 29.6 % and 10.4 %, B 28.7 % and 9.9 %, D 27.0 % and
    8.8 %, E 27.3 % and 9.0 %.

        residua train imagenet --data-dir DIR --model vgg16 --recipe vgg-imagenet

    The paper: two to three weeks on four GPUs of its day.
    """
    return Recipe(
        name="vgg-imagenet",
        data=Data(source="imagenet", image_size=224),
        model=Model(name=model),
        augment=Augment(crop="scale-jitter", min_side=256, max_side=256, flip=True, colour=0.1),
        optim=Optim(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, decay_all=True),
        schedule=Schedule(shape="steps", drops=(0.25, 0.5, 0.75), drop_factor=0.1),
        batch_size=256,
        steps=370_000,
        evaluations=74,
    )
