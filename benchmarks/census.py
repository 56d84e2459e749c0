"""The census of every classification model of torchvision and of several hundred of timm: time, count, and what stays unknown.

    python benchmarks/census.py --list                                  # the networks, one a line
    python benchmarks/census.py --part 3/20 --out census.jsonl          # every twentieth of them, from the third
    python benchmarks/census.py --table census.jsonl                    # the table of docs/census.md

Networks are built without weights, at the smallest legal input of the ladder below, with one image. Each line of the file is
one network: its input, the way of capture, the number of skips by kind and way, what is unknown and why, seconds. A crash is
a line, too. Networks that are in the file are not measured again; the program ends with exit code 3 where some
remain, after the time given with --seconds or with its memory full, and is then called again.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

from residua.census import census
from residua.graph import capture
from residua.paths import num_paths

SIDES = (64, 96, 128, 192, 224, 240, 256, 288, 299, 384, 448)
LARGEST = {"torchvision": 700_000_000, "timm": 60_000_000}  # parameters: a process stays within 3 GB
HALF = 250_000_000  # larger ones are taken in bfloat16; the proof widens one layer at a time
SMALLER = {"vit_h_14": {"image_size": 112}}  # built for smaller images, so that the signals of the proof fit, too
FULL = 1.7e9  # resident bytes at which a process starts no further network, and none of the larger ones if it has done any
LONGEST = 300  # seconds a network
PER_FAMILY = 5  # of timm's variants of one module, the smallest by name


def networks() -> list[str]:
    """Every classification model of torchvision, and of each module of timm up to seven names, spread over its list."""
    import timm
    import torchvision

    names = [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    for module in timm.list_modules():
        found = [name for name in timm.list_models(module=module) if not name.startswith("test_")]
        step = max(1, len(found) // PER_FAMILY)
        names += [f"timm:{name}" for name in found[::step][: PER_FAMILY + 2]]
    return names


def build(name: str) -> torch.nn.Module:
    """The network without weights."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(model, weights=None, **SMALLER.get(model, {}))
    import timm

    return timm.create_model(model, pretrained=False)


def parameters(name: str) -> int:
    """As torchvision states it, else counted on the meta device."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        import torchvision

        return int(torchvision.models.get_model_weights(model).DEFAULT.meta["num_params"])
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build(name).parameters())
    except Exception:
        return sum(parameter.numel() for parameter in build(name).parameters())


def smallest_input(model: torch.nn.Module) -> torch.Tensor:
    """One image of the smallest side of the ladder on which the model runs."""
    channels = getattr(model, "default_cfg", {}).get("input_size", (3,))[0]
    own = getattr(model, "default_cfg", {}).get("input_size", (3, 224, getattr(model, "image_size", 224)))[-1]
    dtype = next(model.parameters()).dtype
    for side in sorted({*SIDES, own}):
        image = torch.randn(1, channels, side, side, dtype=dtype)
        try:
            with torch.no_grad():
                model(image)
        except Exception as error:
            if "memory" in str(error):
                raise
            continue
        return image
    raise ValueError("It runs on none of the sides.")


def measure(name: str) -> dict[str, object]:
    line: dict[str, object] = {"network": name}
    try:
        count = parameters(name)
        line["parameters"] = count
        if count > LARGEST[name.partition(":")[0]]:
            return {**line, "skipped": "too large for the memory of this measurement"}
        torch.manual_seed(0)
        model = build(name).eval()
        if count > HALF:
            model = model.bfloat16()
        image = smallest_input(model)
        line["input"] = list(image.shape[1:])
        start = time.perf_counter()
        captured = capture(model, (image,))
        middle = time.perf_counter()
        found = census(captured)
        end = time.perf_counter()
        line |= {
            "how": captured.how,
            "skips": len(found.skips),
            "kinds": {f"{kind}, {way}": number for (kind, way), number in found.by_kind.items()},
            "unproven": sum(not skip.proven for skip in found.skips),
            "dense_connections": found.dense_connections,
            "paths": str(num_paths(found.flow)) if num_paths(found.flow) < 10**30 else f"{num_paths(found.flow):.2e}",
            "unknown": [[doubt.merge, doubt.reason] for doubt in found.unknown],
            "seconds": [round(middle - start, 2), round(end - middle, 2)],
        }
    except Exception as error:
        line["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        line["where"] = traceback.format_exc(limit=-2)[-500:]
    return line


def resident() -> float:
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _too_long(*_: object) -> None:
    raise TimeoutError(f"It took longer than {LONGEST} s.")


def table(lines: list[dict]) -> str:
    """One row a network, and above it the sums."""
    done = [line for line in lines if "skips" in line]
    hows = Counter(line["how"] for line in done)
    head = [
        f"{len(done)} networks taken apart, {sum('error' in line for line in lines)} errors, "
        f"{sum('skipped' in line for line in lines)} left out because of their size; captured by "
        + ", ".join(f"{how}: {number}" for how, number in hows.most_common())
        + f". Skips: {sum(line['skips'] for line in done):,}, unproven claims: {sum(line['unproven'] for line in done)}, "
        f"merges unknown with a reason: {sum(len(line['unknown']) for line in done)}.",
        "",
        "| network | input | skips | by kind and way | unknown | s |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for line in sorted(done, key=lambda line: line["network"]):
        kinds = "; ".join(f"{number} {kind}" for kind, number in line["kinds"].items())
        side = "x".join(map(str, line["input"][1:]))
        doubts, seconds = len(line["unknown"]) or "", sum(line["seconds"])
        rows.append(f"| {line['network']} | {side} | {line['skips']} | {kinds} | {doubts} | {seconds:.1f} |")
    return "\n".join([*head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--out", type=Path, default=Path("census.jsonl"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no further network after this time")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_long)
    if options.list:
        print("\n".join(networks()))
    elif options.table:
        print(table([json.loads(line) for line in options.table.read_text().splitlines()]))
    else:
        start = time.perf_counter()
        part, parts = map(int, options.part.split("/"))
        known = {json.loads(line)["network"] for line in options.out.read_text().splitlines()} if options.out.exists() else set()
        done = 0
        for name in networks()[part - 1 :: parts]:
            if name in known:
                continue
            full = done and (resident() > FULL or (name.startswith("torchvision") and parameters(name) > HALF))
            if full or time.perf_counter() - start > options.seconds:
                sys.exit(3)
            done += 1
            signal.alarm(LONGEST)
            line = measure(name)
            signal.alarm(0)
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
