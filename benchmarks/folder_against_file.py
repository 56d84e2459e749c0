"""The same images from the original CIFAR-10 file and from a folder of PNGs, in memory and streamed: equal accuracy within noise.

    python benchmarks/folder_against_file.py --data-dir DIR [--images 2000] [--seeds 3] [--json FILE]

Writes the first `--images` training and as many test images, balanced over the classes, as PNGs (train/CLASS/..., test/CLASS/...)
and, in the format of the original, as a smaller file; then trains three ways with all else at its default. The order of the
images differs between a file and a folder, so results agree within the spread over seeds; the two ways of the folder read the
same images in the same order and agree to the byte.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import statistics
import tempfile
from pathlib import Path
from typing import Any

import form
import torch
from PIL import Image

from residua.data import open_data
from residua.dataset import ArraySamples


def balanced(samples: ArraySamples, count: int, classes: int) -> list[int]:
    """The places of the first count / classes images of each class, in the order of the file."""
    places = [torch.nonzero(samples.labels == label).flatten()[: count // classes] for label in range(classes)]
    return sorted(torch.cat(places).tolist())


def write_both(data_dir: str, count: int, folder: Path, file_root: Path) -> dict[str, str]:
    """Writes the folder and the cut-down file; returns the MD5 of each batch of the file."""
    dataset = open_data("cifar10", data_dir=data_dir, download=False)
    batches = file_root / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    sums = {}
    for split, name in (("train", "data_batch_1"), ("test", "test_batch")):
        samples = dataset.splits[split]
        assert isinstance(samples, ArraySamples)
        chosen = balanced(samples, count, len(dataset.classes))
        for place in chosen:
            label = dataset.classes[int(samples.labels[place])]
            target = folder / split / label / f"{place:05d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(samples.images[place].permute(1, 2, 0).numpy()).save(target)
        entry = {"data": samples.images[chosen].flatten(1).numpy(), "labels": samples.labels[chosen].tolist()}
        sums[name] = written(batches / name, entry)
    sums["batches.meta"] = written(batches / "batches.meta", {"label_names": list(dataset.classes)})
    return sums


def written(path: Path, entry: dict[str, Any]) -> str:
    """Writes a batch in the original's format; returns its MD5."""
    path.write_bytes(pickle.dumps(entry))
    return hashlib.md5(path.read_bytes()).hexdigest()


def expect(sums: dict[str, str]) -> None:
    """Tells torchvision, which checks the original's sums, those of the cut-down file."""
    from torchvision.datasets import CIFAR10

    CIFAR10.train_list = [["data_batch_1", sums["data_batch_1"]]]
    CIFAR10.test_list = [["test_batch", sums["test_batch"]]]
    CIFAR10.meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}


def main() -> None:
    """Trains three ways for each seed and prints what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plan", default="bf16", help="one plan for all, so that only the way of the images differs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    from residua.evaluation import evaluate
    from residua.training import train

    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        expect(write_both(options.data_dir, options.images, work / "images", work / "file"))
        ways: dict[str, tuple[str, dict[str, Any]]] = {
            "original file": ("cifar10", {}),
            "folder, in memory": (str(work / "images"), {"data.in_memory": True}),
            "folder, streamed": (str(work / "images"), {"data.in_memory": False}),
        }
        reached: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(options.seeds):
            for way, (source, fields) in ways.items():
                out = work / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
                run = train(source, data_dir=work / "file", out=out, set={**fields, "seed": seed, "plan": options.plan})
                accuracy = 100 - evaluate(run, data_dir=work / "file", save=False).top1_error
                seconds = run.metrics("end")[-1]["values"]["training_seconds"]
                reached[way].append(accuracy)
                print(f"seed {seed}  {way:<20} accuracy {accuracy:6.2f} %  training {seconds:6.1f} s", flush=True)
    print()
    rows = []
    for way, values in reached.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{way:<20} mean {statistics.mean(values):6.2f} %  standard deviation {spread:5.2f}")
        rows.append({"way": way, "accuracy, %": statistics.mean(values), "sd": spread, "seeds": len(values)})
    form.write(options.json, form.result("folder-against-file", rows, raw={"accuracy": reached}))


if __name__ == "__main__":
    main()
