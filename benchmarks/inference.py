"""Inference: ours beside onnxruntime and torch's own ways, in turn, in one run, for one image at a time and for batches.

    python benchmarks/inference.py [--model resnet50] [--batch 1 64] [--ways NAME...] [--rounds 5] [--seconds 3] [--json FILE]
    python benchmarks/inference.py --agreement 1000 --data-dir DIR [--ways NAME...] [--run RUN] [--json FILE]

The first form times. Ours is the network as `residua evaluate` and `predict` use it (`residua.infer.ready`); the peers get the
same weights and the same float32 images. Every way is a process of its own that stays, warmed up; they work in turn, each for
`--seconds` a round (at least one batch), and the others sleep. A ratio is taken within each round; the table gives the median
and the range over the rounds. The ceiling is the time of the multiply-adds at the rate that a large product of
matrices reaches on this machine just then. What a way needs before its first result is its start.

The second form counts: how often the largest logit is that of the float32 network in onnxruntime, on so many test images of
CIFAR-10 resized to the model's size (random weights, batch statistics of 64 of the images); with `--run` also the
errors of a trained run on its whole test split, as it is evaluated and by its own network in eager float32.

Needs onnx, onnxruntime and onnxscript besides what residua needs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import form

WAYS = (
    "ours", "ours-fp32", "onnxruntime", "eager-fp32", "eager-bf16-channels-last", "compile-bf16", "compile-bf16-frozen",
)  # fmt: skip
SIDE = 224


def network(model: str, images: Any = None) -> Any:
    """The model with the weights of seed 0, its batch statistics those of `images` if given."""
    import torch
    from torch import nn

    from residua.models import create_model

    torch.manual_seed(0)
    built = create_model(model)
    if images is not None:
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            built.train()(images)
    return built.eval()


def onnx_session(built: Any, folder: str, threads: int) -> Any:
    import onnxruntime
    import torch

    path = str(Path(folder) / "network.onnx")
    images = torch.randn(2, 3, SIDE, SIDE)
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(built, (images,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def forward(way: str, built: Any, folder: str) -> Callable[[Any], Any]:
    """The forward pass of a way: float32 images [N, 3, H, W] -> logits."""
    import torch

    from residua.infer import ready
    from residua.plan import set_allocator

    if way == "onnxruntime":
        session = onnx_session(built, folder, torch.get_num_threads())
        name = session.get_inputs()[0].name
        return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])
    if way.startswith("ours"):
        set_allocator(sparing=False)  # as evaluate and predict do
        return ready(built, "fp32" if way == "ours-fp32" else "bf16", torch.device("cpu"))
    if way == "eager-fp32":
        return built
    built = built.to(memory_format=torch.channels_last)
    if way == "compile-bf16-frozen":
        torch._inductor.config.freezing = True
    ran = torch.compile(built) if way.startswith("compile") else built

    def autocast(images: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return ran(images.contiguous(memory_format=torch.channels_last))

    return autocast


def serve(way: str, model: str, batch: int, folder: str, pipe: Any) -> None:
    """Works when told to: seconds in, seconds a batch out (the median). First the seconds until the first result."""
    import torch

    began = time.perf_counter()
    built = network(model)
    images = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    before = time.perf_counter()
    run = forward(way, built, folder)
    with torch.inference_mode() if way != "onnxruntime" else torch.no_grad():
        run(images)
        start_seconds = time.perf_counter() - before
        run(images)
        pipe.send((start_seconds, before - began))  # from here on nothing runs but what is asked for
        while (seconds := pipe.recv()) is not None:
            taken: list[float] = []
            while not taken or sum(taken) < seconds:
                start = time.perf_counter()
                run(images)
                taken.append(time.perf_counter() - start)
            pipe.send(statistics.median(taken))


@contextmanager
def workers(ways: list[str], model: str, batch: int, folder: str) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    context = multiprocessing.get_context("spawn")
    pipes, starts, processes = {}, {}, []
    try:
        for way in ways:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(way, model, batch, folder, theirs), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
            try:
                starts[way] = ours.recv()[0]
            except EOFError:
                print(f"{way}: could not be started", file=sys.stderr)
                continue
            pipes[way] = ours
        yield pipes, starts
    finally:
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join(10)


def matrix_rate(dtype: str, seconds: float = 1.0) -> float:
    """The best multiply-adds a second of products of two 2048 x 2048 matrices."""
    import torch

    a = torch.randn(2048, 2048).to(getattr(torch, dtype))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = max(best, 2048**3 / (time.perf_counter() - start))
    return best


def timed(model: str, batch: int, ways: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a batch of each way in each round, and the seconds of its start."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, workers(ways, model, batch, folder) as (pipes, starts):
        for turn in range(rounds):
            for way in list(pipes) if turn % 2 == 0 else list(pipes)[::-1]:
                pipes[way].send(seconds)
                found.setdefault(way, []).append(pipes[way].recv())
    return {"batch": batch, "seconds": found, "start_seconds": starts}


def summary(measured: dict[str, Any], peer: str, macs: int, rates: dict[str, float]) -> dict[str, Any]:
    """Per way: median milliseconds a batch, images a second, and the peer's time over its own (median and range)."""
    rows = {}
    for way, taken in measured["seconds"].items():
        ratios = [other / own for other, own in zip(measured["seconds"].get(peer, []), taken)]
        middle = statistics.median(taken)
        low = way in ("ours-fp32", "onnxruntime", "eager-fp32")
        ceiling = measured["batch"] * macs / rates["float32" if low else "bfloat16"]
        rows[way] = {
            "milliseconds": 1e3 * middle,
            "images_per_second": measured["batch"] / middle,
            "ratio": statistics.median(ratios) if ratios else None,
            "ratio_range": [min(ratios), max(ratios)] if ratios else None,
            "ceiling_milliseconds": 1e3 * ceiling,
            "share_of_ceiling": ceiling / middle,
            "start_seconds": measured["start_seconds"][way],
        }
    return rows


