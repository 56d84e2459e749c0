"""Training throughput: ours beside the same network written the usual way, in turn, in one run.

    python benchmarks/throughput.py --data-dir DIR [--rounds 5] [--seconds 20] [--first-step] [--json FILE]

Both train ResNet-20 on CIFAR-10 at batch 128 with padding-4 crops and flips. The usual way: eager, fp32, contiguous, and
torchvision's transforms in a DataLoader with two workers. Ours: the step and the batches of `residua train`, under the plans
named. Each turn is a process of its own, warmed up, then timed for `--seconds`; first the two networks are shown to be equal.
`--first-step` also times the command line from its start to the end of the first update.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import form

BATCH = 128


def usual_network():
    """ResNet-20 for CIFAR as it is usually written (he2015 section 4.2, option A)."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class BasicBlock(nn.Module):
        def __init__(self, in_planes, planes, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(planes)
            self.stride, self.extra = stride, planes - in_planes

        def forward(self, x):
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            if self.stride != 1 or self.extra:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
            return F.relu(out + x)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            blocks, planes = [], 16
            for width in (16, 32, 64):
                for index in range(3):
                    blocks.append(BasicBlock(planes, width, 2 if width > 16 and not index else 1))
                    planes = width
            self.layers, self.linear = nn.Sequential(*blocks), nn.Linear(64, 10)

        def forward(self, x):
            x = self.layers(F.relu(self.bn1(self.conv1(x))))
            return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))

    torch.manual_seed(0)
    return ResNet()


def usual_steps(data_dir: str) -> Callable[[], None]:
    """One update the usual way a call."""
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader
    from torchvision import transforms as T
    from torchvision.datasets import CIFAR10

    transform = T.Compose(
        [T.RandomCrop(32, 4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))]
    )
    data = CIFAR10(data_dir, train=True, transform=transform)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    network = usual_network().train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def endless():
        while True:
            yield from loader

    batches = endless()

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_steps(data_dir: str, plan_name: str) -> Callable[[], None]:
    """One update of ours a call: the batches and the step of `residua train`, recipe he2015-cifar."""
    import torch

    from residua import plan
    from residua.batches import Share, train_batches
    from residua.data import open_data
    from residua.prepare import fresh_network
    from residua.recipe import replaced
    from residua.recipes import get_recipe
    from residua.resolve import make_order, normalization, resolve
    from residua.step import Step

    dataset = open_data("cifar10", data_dir=Path(data_dir))
    recipe, _ = resolve(replaced(get_recipe("he2015-cifar"), {"data.normalize": "channel"}), dataset)
    plan.apply(plan.PLANS[plan_name], torch.get_num_threads(), torch.device("cpu"))
    stats = normalization(dataset.splits["train"], recipe, 3)
    step = Step(fresh_network(recipe), recipe, plan.PLANS[plan_name], stats, 64_000, device=torch.device("cpu"))
    order = make_order(dataset, recipe)
    batches = train_batches(dataset.splits["train"], order, recipe.augment, 32, 0, 64_000, Share(), 0)
    return lambda: step(next(batches)) and None


def check_equal() -> float:
    """The largest difference of the two networks' logits with the same weights."""
    import torch

    from residua.models import create_model

    ours, usual = create_model("resnet20"), usual_network()
    ours.load_state_dict(dict(zip(ours.state_dict(), usual.state_dict().values())))
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        return float((ours.eval()(images) - usual.eval()(images)).abs().max())


def turn(side: str, data_dir: str, seconds: float) -> None:
    """One turn in this process; prints images per second."""
    step = usual_steps(data_dir) if side == "usual" else our_steps(data_dir, side)
    for _ in range(12):
        step()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        count += 1
    print(json.dumps(BATCH * count / (time.perf_counter() - began)))


def measured(side: str, data_dir: str, seconds: float) -> float:
    """Images per second of one turn in a process of its own."""
    command = [sys.executable, __file__, "--turn", side, "--data-dir", data_dir, "--seconds", str(seconds)]
    return float(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))


def first_step(data_dir: str, arguments: list[str]) -> float:
    """Seconds from the start of `residua train cifar10` to the end of its first update."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "residua", "train", "cifar10", "--data-dir", data_dir, "--model", "resnet20", *arguments]
        process = subprocess.Popen([*command, "--out", folder + "/run"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = Path(folder, "run", "metrics.jsonl")
        while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.05)
        took = time.perf_counter() - began
        process.kill()
        process.wait()
    return took


def main() -> None:
    """Alternates the sides and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--plans", nargs="+", default=["bf16", "bf16-compile"])
    parser.add_argument("--first-step", action="store_true")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.turn:
        turn(options.turn, options.data_dir, options.seconds)
        return
    print(f"largest difference of the two networks' logits with the same weights: {check_equal():.1e}")
    sides = ["usual", *options.plans]
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides:
            rates[side].append(measured(side, options.data_dir, options.seconds))
        print(f"round {number + 1}: " + ", ".join(f"{side} {rates[side][-1]:.0f} images/s" for side in sides), flush=True)
    print(f"\n{'way':<16}{'images/s':>10}{'min':>8}{'max':>8}{'ratio':>8}{'min':>7}{'max':>7}")
    ratios = {side: [ours / usual for ours, usual in zip(rates[side], rates["usual"])] for side in sides}
    for side in sides:
        rate, ratio = rates[side], ratios[side]
        print(f"{side:<16}{statistics.median(rate):>10.0f}{min(rate):>8.0f}{max(rate):>8.0f}"
              f"{statistics.median(ratio):>8.2f}{min(ratio):>7.2f}{max(ratio):>7.2f}")  # fmt: skip
    starts = {}
    if options.first_step:
        starts = {
            "nothing compiled": first_step(options.data_dir, ["--epochs", "3"]),
            "compiled": first_step(options.data_dir, ["--minutes", "15"]),
        }
        for name, seconds in starts.items():
            print(f"from the command to the end of the first step, {name}: {seconds:.1f} s")
    rows = [
        {"way": side, "images/s": statistics.median(rates[side]), **form.spread(ratios[side], "against the usual way")}
        for side in sides
    ]
    notes = [f"From the command to the end of the first step, {name}: {seconds:.1f} s." for name, seconds in starts.items()]
    form.write(options.json, form.result("throughput", rows, notes=notes, raw={"images/s": rates}))


if __name__ == "__main__":
    main()
