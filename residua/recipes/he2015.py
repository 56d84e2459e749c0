"""The recipes of He et al. 2015, "Deep Residual Learning for Image Recognition"."""

from __future__ import annotations

from residua.recipe import Augment, Data, Model, Optim, Recipe, Schedule

__all__ = ["he2015_cifar", "he2015_imagenet"]


def he2015_cifar(model: str = "resnet20") -> Recipe:
    """Section 4.2, table 6: CIFAR-10, any of the CIFAR ResNets and their plain twins.

    SGD, momentum 0.9, decay 1e-4 on all parameters, batch 128, 64,000 iterations, learning rate 0.1 divided by 10 at 32,000
    and 48,000; per-pixel mean subtracted, padding by 4, random crop and mirror image; tested on the single 32 x 32 view. The
    paper chose its schedule on a 45k/5k split: `--set data.holdout=5000` sets the 5,000 aside as "val". With 110 layers the
    first 400 iterations run at 0.01 (the paper: "until the training error is below 80 %, about 400 iterations").

    Expected, table 6: ResNet-20 8.75 %, 32 7.51 %, 44 7.17 %, 56 6.97 % (one run each), 110 6.61 +- 0.16 % (five runs).
    Departures: the padding is the mean colour rather than the per-pixel mean, which differ by less than 6 of 255. The paper says
    "weight decay of 0.0001" and not on what: on all parameters is how fb.resnet.torch does it, whose authors write that the
    original decayed the weights of the convolutions only. The warm-up is for 110 layers alone: of 1202 layers the paper says
    "trained as described above", which leaves it open.

        residua train cifar10 --model resnet20 --recipe he2015-cifar
        residua train cifar10 --model resnet20 --recipe he2015-cifar --epochs 8         (the same schedule, shortened)

    One H200-class GPU: minutes; two CPU cores: about 2 hours for ResNet-20.
    """
    warmup = 400 / 64_000 if model in ("resnet110", "plain110") else 0.0
    return Recipe(
        name="he2015-cifar",
        data=Data(source="cifar10", normalize="pixel"),
        model=Model(name=model),
        augment=Augment(crop="pad", pad=4, flip=True),
        optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True),
        schedule=Schedule(
            shape="steps",
            drops=(32_000 / 64_000, 48_000 / 64_000),
            drop_factor=0.1,
            warmup=warmup,
            warmup_factor=0.1,
            warmup_shape="constant",
        ),
        batch_size=128,
        steps=64_000,
    )


def he2015_imagenet(model: str = "resnet50") -> Recipe:
    """Section 3.4: ImageNet, 18 to 152 layers.

    SGD, momentum 0.9, decay 1e-4, batch 256, 600,000 iterations (about 120 epochs), learning rate 0.1; shorter side uniform
    in [256, 480], random 224 crop or its mirror image, the PCA colour change of Krizhevsky et al. 2012; no dropout.

    Departures. The paper divides the rate by 10 "when the error plateaus", a rule that depends on the person who looks; here
    it falls at 150,000, 300,000 and 450,000 iterations, where figure 4 shows its steps. The mean and standard deviation are
    per channel, as in all later re-implementations, instead of a per-pixel mean: `--set data.normalize=pixel` for the mean image.
    The decay is on all parameters, as in `he2015_cifar`.

    Expected, centre crop of 224 from 256: ResNet-50 24.7 % top-1, 7.8 % top-5 (the authors' release).

        residua train imagenet --data-dir DIR --model resnet50 --recipe he2015-imagenet --set model.stride_on=1x1
    """
    return Recipe(
        name="he2015-imagenet",
        data=Data(source="imagenet", image_size=224),
        model=Model(name=model),
        augment=Augment(crop="scale-jitter", min_side=256, max_side=480, flip=True, colour=0.1),
        optim=Optim(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay_all=True),
        schedule=Schedule(shape="steps", drops=(150_000 / 600_000, 300_000 / 600_000, 450_000 / 600_000), drop_factor=0.1),
        batch_size=256,
        steps=600_000,
        evaluations=120,
    )