def show(batch: int, rows: dict[str, Any], peer: str) -> None:
    print(f"\nbatch {batch:<22} ms a batch   images/s   against {peer:<20} ceiling ms   reached   start s")
    for way, row in rows.items():
        ratio = f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})" if row["ratio"] else ""
        print(
            f"{way:<26} {row['milliseconds']:>12.1f} {row['images_per_second']:>10.1f}   {ratio:<28} "
            f"{row['ceiling_milliseconds']:>10.1f} {row['share_of_ceiling']:>9.0%} {row['start_seconds']:>9.2f}"
        )


def agreement(model: str, count: int, ways: list[str], data_dir: str) -> dict[str, Any]:
    """On how many of `count` images each way's largest logit is that of onnxruntime."""
    import torch
    from torch.nn import functional as F

    from residua.augment import normalized
    from residua.data import open_data

    samples = open_data("cifar10", data_dir=Path(data_dir)).splits["test"]
    pixels = torch.stack([samples.load(place) for place in range(count)])
    statistic = {"mean": torch.tensor([0.491, 0.482, 0.447]), "std": torch.tensor([0.247, 0.243, 0.262])}
    images = normalized(pixels, {name: 255 * values.view(3, 1, 1) for name, values in statistic.items()})
    resized = [F.interpolate(part, size=(SIDE, SIDE), mode="bilinear", antialias=True) for part in images.split(50)]
    built = network(model, torch.cat(resized)[:64])
    with tempfile.TemporaryDirectory() as folder:
        runs = {way: forward(way, built, folder) for way in dict.fromkeys(("onnxruntime", *ways))}
        with torch.no_grad():
            logits = {way: torch.cat([run(part) for part in resized]) for way, run in runs.items()}
    reference = logits.pop("onnxruntime")
    best, spread = reference.topk(2).values, reference.std(1)
    return {
        "images": count,
        "classes_predicted": len(reference.argmax(1).unique()),
        "median_margin_over_spread": float(((best[:, 0] - best[:, 1]) / spread).median()),
        "same_argmax": {way: int((found.argmax(1) == reference.argmax(1)).sum()) for way, found in logits.items()},
        "largest_difference_over_spread": {
            way: float(((found - reference).abs().amax(1) / spread).max()) for way, found in logits.items()
        },
    }


