"""What each part of a recipe is worth: the recipe against itself with one part taken out, over several seeds.

    python benchmarks/ablation.py cifar10 --data-dir DIR --model resnet20 --epochs 3 --seeds 1 [--variant NAME:FIELD=VALUE,...]
    [--json FILE]

Every run is a real run of `residua.train` in a process of its own; errors are those of the final split, of the final weights.
Prints a table (mean, standard deviation, difference to the whole recipe with its standard error) and writes it as JSON.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import form

# What is left when a part of `fast` is taken out. Each is the usual choice where one has not thought about it.
PARTS: dict[str, dict[str, Any]] = {
    "whole recipe": {},
    "SGD (Nesterov, rate 0.2, decay 5e-4) for Muon": {
        "optim.name": "sgd", "optim.nesterov": True, "optim.lr": 0.2, "optim.weight_decay": 5e-4,
    },
    "without the falling schedule (constant rate)": {"schedule.shape": "constant"},
    "without warm-up": {"schedule.warmup": 0.0},
    "without the average of weights": {"average.decay": 0.0},
    "without label smoothing": {"label_smoothing": 0.0},
    "without weight decay": {"optim.weight_decay": 0.0},
    "without the mirror image": {"augment.flip": False},
    "without the random crop": {"augment.crop": "none"},
}  # fmt: skip


SPEEDRUN: dict[str, dict[str, Any]] = {
    "whole recipe": {},
    "without shortcuts": {"model.options.plain": True},
    "all images at full size": {"augment.scales": ()},
    "SGD (Nesterov, rate 0.2, decay 5e-4) for Muon": {
        "optim.name": "sgd", "optim.nesterov": True, "optim.lr": 0.2, "optim.momentum": 0.9, "optim.weight_decay": 5e-4,
        "optim.keep_norm": False, "optim.bias_factor": 1.0, "optim.head_factor": 1.0,
    },
    "offsets at the rate of the rest": {"optim.bias_factor": 1.0},
    "the classifier at the rate of the rest": {"optim.head_factor": 1.0},
    "mirror images by a coin": {"augment.alternate": False},
    "borders of the mean colour": {"augment.padding": "mean"},
    "without label smoothing": {"label_smoothing": 0.0},
    "the first layer's offsets trained throughout": {"optim.stem_until": 1.0},
}  # fmt: skip
OF_RECIPES = {"fast": PARTS, "speedrun": SPEEDRUN}


def run_once(job: tuple[str, int, dict[str, Any], dict[str, Any]]) -> tuple[str, int, float, float]:
    """(variant, seed, error in per cent, training seconds) of one run."""
    import torch

    from residua.evaluation import evaluate
    from residua.training import train

    name, seed, changes, request = job
    torch.set_num_threads(request["threads"])
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            request["data"], model=request["model"], out=folder + "/run", data_dir=request["data_dir"], recipe=request["recipe"],
            set={**request["length"], "evaluations": 1, "checkpoints.seconds": 1e6, "seed": seed, **changes},
        )  # fmt: skip
        error = evaluate(run, data_dir=request["data_dir"], save=False).top1_error
        return name, seed, error, run.metrics("end")[-1]["values"]["training_seconds"]


def table(results: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Mean, deviation, and the difference to the first variant with its standard error, pairing equal seeds."""
    whole = next(iter(results.values()))
    rows = []
    for name, errors in results.items():
        gaps = [error - base for error, base in zip(errors, whole)]
        spread = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
        rows.append(
            {"variant": name, "error": statistics.mean(errors), "sd": statistics.stdev(errors) if len(errors) > 1 else math.nan,
             "gap": statistics.mean(gaps), "gap_se": spread, "seeds": len(errors)}
        )  # fmt: skip
    return rows


def main() -> None:
    """Runs all variants and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plan", default="bf16")
    parser.add_argument("--variant", action="append", default=[], help="NAME:FIELD=VALUE,FIELD=VALUE instead of the known parts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    from residua.recipe import parse_overrides

    given = {
        name: parse_overrides(text.split(",") if text else []) for name, _, text in (v.partition(":") for v in options.variant)
    }
    if not given and options.recipe not in OF_RECIPES:
        parser.error(f"say with --variant what to take out of {options.recipe}; known are the parts of {', '.join(OF_RECIPES)}")
    variants = given or OF_RECIPES[options.recipe]
    length = {"steps": options.steps} if options.steps else {"epochs": options.epochs or 24}
    request = {"data": options.data, "data_dir": options.data_dir, "model": options.model, "recipe": options.recipe,
               "length": {**length, "plan": options.plan}, "threads": options.threads}  # fmt: skip
    jobs = [(name, seed, changes, request) for seed in range(options.seeds) for name, changes in variants.items()]
    results: dict[str, list[float]] = {name: [] for name in variants}
    times: dict[str, list[float]] = {name: [] for name in variants}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for name, seed, error, took in pool.map(run_once, jobs):
            results[name].append(error)
            times[name].append(took)
            print(f"{name:<48} seed {seed}  error {error:6.2f} %  {took:7.1f} s", flush=True)
    rows = table(results)
    print(f"\n{'variant':<48}{'error %':>9}{'sd':>7}{'gap':>8}{'+-':>7}")
    for row in rows:
        print(f"{row['variant']:<48}{row['error']:>9.2f}{row['sd']:>7.2f}{row['gap']:>+8.2f}{row['gap_se']:>7.2f}")
    columns = {
        "variant": "variant",
        "error": "error, %",
        "gap": "to the whole recipe",
        "seeds": "seeds",
        **({"sd": "sd", "gap_se": "standard error"} if options.seeds > 1 else {}),
    }
    named = [{name: row[key] for key, name in columns.items()} for row in rows]
    raw = {
        "request": {key: value for key, value in request.items() if key != "data_dir"},
        "errors": results,
        "training_seconds": times,
    }
    form.write(options.json, form.result(options.json.stem if options.json else "ablation", named, raw=raw))


if __name__ == "__main__":
    main()
