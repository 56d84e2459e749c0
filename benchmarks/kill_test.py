"""The kill test: a run killed with -9 at random instants, many of them inside a save, ends in the bytes of the undisturbed run.

    python benchmarks/kill_test.py                       50 kills, at least 10 inside a save; 0, 1 and 2 workers; some 12 minutes
    python benchmarks/kill_test.py --kills 6 --saves 2   the same in short

It writes a folder of small PNGs of differing sizes and trains on it, streamed, with random resized crops, flips, colour change,
mixup, dropout, stochastic depth and averaged weights, through the real command line. Then, for each number of workers, one
run is killed again and again, each time continued by the same command. After every kill:

- the step it continues from is the newest checkpoint there was, and above zero;
- no more than one save interval is lost: when the last step but one was made, less than the interval had passed since the
  step after the checkpoint;

and at the end the weights, their average and the optimiser's state have the same SHA-256 as those of the undisturbed run, and
the curves (every step's loss, error and learning rate) the same values. Exit code 1 if anything differs.

A kill is aimed at a random step; half of them wait from there for the next save and strike within it. A kill counts as inside a
save only if the unfinished checkpoint is still there when the process is dead.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from residua.runs import read_lines

FILES = ("model", "average", "optimizer")


@dataclass(frozen=True)
class Work:
    """What is trained: `steps` updates on the images in `folder / "images"`, saved every `seconds`, on so many `threads`."""

    folder: Path
    steps: int
    seconds: float
    seed: int = 0
    threads: int = 1

    def command(self, out: str, workers: int) -> list[str]:
        """The command of the run `out`."""
        settings = {
            "model.depth": 8, "model.dropout": 0.2, "model.stochastic_depth": 0.3, "data.image_size": 24, "data.in_memory": False,
            "augment.crop": "random-resized", "augment.min_area": 0.3, "augment.flip": True, "augment.colour": 0.1,
            "augment.mixup": 0.4, "average.decay": 0.99, "steps": self.steps, "evaluations": 3,
            "checkpoints.seconds": self.seconds,
        }  # fmt: skip
        assignments = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
        return [
            *(sys.executable, "-m", "residua", "train", "images", "--model", "cifar_resnet", "--plan", "fp32"),
            *("--batch-size", "16", "--seed", str(self.seed), "--workers", str(workers), "--out", out, *assignments),
        ]

    def start(self, out: str, workers: int) -> subprocess.Popen[str]:
        """Starts the command in a process group of its own; what it says goes to `out`.log."""
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(self.threads),
        }
        with (self.folder / f"{out}.log").open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                self.command(out, workers), cwd=self.folder, env=environment, stdout=log, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip

    def finish(self, out: str, workers: int) -> str:
        """Runs the command to its end and returns what it said."""
        process = self.start(out, workers)
        if process.wait() != 0:
            raise SystemExit(f"The run {out} failed with exit code {process.returncode}:\n{self.said(out)}")
        return self.said(out)

    def said(self, out: str) -> str:
        """What the latest process of the run `out` said."""
        return (self.folder / f"{out}.log").read_text(encoding="utf-8")

    def result(self, out: str) -> dict[str, str]:
        """SHA-256 of the final weights, average and optimiser's state, and of the curves."""
        last = self.folder / out / "checkpoints" / f"step-{self.steps:08d}"
        found = {name: hashlib.sha256((last / f"{name}.safetensors").read_bytes()).hexdigest() for name in FILES}
        lines = [line for line in read_lines(self.folder / out / "metrics.jsonl") if line["split"] != "end"]
        for line in lines:
            line["values"].pop("images_per_second", None)
        curves = [[line["step"], line["split"], line["values"]] for line in lines]
        return {**found, "curves": hashlib.sha256(json.dumps(curves).encode()).hexdigest()}


@dataclass(frozen=True)
class Kill:
    """One kill: the last step noted, the newest checkpoint's step then, and whether a save was under way. `lost_seconds`:
    what lies between the step after that checkpoint and the last step but one."""

    step: int
    checkpoint: int
    inside_save: bool
    lost_seconds: float


