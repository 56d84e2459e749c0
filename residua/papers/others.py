"""The other networks of the field: VGG's claim on depth, and what waits for networks that are not built yet. Layer 4.

Small form of VGG: an eighth of the width, one linear layer as its head, batch normalisation after each convolution, on CIFAR-10.
"""

from __future__ import annotations

from residua.claims import AllOf, Arm, Claim, Equal, Exact, Item, NotAttempted, Ordered, Paper, Row
from residua.papers import _charts
from residua.papers import _others_settled as exact
from residua.papers._small import IMAGENET, PRINTED, by_budget, unavailable
from residua.recipe import replaced
from residua.recipes.vgg import vgg_imagenet

__all__ = ["others"]

STAND_IN = "an eighth of the width, a linear head, batch normalisation, CIFAR-10"
LETTERS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
NARROW = {"width": 0.125, "head": "linear", "normalization": "batch", "dropout": 0.0}
CIFAR = {
    "data.source": "cifar10",
    "data.image_size": None,
    "augment.crop": "pad",
    "augment.pad": 4,
    "augment.colour": 0.0,
    "batch_size": 128,
    "optim.lr": 0.05,
    "evaluations": 10,
    "model.options": NARROW,
}
TINY = {"data.image_size": 32}  # what five poolings take
# Table 3 tests densely at the side of training, under jitter at the mean of its bounds.
PLATEAUS = (
    "the learning rate falls after a fourth, a half and three fourths of the training, because the paper's rule, when the "
    "validation error stops to fall, depends on who looks; deeper networks start from random weights instead of those of network "
    "A, as the paper says is possible"
)
NETS = tuple(
    Arm(
        name, vgg_imagenet(name), small=CIFAR, stand_in=STAND_IN, smoke=TINY, protocols=("dense@256",), departs=PLATEAUS,
    )
    for name in LETTERS
)  # fmt: skip
JITTERED = tuple(
    Arm(
        f"{name}-jitter",
        replaced(vgg_imagenet(name), {"augment.max_side": 512}),
        small=unavailable(IMAGENET),
        smoke=TINY | {"model.options": NARROW},
        protocols=("dense@384",),
        departs=PLATEAUS,
    )
    for name in ("vgg16", "vgg19")
)

UNBUILT = "Networks for {} are not built here yet."
DENSE, BOXES, WORDS, VIDEO = (
    NotAttempted(UNBUILT.format(what)) for what in ("segmentation", "detection", "sequences and patches", "video")
)
WAITING = {
    "fcn_skip_gain": DENSE,
    "segnet_skip_information": DENSE,
    "fpn_both_needed": BOXES,
    "fpn_small_objects": BOXES,
    "mask_backbones": BOXES,
    "detr_large_objects": BOXES,
    "gnmt_residual_needed": WORDS,
    "vit_needs_data": WORDS,
    "resnet3d_depth": VIDEO,
    "resnet3d_small_data": VIDEO,
}
SEEDS = "Half a point is what three seeds can tell apart where networks train well."

others = Paper(
    "others",
    arms=(*NETS, *JITTERED),
    claims=(
        Claim(
            "vgg_depth_helps_to_19",
            by_budget(
                AllOf(Ordered(("vgg16", "vgg13", "vgg11")), Equal("vgg16-jitter", "vgg19-jitter", margin=0.3)),
                AllOf(Ordered(("vgg16", "vgg13", "vgg11"), least=0.5, reason=SEEDS), Equal("vgg16", "vgg19", margin=1.0)),
                "no scale jitter",
            ),
            arms=("vgg11", "vgg13", "vgg16", "vgg19", "vgg16-jitter", "vgg19-jitter"),
            stands_in=(
                f"{STAND_IN}. Five poolings leave one position of 32 x 32 pixels, so that depth has less to add than at 224 "
                "pixels; neighbours that differ by less than a point are under-powered by design."
            ),
        ),
        Claim("vgg_sizes", Exact(exact.SIZES, exact.sizes)),
        Claim("vgg_three_small_kernels", Exact(exact.KERNELS, exact.kernels)),
        *(Claim(name, rule) for name, rule in WAITING.items()),
        Claim("googlenet_layers", Exact(exact.LAYERS, exact.googlenet_layers)),
        Claim("residual_or_skip", NotAttempted("What U-Net, FCN, FPN, Hourglass and SegNet join waits for those networks.")),
        Claim("secondary_vgg_googlenet", NotAttempted(PRINTED)),
        Claim("mask_table_copies", NotAttempted(PRINTED)),
    ),
    items=(
        Item(
            "vgg_table3",
            "VGG by depth",
            arms=(*LETTERS, "vgg16-jitter", "vgg19-jitter"),
            rows=(
                *(
                    Row(
                        name,
                        published=f"vgg_single_scale/{letter if letter < 'C' else letter + '-256'}/top1",
                        label=f"{letter}, {name}",
                        full="dense@256.test_error",
                    )
                    for name, letter in LETTERS.items()
                ),
                *(
                    Row(
                        f"{name}-jitter",
                        published=f"vgg_single_scale/{LETTERS[name]}-jitter/top1",
                        label=f"{LETTERS[name]}, jitter",
                        full="dense@384.test_error",
                    )
                    for name in ("vgg16", "vgg19")
                ),
            ),
            draw=lambda evidence: [
                *_charts.by_size(
                    evidence,
                    {"VGG": {11: "vgg11", 13: "vgg13", 16: "vgg16", 19: "vgg19"}},
                    "test_error",
                    "vgg-table3",
                    "Error by depth",
                    "layers",
                    whole=True,
                ),
                *_charts.training(evidence, {"vgg11": "VGG-11", "vgg19": "VGG-19"}, "vgg-curves", "Training by depth"),
            ],
            claims=("vgg_depth_helps_to_19", "vgg_sizes", "vgg_three_small_kernels"),
            note="Dense testing at one scale, printed and, at budget full, measured; below it the whole image of CIFAR-10.",
        ),
    ),
)
