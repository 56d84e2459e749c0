"""JPEG folder to batches: ours beside torchvision's ImageFolder and DataLoader, in turn, in one run.

    python benchmarks/folder_speed.py --images DIR [--count 4000] [--rounds 5] [--seconds 8] [--json FILE]

The JPEGs of `--images` are repeated to `--count` files in a temporary tree of four class folders. Both sides make batches of
128 normalised float32 images of 224 pixels, with random resized crops and mirror images; each turn is a process of its own,
warmed up, then timed for `--seconds`. The usual way: ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize
in a DataLoader with two workers. Ours: the folder opened and resolved, the batches and the transforms as `residua train FOLDER`
has them with nothing else said. The ceilings decode the same files from memory and do nothing with them: Pillow's libjpeg-turbo
in as many threads as there are cores, at full scale, and at half scale.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import form

BATCH, SIZE, CLASSES = 128, 224, 4


def usual_batches(folder: Path) -> Iterator[Any]:
    """Batches the usual way, without end."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    normalize = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transform = T.Compose([T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip(), T.ToTensor(), normalize])
    data = ImageFolder(str(folder), transform)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    while True:
        for images, _ in loader:
            yield images


def our_batches(folder: Path) -> Iterator[Any]:
    """The batches of `residua train FOLDER`, transformed, without end."""
    import torch

    from residua import plan, prepare
    from residua.augment import Key, transformed
    from residua.batches import Share, train_batches
    from residua.data import open_data
    from residua.recipes import get_recipe
    from residua.resolve import make_order, normalization, resolve
    from residua.training import request

    device = torch.device("cpu")
    dataset = open_data(str(folder))
    recipe, _ = resolve(request(str(folder), None, get_recipe("fast"), {}), dataset)
    dataset, _ = prepare.in_memory(dataset, recipe, device)
    plan.apply(plan.PLANS["bf16"], torch.get_num_threads(), device)
    assert (recipe.batch_size, recipe.data.image_size, recipe.augment.crop, recipe.augment.flip) == (
        BATCH, SIZE, "random-resized", True,
    )  # fmt: skip
    samples = dataset.splits["train"]
    stats, order = normalization(samples, recipe, dataset.facts.channels), make_order(dataset, recipe)
    workers = min(8, len(os.sched_getaffinity(0)))
    for batch in train_batches(samples, order, recipe.augment, SIZE, 0, 10**6, Share(), workers):
        yield transformed(batch.images, recipe.augment, stats, Key(recipe.seed, batch.epoch), batch.draws)[0]


def timed(batches: Iterator[Any], seconds: float) -> float:
    """Images per second over `seconds`, after a warm-up that is longer than what is prepared ahead."""
    for _ in range(8):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        images = next(batches)
        assert images.shape == (BATCH, 3, SIZE, SIZE)
        count += len(images)
    return count / (time.perf_counter() - began)


def ceiling(folder: Path, seconds: float, scale: int) -> float:
    """Images per second that are decoded at 1/`scale` and thrown away."""
    from PIL import Image

    encoded = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]

    def decode(data: bytes) -> None:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if scale > 1:
                image.draft(None, (image.width // scale, image.height // scale))
            image.load()

    count, began = 0, time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        while time.perf_counter() - began < seconds:
            start = count % len(encoded)
            count += len(list(pool.map(decode, encoded[start : start + 256])))
    return count / (time.perf_counter() - began)


SIDES: dict[str, Callable[[Path, float], float]] = {
    "ImageFolder + DataLoader": lambda folder, seconds: timed(usual_batches(folder), seconds),
    "residua": lambda folder, seconds: timed(our_batches(folder), seconds),
    "decoding alone": lambda folder, seconds: ceiling(folder, seconds / 2, 1),
    "decoding alone, at 1/2": lambda folder, seconds: ceiling(folder, seconds / 2, 2),
}
USUAL, OURS = list(SIDES)[:2]


def measured(side: str, folder: Path, seconds: float, cache: Path) -> float:
    """Images per second of one turn in a process of its own."""
    command = [sys.executable, __file__, "--turn", side, "--images", str(folder), "--seconds", str(seconds)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "XDG_CACHE_HOME": str(cache)}
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def repeated(images: Path, count: int, folder: Path) -> None:
    """Copies the JPEGs of `images`, again and again, to `count` files in class folders."""
    sources = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    for number in range(count):
        to = folder / f"class-{number % CLASSES}" / f"{number:05}.jpg"
        to.parent.mkdir(exist_ok=True)
        shutil.copyfile(sources[number % len(sources)], to)


def table(rates: dict[str, list[float]]) -> list[str]:
    """The lines of the result: median, lowest and highest, and the ratios round by round."""
    lines = [f"{'':<26}{'images/s':>10}{'min':>8}{'max':>8}{'ratio':>8}{'min':>7}{'max':>7}"]
    for side, rate in rates.items():
        ratio = [one / usual for one, usual in zip(rate, rates[USUAL])]
        lines.append(
            f"{side:<26}{statistics.median(rate):>10.0f}{min(rate):>8.0f}{max(rate):>8.0f}"
            f"{statistics.median(ratio):>8.2f}{min(ratio):>7.2f}{max(ratio):>7.2f}"
        )
    return lines


def main() -> None:
    """Alternates the sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEG files")
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(SIDES[options.turn](options.images, options.seconds)), flush=True)
        os._exit(0)  # the workers of an endless loader are of no more use
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary, "images"), Path(temporary, "cache")
        folder.mkdir()
        repeated(options.images, options.count, folder)
        for number in range(options.rounds):
            for side in SIDES:
                rates[side].append(measured(side, folder, options.seconds, cache))
            print(
                f"round {number + 1}: " + ", ".join(f"{side} {rates[side][-1]:.0f}" for side in SIDES) + " images/s", flush=True
            )
    print("\n" + "\n".join(table(rates)))
    from PIL import features

    rows = []
    for side, rate in rates.items():
        ratios = [ours / usual for ours, usual in zip(rate, rates[USUAL])]
        rows.append({"way": side, "images/s": statistics.median(rate), **form.spread(ratios, f"against {USUAL}")})
    decoding = {f"{side}, images/s": statistics.median(rates[side]) for side in list(SIDES)[2:]}
    decoder = f"libjpeg-turbo {features.version('libjpeg_turbo')} in Pillow."
    form.write(options.json, form.result("folder-speed", rows, ceiling=decoding, notes=[decoder], raw={"images/s": rates}))


if __name__ == "__main__":
    main()
