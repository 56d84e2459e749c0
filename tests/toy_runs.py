"""Small run directories and folders of images, made on the spot: a network of eight layers with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from residua import checkpoints, recipe, runs
from residua.checkpoints import Checkpoint
from residua.models import create_model
from residua.runs import Run

SIZE = 16
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks lose more time in handing work between threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_image(path: Path, height: int, width: int, seed: int, channels: int = 3) -> None:
    """A PNG of random colour patches of 4 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(256, (height // 4 + 1, width // 4 + 1, channels), generator=generator, dtype=torch.uint8)
    pixels = patches.repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width].numpy()
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path)


def write_folder(
    root: Path, classes: Sequence[str] = CLASSES, sizes: Sequence[tuple[int, int]] = ((SIZE, SIZE),), per_class: int = 3
) -> Path:
    """`train/` with one and `test/` with `per_class` images a class; the test images take the `sizes` (H, W) in turn."""
    for number, name in enumerate(classes):
        write_image(root / "train" / name / "0.png", *sizes[0], seed=1_000 + number)
        for index in range(per_class):
            place = number * per_class + index
            write_image(root / "test" / name / f"{index}.png", *sizes[place % len(sizes)], seed=place)
    return root


def network_state(seed: int, **options: Any) -> dict[str, Tensor]:
    """Random weights, with batch statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_model("cifar_resnet", **options).train()
        for _ in range(3):
            network(2 * torch.rand(16, options["in_channels"], SIZE, SIZE) - 1)
        return network.state_dict()


def make_run(
    path: Path,
    source: Path | str,
    *,
    classes: Sequence[str] = CLASSES,
    seed: int = 0,
    channels: int = 3,
    changes: dict[str, Any] | None = None,
    mean: Tensor | None = None,
    precision: str = "fp32",
    average: bool = False,
) -> Run:
    """A finished run of one step on `source`; with `average`, its averaged weights are those of `seed` + 100."""
    options = {"depth": 8, "num_classes": len(classes), "in_channels": channels}
    resolved = {
        "data.source": str(source), "data.image_size": SIZE, "model.name": "cifar_resnet", "model.options": options,
        "augment.crop": "pad", "augment.pad": 2, "augment.flip": True, "steps": 1, **(changes or {}),
    }  # fmt: skip
    manifest = {"format": runs.FORMAT, "total_steps": 1, "plan": {"precision": precision}}
    mean = torch.full((channels, 1, 1), 0.45) if mean is None else mean
    normalization = {"mean": mean, "std": torch.full((channels, 1, 1), 0.25)}
    run = runs.create(path, recipe.replaced(recipe.Recipe(), resolved), manifest, {"classes": list(classes)}, normalization)
    tensors = {"model": network_state(seed, **options)}
    if average:
        tensors["average"] = network_state(seed + 100, **options)
    checkpoints.write(run.checkpoints, Checkpoint(1, tensors, {}))
    return run
