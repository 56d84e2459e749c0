"""The recipe of Szegedy et al. 2016, "Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning"."""

from __future__ import annotations

from residua.recipe import Augment, Average, Data, Model, Optim, Recipe, Schedule

__all__ = ["inception_resnet_imagenet"]

EPOCHS = 160


def inception_resnet_imagenet(model: str = "inception_resnet_v2") -> Recipe:
    """Section 4: ImageNet at 299 pixels.

    RMSProp, decay of the mean square 0.9, eps 1.0; learning rate 0.045, times 0.94 every two epochs; the gradient is clipped; the
    running average of the weights is what is measured.

    What the paper leaves open: 160 epochs, a random crop of 8 to 100 % of the area and a mirror image (as GoogLeNet), a largest
    norm of 2 and no decay of weights. Departures: 20 machines with a batch of 32 each, whose updates do not wait for each other,
    become one with a batch of 32; eps is added outside the square root, theirs inside, which at 1.0 makes the first steps
    larger.

    Expected, single crop, error top-1 and top-5 (on the paper's reduced validation set): Inception-ResNet-v2 19.9 % and 4.9 %,
    v1 21.3 % and 5.5 %; Inception-v4 20.0 % and 5.0 %.

        residua train imagenet --model inception_resnet_v2 --recipe inception-resnet-imagenet
        residua train imagenet --model inception_v4 --recipe inception-resnet-imagenet
    """
    return Recipe(
        name="inception-resnet-imagenet",
        data=Data(source="imagenet", image_size=299, normalize="channel"),
        model=Model(name=model),
        augment=Augment(crop="random-resized", min_area=0.08, flip=True),
        optim=Optim(name="rmsprop", lr=0.045, momentum=0.0, weight_decay=0.0, clip=2.0, square_decay=0.9, eps=1.0),
        schedule=Schedule(shape="steps", drops=tuple(epoch / EPOCHS for epoch in range(2, EPOCHS, 2)), drop_factor=0.94),
        average=Average(decay=0.9999),
        batch_size=32,
        epochs=EPOCHS,
    )
