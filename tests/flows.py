"""Flows written by hand, for the tests of drawings: chains, units, towers and nested networks of a few lines each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from residua.flow import Flow, Step


@dataclass(frozen=True)
class Skip:
    """What a drawing asks of a skip."""

    kind: str
    way: str


@dataclass
class Sketch:
    """A flow in the making: every method adds a step and gives its number."""

    steps: list[Step] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)

    def source(self, *shape: int) -> int:
        return self._add(Step("source", (), "image", shape=shape))

    def layer(self, source: int, words: str, *shape: int, group: str = "", before: tuple[str, ...] = ()) -> int:
        label = f"{group}.layer{len(self.steps)}"
        return self._add(Step("layer", (source,), label, shape=shape, group=group, detail=words, before=before))

    def merge(self, bypass: int, branch: int, kind: str = "add", way: str = "identity", before: tuple[str, ...] = ()) -> int:
        self.skips.append(Skip(kind, way))
        shape, group = self.steps[branch].shape, self.steps[branch].group
        if kind == "concatenate":
            shape = (shape[0] + self.steps[bypass].shape[0], *shape[1:])
        return self._add(Step("choice", (bypass, branch), kind, len(self.skips) - 1, shape, group, before=before))

    def join(self, sources: Sequence[int], words: str, *shape: int) -> int:
        return self._add(Step("join", tuple(sources), words, shape=shape))

    def flow(self) -> Flow:
        return Flow(tuple(self.steps), len(self.steps) - 1)

    def _add(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1


def imagenet_net(units: Sequence[int], *, skips: bool, projections: bool = True) -> Sketch:
    """The 18 and 34 layers of he2015 table 1, with basic units; option B or A, or the plain twin."""
    net = Sketch()
    x = net.layer(net.source(3, 224, 224), "7×7 conv, 64, /2", 64, 112, 112, group="stem")
    pool: tuple[str, ...] = ("max pool, /2",)
    for stage, count in enumerate(units):
        width, side = 64 * 2**stage, 56 // 2**stage
        for place in range(count):
            stride = ", /2" if stage and not place else ""
            group = f"stages.{stage}.{place}"
            f = net.layer(x, f"3×3 conv, {width}{stride}", width, side, side, group=group, before=pool)
            f = net.layer(f, f"3×3 conv, {width}", width, side, side, group=group)
            h = (
                net.layer(x, f"1×1 conv, {width}{stride}", width, side, side, group=group)
                if stride and skips and projections
                else x
            )
            way = "projection" if stride and projections else "identity"
            x = net.merge(h, f, way=way, before=pool) if skips else f
            pool = ()
    net.layer(x, "fc, 1000", 1000, group="head", before=("avg pool",))
    return net


def vgg19() -> Sketch:
    """Table 1, E, of Simonyan and Zisserman 2014."""
    net = Sketch()
    x, side = net.source(3, 224, 224), 224
    pool: tuple[str, ...] = ()
    for width, count in zip((64, 128, 256, 512, 512), (2, 2, 4, 4, 4)):
        for _ in range(count):
            x = net.layer(x, f"3×3 conv, {width}", width, side, side, before=pool)
            pool = ()
        pool, side = ("max pool, /2",), side // 2
    for width in (4096, 4096, 1000):
        x = net.layer(x, f"fc, {width}", width, before=pool)
        pool = ()
    return net


def cifar_resnet(units: int) -> Sketch:
    """6 units + 2 layers with option A (he2015 section 4.2)."""
    net = Sketch()
    x = net.layer(net.source(3, 32, 32), "3×3 conv, 16", 16, 32, 32, group="stem")
    for stage in range(3):
        width, side = 16 * 2**stage, 32 // 2**stage
        for place in range(units):
            stride = ", /2" if stage and not place else ""
            group = f"stages.{stage}.{place}"
            f = net.layer(x, f"3×3 conv, {width}{stride}", width, side, side, group=group)
            x = net.merge(x, net.layer(f, f"3×3 conv, {width}", width, side, side, group=group))
    net.layer(x, "fc, 10", 10, group="head", before=("avg pool",))
    return net


def densenet(blocks: Sequence[int], growth: int) -> Sketch:
    """Bottleneck layers whose maps are concatenated, with transitions."""
    net = Sketch()
    side, channels = 56, 2 * growth
    x = net.layer(net.source(3, 224, 224), f"7×7 conv, {channels}, /2", channels, 112, 112, group="features.conv0")
    pool: tuple[str, ...] = ("max pool, /2",)
    for block, count in enumerate(blocks):
        group = f"features.denseblock{block + 1}"
        if block:
            channels, side = channels // 2, side // 2
            x = net.layer(x, f"1×1 conv, {channels}", channels, 2 * side, 2 * side, group=f"features.transition{block}")
            pool = ("avg pool, /2",)
        for _ in range(count):
            f = net.layer(x, f"1×1 conv, {4 * growth}", 4 * growth, side, side, group=group, before=pool)
            f = net.layer(f, f"3×3 conv, {growth}", growth, side, side, group=group)
            x = net.merge(x, f, "concatenate", before=pool)
            channels, pool = channels + growth, ()
    net.layer(x, "fc, 1000", 1000, group="classifier", before=("avg pool",))
    return net


def unet(levels: int) -> Sketch:
    """Ronneberger et al. 2015 with padding: encoder maps are concatenated to the decoder's of the same size."""
    net = Sketch()
    x = net.source(1, 256, 256)

    def level(x: int, depth: int) -> int:
        width, side = 64 * 2**depth, 256 // 2**depth
        before = ("max pool, /2",) if depth else ()
        x = net.layer(x, f"3×3 conv, {width}", width, side, side, group=f"down{depth}", before=before)
        x = net.layer(x, f"3×3 conv, {width}", width, side, side, group=f"down{depth}")
        if depth == levels:
            return x
        up = net.layer(level(x, depth + 1), f"2×2 up-conv, {width}, ×2", width, side, side, group=f"up{depth}")
        x = net.merge(x, up, "concatenate")
        x = net.layer(x, f"3×3 conv, {width}", width, side, side, group=f"up{depth}")
        return net.layer(x, f"3×3 conv, {width}", width, side, side, group=f"up{depth}")

    net.layer(level(x, 0), "1×1 conv, 2", 2, 256, 256, group="score")
    return net