@dataclass
class Outcome:
    """A run that was killed and continued until it ended."""

    workers: int
    kills: list[Kill] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    result: dict[str, str] = field(default_factory=dict)

    @property
    def inside(self) -> int:
        """How many kills struck inside a save."""
        return sum(kill.inside_save for kill in self.kills)


def write_images(folder: Path, classes: int = 4, train: int = 32, val: int = 8, seed: int = 0) -> None:
    """Waves of a direction and a length for each class, with noise, as PNGs of differing sizes under train/ and val/."""
    numbers = np.random.default_rng(seed)
    for label in range(classes):
        for split, count in (("train", train), ("val", val)):
            place = folder / split / f"class-{label}"
            place.mkdir(parents=True)
            for index in range(count):
                rows, columns = np.mgrid[: 28 + 3 * (index % 3), : 28 + 4 * (index % 2)]
                angle = np.pi * (label + 0.3 * numbers.random()) / classes
                wave = np.sin((np.cos(angle) * rows + np.sin(angle) * columns) * (0.5 + 0.2 * label) + 6 * numbers.random())
                noise = numbers.normal(0, 40, (*rows.shape, 3))
                pixels = 128 + 80 * wave[..., None] * numbers.uniform(0.5, 1, 3) + noise
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{index:03}.png")