def run_errors(path: str, data_dir: str) -> dict[str, Any]:
    """The errors of a run's test split in eager float32 and as prepared in both precisions, and on how many images they agree."""
    import torch

    from residua import runs
    from residua.batches import evaluation_batches
    from residua.data import open_data
    from residua.infer import prepared
    from residua.scoring import evaluation_view, scores

    run = runs.open_run(path)
    samples = open_data(run.recipe.data.source, data_dir=Path(data_dir)).splits["test"]
    loaded, device = runs.load(run), torch.device("cpu")
    found: dict[str, Any] = {}
    for way, used in (("eager-fp32", loaded), ("ours-fp32", prepared(loaded)), ("ours-bf16", prepared(loaded, "bf16"))):
        batches = evaluation_batches(samples, torch.arange(len(samples)), evaluation_view(run.recipe), 128, 0)
        start = time.perf_counter()
        found[way] = scores(used, batches, run.normalization, device, "fp32")
        print(f"{way}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    reference = found["eager-fp32"].probabilities
    return {
        way: {
            "images": len(item.labels),
            "errors": int((item.probabilities.argmax(1) != item.labels).sum()),
            "same_argmax_as_eager_fp32": int((item.probabilities.argmax(1) == reference.argmax(1)).sum()),
            "largest_difference_of_probability": float((item.probabilities - reference).abs().max()),
        }
        for way, item in found.items()
    }


def timing_rows(batch: int, summarised: dict[str, Any], peer: str) -> list[dict[str, Any]]:
    """The rows of one batch size."""
    rows = []
    for way, row in summarised.items():
        low, high = row["ratio_range"] or (None, None)
        rows.append(
            {"batch": batch, "way": way, "ms a batch": row["milliseconds"], "images/s": row["images_per_second"],
             f"against {peer}": row["ratio"], "least": low, "greatest": high, "share of the ceiling": row["share_of_ceiling"],
             "start, s": row["start_seconds"]}
        )  # fmt: skip
    return rows


def agreement_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the second form."""
    count = found["images"]
    return [
        {"way": way, "images": count, "same largest logit as onnxruntime": same,
         "largest difference of a logit, of their spread": found["largest_difference_over_spread"][way]}
        for way, same in found["same_argmax"].items()
    ]  # fmt: skip


def run_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a trained run."""
    return [
        {"way": way, "images": row["images"], "errors": row["errors"],
         "same answer as eager fp32": row["same_argmax_as_eager_fp32"],
         "largest difference of a probability": row["largest_difference_of_probability"]}
        for way, row in found.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--peer", default="onnxruntime", choices=WAYS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--agreement", type=int, default=0, metavar="IMAGES")
    parser.add_argument("--run", default="")
    parser.add_argument("--data-dir", default=os.environ.get("RESIDUA_DATA", ""))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.agreement:
        found = agreement(asked.model, asked.agreement, asked.ways, asked.data_dir)
        print(json.dumps(found, indent=1))
        note = (
            f"The network has random weights and the batch statistics of 64 of the images; {found['classes_predicted']} classes "
            f"are given, and the largest logit leads by {found['median_margin_over_spread']:.2f} spreads of the logits (median)."
        )
        form.write(asked.json, form.result(f"inference-{asked.model}-agreement", agreement_rows(found), notes=[note], raw=found))
        return
    if asked.run:
        found = run_errors(asked.run, asked.data_dir)
        print(json.dumps(found, indent=1))
        form.write(asked.json, form.result("inference-run", run_rows(found), raw=found))
        return
    from residua.cost import multiply_adds

    rates = {dtype: matrix_rate(dtype) for dtype in ("float32", "bfloat16")}
    macs = multiply_adds(network(asked.model), (3, SIDE, SIDE))
    shown = ", ".join(f"{dtype} {2e-9 * rate:.0f} GFLOP/s" for dtype, rate in rates.items())
    print(f"{asked.model}: {macs / 1e9:.2f} G multiply-adds an image; products of matrices: {shown}")
    timings, rows = [], []
    for batch in asked.batch:
        measured = timed(asked.model, batch, asked.ways, asked.rounds, asked.seconds)
        summarised = summary(measured, asked.peer, macs, rates)
        show(batch, summarised, asked.peer)
        timings.append(measured)
        rows += timing_rows(batch, summarised, asked.peer)
    ceiling = {f"products of matrices in {dtype}, GFLOP/s": 2e-9 * rate for dtype, rate in rates.items()}
    ceiling["multiply-adds an image, G"] = macs / 1e9
    form.write(asked.json, form.result(f"inference-{asked.model}", rows, ceiling=ceiling, raw={"timings": timings}))


if __name__ == "__main__":
    main()