def hourglass(levels: int) -> Sketch:
    """Newell et al. 2016: at each level the upper way is a residual bottleneck, the lower way the level below."""
    net = Sketch()
    x = net.layer(net.source(3, 256, 256), "7×7 conv, 256, /2", 256, 128, 128, group="stem")

    def bottleneck(x: int, side: int) -> int:
        f = net.layer(x, "1×1 conv, 128", 128, side, side)
        f = net.layer(f, "3×3 conv, 128", 128, side, side)
        return net.merge(x, net.layer(f, "1×1 conv, 256", 256, side, side))

    def level(x: int, depth: int) -> int:
        side = 128 // 2**depth
        upper = bottleneck(x, side)
        low = net.layer(x, "3×3 conv, 256", 256, side // 2, side // 2, before=("max pool, /2",))
        low = level(low, depth + 1) if depth < levels - 1 else bottleneck(low, side // 2)
        low = net.layer(low, "3×3 conv, 256", 256, side // 2, side // 2)
        return net.merge(upper, low)

    net.layer(level(x, 0), "1×1 conv, 16", 16, 128, 128, group="score")
    return net


def _tower_layer(net: Sketch, group: str, x: int, words: str, before: tuple[str, ...] = ()) -> int:
    return net.layer(x, words, 128, 28, 28, group=group, before=before)


def googlenet(modules: int) -> Sketch:
    """Szegedy et al. 2014: four parallel towers a module, which all carry weights."""
    net = Sketch()
    x = net.layer(net.source(3, 224, 224), "7×7 conv, 64, /2", 64, 112, 112, group="stem")
    for place in range(modules):
        group = f"inception{place}"

        conv = partial(_tower_layer, net, group)

        towers = [
            conv(x, "1×1 conv, 64"), conv(conv(x, "1×1 conv, 96"), "3×3 conv, 128"),
            conv(conv(x, "1×1 conv, 16"), "5×5 conv, 32"), conv(x, "1×1 conv, 32", ("max pool, /1",)),
        ]  # fmt: skip
        joined = net.join(towers[:2], "concatenate", 192, 28, 28)
        for tower in towers[2:]:
            joined = net.join((joined, tower), "concatenate", 256, 28, 28)
        x = joined
    net.layer(x, "fc, 1000", 1000, group="head", before=("avg pool",))
    return net


def transformer(blocks: int) -> Sketch:
    """Pre-norm attention and perceptron in turn (ViT-B/16)."""
    net = Sketch()
    x = net.layer(net.source(3, 224, 224), "16×16 conv, 768, /16", 197, 768, group="patches")
    for place in range(blocks):
        group = f"encoder.{place}"
        f = net.layer(x, "fc, 2304", 197, 2304, group=group)
        x = net.merge(x, net.layer(f, "fc, 768", 197, 768, group=group))
        f = net.layer(x, "fc, 3072", 197, 3072, group=group)
        x = net.merge(x, net.layer(f, "fc, 768", 197, 768, group=group))
    net.layer(x, "fc, 1000", 1000, group="head")
    return net