def newest(checkpoints: Path) -> int:
    """The step of the newest checkpoint that carries its final name; 0 if there is none."""
    return max((int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")), default=0)


def last_step(metrics: Path) -> int:
    """The last step noted, read from the file's end; 0 if there is none."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 2_000))
            steps = re.findall(rb'{"step": (\d+), ', file.read())
    except FileNotFoundError:
        return 0
    return int(steps[-1]) if steps else 0


def wait_until(process: subprocess.Popen[str], reached: Callable[[], bool], pause: float) -> bool:
    """Waits until `reached()` or the process ends; whether it still runs."""
    while process.poll() is None:
        if reached():
            return True
        time.sleep(pause)
    return False


def strike(work: Work, out: str, process: subprocess.Popen[str], target: int, aim: bool, delay: float) -> Kill | None:
    """Kills the process once it has made the step `target`, and, with `aim`, `delay` seconds into the save that comes next.

    None if the run ended before.
    """
    run = work.folder / out
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_ino if metrics.exists() else None

    def far_enough() -> bool:
        fresh = metrics.exists() and metrics.stat().st_ino != before  # a process that continues replaces the file first
        return fresh and last_step(metrics) >= target and newest(run / "checkpoints") > 0

    if not wait_until(process, far_enough, 0.002):
        return None
    if aim:
        if not wait_until(process, lambda: any(run.glob("checkpoints/.partial-*")), 0.0002):
            return None
        time.sleep(delay)
    workers = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    gone(workers)
    if process.returncode != -signal.SIGKILL:
        return None
    lines = [line for line in read_lines(metrics) if line["split"] == "train"]
    checkpoint = newest(run / "checkpoints")
    lost = [line["seconds"] for line in lines if line["step"] > checkpoint]
    return Kill(
        lines[-1]["step"], checkpoint, any(run.glob("checkpoints/.partial-*")), lost[-2] - lost[0] if len(lost) > 1 else 0.0
    )


def gone(processes: list[psutil.Process]) -> None:
    """Waits for the data workers of a killed process, which end on their own."""
    _, left = psutil.wait_procs(processes, timeout=30)
    if left:
        raise SystemExit(f"{len(left)} data workers outlived their process by 30 s: {left}")


def torment(work: Work, out: str, workers: int, kills: int, saves: int, chance: random.Random) -> Outcome:
    """Kills the run `out` `kills` times at random steps, at least `saves` of them inside a save if it can be, then lets it
    end."""
    outcome = Outcome(workers)
    targets = sorted(chance.sample(range(2, work.steps - work.steps // 20), kills))
    for number, target in enumerate(targets):
        missing = saves - outcome.inside
        aim = missing > 0 and (number % 2 == 0 or kills - number <= 2 * missing)
        process = work.start(out, workers)
        kill = strike(work, out, process, target, aim, chance.random() * 0.004)
        if kill is None:
            outcome.wrong.append(f"the run ended (exit code {process.returncode}) before kill {number + 1}:\n{work.said(out)}")
            return outcome
        check_continued(work, out, outcome)
        if kill.lost_seconds >= work.seconds:
            outcome.wrong.append(f"kill {number + 1} lost {kill.lost_seconds:.3f} s, more than the interval {work.seconds} s")
        if kill.checkpoint == 0:
            outcome.wrong.append(f"kill {number + 1} found no checkpoint")
        outcome.kills.append(kill)
    work.finish(out, workers)
    check_continued(work, out, outcome)
    outcome.result = work.result(out)
    if list((work.folder / out).glob("checkpoints/.partial-*")):
        outcome.wrong.append("a part of an interrupted save is left over")
    return outcome


def check_continued(work: Work, out: str, outcome: Outcome) -> None:
    """Notes what is wrong with the step that the latest process continued from, after the kills so far."""
    if not outcome.kills:
        return
    expected = outcome.kills[-1].checkpoint
    found = re.search(r"continued from step ([\d,]+) of", work.said(out))
    step = int(found[1].replace(",", "")) if found else 0
    if step != expected or step == 0:
        outcome.wrong.append(
            f"after kill {len(outcome.kills)} it continued from step {step}, the newest checkpoint being {expected}"
        )


def shared(total: int, parts: int) -> list[int]:
    """`total` in `parts` nearly equal whole numbers."""
    return [total // parts + (index < total % parts) for index in range(parts)]


def main() -> int:
    """Runs the test, prints a table and one JSON line, and returns the exit code."""
    parser = argparse.ArgumentParser(description="Kill a training again and again and compare its final bytes.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--saves", type=int, default=10, help="kills that must strike inside a save")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.5, help="the save interval")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="threads of the training; more need as many idle cores")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="a new folder for images and runs, which stays")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        return tested(options, options.keep.absolute())
    with tempfile.TemporaryDirectory() as folder:
        return tested(options, Path(folder))


def tested(options: argparse.Namespace, folder: Path) -> int:
    """The test in `folder`."""
    began = time.perf_counter()
    work = Work(folder, options.steps, options.seconds, options.seed, options.threads)
    write_images(folder / "images", seed=options.seed)
    work.finish("undisturbed", options.workers[0])
    expected = work.result("undisturbed")
    print(
        f"Undisturbed: {options.steps:,} steps, saved every {options.seconds} s; weights {expected['model'][:16]}...", flush=True
    )
    chance = random.Random(options.seed)
    outcomes = []
    print(f"{'workers':>7}{'kills':>7}{'inside a save':>15}{'most steps lost':>17}{'lowest step':>13}  same bytes", flush=True)
    counts = zip(shared(options.kills, len(options.workers)), shared(options.saves, len(options.workers)))
    for workers, (kills, saves) in zip(options.workers, counts):
        outcome = torment(work, f"killed-{workers}", workers, kills, saves, chance)
        outcomes.append(outcome)
        lost = max((kill.step - kill.checkpoint for kill in outcome.kills), default=0)
        lowest = min((kill.checkpoint for kill in outcome.kills), default=0)
        same = outcome.result == expected
        print(
            f"{workers:>7}{len(outcome.kills):>7}{outcome.inside:>15}{lost:>17}{lowest:>13}  {'yes' if same else 'NO'}",
            flush=True,
        )
        for name in expected:
            if outcome.result.get(name) != expected[name]:
                outcome.wrong.append(f"{name} differs from the undisturbed run")
        for text in outcome.wrong:
            print(f"    {text}", flush=True)
    inside, total = sum(outcome.inside for outcome in outcomes), sum(len(outcome.kills) for outcome in outcomes)
    passed = total == options.kills and inside >= options.saves and not any(outcome.wrong for outcome in outcomes)
    card = {
        "passed": passed, "kills": total, "inside_a_save": inside, "steps": options.steps, "save_seconds": options.seconds,
        "seed": options.seed, "threads": options.threads, "torch": torch.__version__, "machine": platform.machine(),
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "sha256": expected, "runs": [asdict(outcome) for outcome in outcomes],
    }  # fmt: skip
    print(json.dumps(card))
    import form

    rows = [
        {"workers": outcome.workers, "kills": len(outcome.kills), "inside a save": outcome.inside, "equal": not outcome.wrong}
        for outcome in outcomes
    ]
    form.write(options.json, form.result("kill-test", rows, raw=card))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
