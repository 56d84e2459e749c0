"""The command line: each verb calls the functions of one module; this is the only file that prints. Layer 7.

Results go to stdout, everything said on the way to stderr; with --json stdout is one JSON document. Exit codes: 0 done, 1 failed
while working, 2 the request was wrong, 130/143 interrupted, in training with a checkpoint saved.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from residua.errors import RequestError, RunError, RunWarning, memory_message

app = typer.Typer(
    name="residua",
    help="Deep residual learning end to end: build, train, evaluate and take apart networks with skip connections.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where named data sets lie or are downloaded to (or RESIDUA_DATA).")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one).")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Threads that read data (default: one a core, at most 8).")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the recipe; may be repeated.")
]


def main() -> None:
    """The entry point of the `residua` command."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app()


def say(text: str) -> None:
    """A line for the person who watches."""
    print(text, file=sys.stderr, flush=True)


def guarded(work: Callable[[], None], debug: bool) -> None:
    """Runs a verb; turns its errors into one message and an exit code."""
    try:
        with _warnings_said():
            work()
    except (RequestError, RunError) as error:
        if debug:
            raise
        fail(str(error), getattr(error, "code", 2 if isinstance(error, RequestError) else 1))
    except KeyboardInterrupt:
        fail("Interrupted.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if debug:
            raise
        fail(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}. Mend that, then run the same command.", 1)
    except (MemoryError, RuntimeError) as error:
        message = memory_message(error)
        if debug or message is None:
            raise
        fail(message, 1)


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Within the block a `RunWarning` is a line for the person who watches, each said once; other warnings are as ever."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, RunWarning):
                say(f"residua: {message}")
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        warnings.simplefilter("default", RunWarning)
        yield


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with a message."""
    say(f"residua: {message}")
    raise typer.Exit(code)


def emit(document: Any) -> None:
    """The one JSON document; characters that stdout cannot take, such as a file name's that is not UTF-8, are escaped."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=1, allow_nan=False)
    print(text)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="A name or a pattern such as 'resnet*'.")] = "*",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the networks: depth, parameters, multiply-adds, paper."""

    def work() -> None:
        from residua import tables
        from residua.models import CATALOG, list_models

        rows = [(name, CATALOG.get(name)) for name in list_models(pattern)]
        if not rows:
            CATALOG.get(pattern)
        if as_json:
            emit([
                {"name": name, "paper": entry.paper, "table": entry.table, "depth": entry.depth, "parameters": entry.parameters,
                 "multiply_adds": entry.multiply_adds, "input_shape": list(entry.input_shape)}
                for name, entry in rows
            ])  # fmt: skip
            return
        print(tables.networks(rows))

    guarded(work, debug)


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="A name that `residua models` lists, torchvision:NAME, timm:NAME, transformers:CONFIG_CLASS, "
            "or FILE.py:FACTORY, which runs that file."
        ),
    ],
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Side of the input (default: the network's usual one).")
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the model.")] = None,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Also write a drawing of the network.")] = None,
    unfold: Annotated[bool, typer.Option("--unfold", help="Draw every layer, where series are usually drawn once.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take a network apart: its skips, its paths, which sort of connections it has, and what it costs."""

    def work() -> None:
        from residua import network_page
        from residua.inspection import inspect as take_apart
        from residua.recipe import parse_overrides

        if svg is not None and not svg.absolute().parent.is_dir():
            raise RequestError(f"The drawing cannot be written to {svg}: there is no folder {svg.absolute().parent}.")
        result = take_apart(model, image_size=image_size, **parse_overrides(settings or []))
        if svg is not None:
            svg.write_text(result.svg(fold=False if unfold else None), encoding="utf-8")
            say(f"The drawing is in {svg}.")
        card = result.to_dict()
        if as_json:
            emit(card)
            return
        print(network_page.network(card))

    guarded(work, debug)


@app.command()
def train(
    data: Annotated[
        str | None, typer.Argument(help="A data set's name, a folder of images, or a CSV (default: the embedded digits).")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="A network that `residua models` lists.")] = None,
    recipe: Annotated[
        str,
        typer.Option("--recipe", "-r", help="fast, speedrun, ... (docs/command-line.md lists them), or a .toml or .json file."),
    ] = "fast",
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Length in passes over the data; rescales the schedule.")
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="Length in minutes; rescales the schedule.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Images in one update (default: the recipe's).")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="What all draws start from (default: 0).")] = None,
    device: Device = None,
    workers: Workers = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Start from a run, a weights file, or e.g. torchvision:IMAGENET1K_V2.")
    ] = None,
    plan: Annotated[str | None, typer.Option("--plan", help="auto, fp32, ... (docs/command-line.md lists them).")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="fp32, eager, one thread: the same bytes on any processor of one type.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run directory (default: runs/, a name that tells what it is).")
    ] = None,
    data_dir: DataDir = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a network, evaluate it, and write a report. The same command continues an interrupted run."""

    def work() -> None:
        from residua.progress import Watch
        from residua.recipe import parse_overrides
        from residua.training import train as run_training

        if exact and plan not in (None, "exact"):
            raise RequestError(f"--exact is the plan `exact`; --plan {plan} contradicts it.")
        fields = {
            "epochs": epochs, "minutes": minutes, "batch_size": batch_size, "seed": seed, "plan": "exact" if exact else plan,
            "model.weights": weights, "set": parse_overrides(settings or []),
        }  # fmt: skip
        with Watch(say) as watch:
            run = run_training(
                data,
                model=model,
                recipe=recipe,
                out=out,
                data_dir=data_dir,
                device=device,
                workers=workers,
                listener=watch,
                **fields,
            )
        if int(os.environ.get("RANK", "0")) == 0:
            finish(run, data_dir, device, as_json)

    guarded(work, debug)


def finish(run: Any, data_dir: Path | None, device: str | None, as_json: bool) -> None:
    """After training: evaluate on the final split, write the report, say what came out."""
    from residua import tables
    from residua.evaluation import evaluate as run_evaluation
    from residua.report import write_report

    evaluation = run_evaluation(run, data_dir=data_dir, device=device)
    report = write_report(run)
    ends = run.metrics("end")
    values = evaluation.to_dict()
    metrics = {name: values[name] for name in ("top1_error", "top5_error", "balanced_accuracy", "num_samples", "split", "nll")}
    metrics["training_seconds"] = ends[-1]["values"]["training_seconds"] if ends else None
    metrics["steps"] = run.recorded("total_steps")
    if as_json:
        emit({"run": str(run.path), "report": str(report), "finished": True, "metrics": metrics})
        return
    print(tables.headline(values))
    print(f"Run:    {run.path}\nReport: {report}")


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are an ensemble.")],
    data: Annotated[str | None, typer.Option("--data", help="Other data than the run's own.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, val or test (default: test, else val).")] = None,
    protocol: Annotated[str, typer.Option("--protocol", help="center, ten-crop, six-view or dense.")] = "center",
    scales: Annotated[str | None, typer.Option("--scales", help="Shorter sides for dense, such as 224,256,384.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images in one forward pass.")] = 128,
    device: Device = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Threads that read data.")] = 0,
    data_dir: DataDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a run, or an ensemble of runs."""

    def work() -> None:
        from residua import tables
        from residua.evaluation import evaluate as run_evaluation

        try:
            sides = [int(part) for part in scales.split(",")] if scales else None
        except ValueError:
            raise RequestError(f"--scales takes whole numbers with commas between, not {scales!r}.") from None
        evaluation = run_evaluation(
            runs, data=data, data_dir=data_dir, split=split, protocol=protocol, scales=sides,
            batch_size=batch_size, device=device, workers=workers,
        )  # fmt: skip
        values = evaluation.to_dict()
        if as_json:
            emit(values)
            return
        if values["note"]:
            say(values["note"])
        print(tables.headline(values))
        print(tables.classes(values))

    guarded(work, debug)


@app.command()
def predict(
    run: RunPath,
    files: Annotated[list[Path], typer.Argument(metavar="FILE_OR_FOLDER...", help="Images, or folders of images.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many labels an image.")] = 1,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
    device: Device = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Threads that read data.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Label images: one line a file; files that cannot be read are listed."""

    def work() -> None:
        from residua import tables
        from residua.prediction import predict as run_prediction
        from residua.prediction import predictions_csv

        predictions = run_prediction(run, files, top=top, device=device, workers=workers)
        bad = [item for item in predictions if item.error]
        if as_json:
            emit([item.to_dict() for item in predictions])
        elif as_csv:
            print(predictions_csv(predictions, top), end="")
        else:
            print(tables.predictions(predictions))
        if bad:
            say(f"residua: {len(bad)} of {len(predictions)} files could not be read:")
            for item in bad:
                say(f"  {item.error}")

    guarded(work, debug)


@app.command()
def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several stand side by side.")],
    only: Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="One analysis; may be repeated.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="The time for everything together.")] = 8.0,
    data: Annotated[str | None, typer.Option("--data", help="Other data than the runs' own.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, val or test (default: test, else val).")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where analysis.html goes (default: into the first run).")
    ] = None,
    device: Device = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Take trained networks apart: responses, lesions, contributions, ...; several runs side by side."""

    def work() -> None:
        from residua import tables
        from residua.analyzing import analyze as run_analyses
        from residua.progress import AnalysisWatch

        with AnalysisWatch(say) as watcher:
            result = run_analyses(
                runs, only=only, minutes=minutes, data=data, data_dir=data_dir, split=split, device=device, out=out,
                watcher=watcher,
            )  # fmt: skip
        if as_json:
            emit(result.to_dict())
            return
        print(tables.analyses(result.to_dict()))

    guarded(work, debug)


@app.command()
def shorten(
    run: RunPath,
    keep: Annotated[int, typer.Option("--keep", min=0, help="How many units stay.")],
    epochs: Annotated[
        float | None, typer.Option("--epochs", help="Length of the tuning (default: a fifth of the run's).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new run's directory (default: the run's, with -keepN added).")
    ] = None,
    device: Device = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove the units that a trained network misses least, tune what is left, and compare. The same command continues."""

    def work() -> None:
        from residua import tables
        from residua.evaluation import evaluate as run_evaluation
        from residua.progress import Watch
        from residua.recipe import parse_overrides
        from residua.report import write_report
        from residua.shortening import shorten as run_shortening

        with Watch(say) as watch:
            child, card = run_shortening(
                run, keep=keep, out=out, epochs=epochs, data_dir=data_dir, device=device, workers=workers, listener=watch,
                set=parse_overrides(settings or []),
            )  # fmt: skip
        run_evaluation(child, data_dir=data_dir, device=device)
        page = write_report(child)
        if as_json:
            emit({"run": str(child.path), "report": str(page), **card})
            return
        print(tables.shortening(card))
        print(f"Run:    {child.path}\nReport: {page}")

    guarded(work, debug)


@app.command()
def reproduce(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PAPER[/ITEM or /CLAIM]]...", help="he2015, he2015/fig6, ... (default: list all)."),
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="smoke, small or full (default: small).")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Only the runs that fit, those that decide most claims first.")
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="How many seeds a run gets (default: the budget's).")] = None,
    verify: Annotated[str | None, typer.Option("--verify", metavar="RUN", help="Repeat a kept run or its beginning.")] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep one small JSON file a run there, to be made once.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of runs and page.")] = Path("reproduction"),
    device: Device = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Reproduce papers: any table, figure or claim, with a verdict. Without arguments, list them. The same command continues."""

    def work() -> None:
        from residua import costing, listing, reproducing, tables
        from residua.progress import ReproductionWatch
        from residua.verifying import MINUTES
        from residua.verifying import verify as repeat

        if verify is None and not names and budget is None and minutes is None:
            if not costing.counted_before():
                say("Counting what each network costs; once, for a minute or two.")
            entries = listing.claims(out, costs=as_json)
            if as_json:
                emit(entries)
            else:
                print(tables.papers(listing.papers(entries, out)))
            return
        with ReproductionWatch(say) as watch:
            if verify is not None:
                found = repeat(
                    verify, minutes=minutes or MINUTES, results=keep, out=out, data_dir=data_dir, device=device, watcher=watch
                )
            else:
                result = reproducing.reproduce(
                    names or (), budget=budget or "small", minutes=minutes, seeds=seeds, out=out, data_dir=data_dir,
                    device=device, workers=workers, keep=keep, watcher=watch,
                )  # fmt: skip
        if verify is not None:
            if as_json:
                emit(found.to_dict())
            else:
                print(tables.verification(found.to_dict()))
            if found.verdict == "differs":
                raise RunError(f"{verify} could not be repeated.")
            return
        if as_json:
            emit(listing.with_costs(result.claims))
            say(f"Page: {result.page}")
        else:
            print(tables.reproduction(result.document))
            print(f"Page:   {result.page}")
        if result.failed:
            name, reason = next(iter(result.failed.items()))
            raise RunError(f"{len(result.failed)} of the runs failed; {name}: {reason}")

    guarded(work, debug)


@app.command()
def report(run: RunPath, as_json: Json = False, debug: Debug = False) -> None:
    """Write the run's report anew: one self-contained HTML file."""

    def work() -> None:
        from residua.report import write_report

        path = write_report(run)
        if as_json:
            emit({"report": str(path)})
        else:
            print(path)

    guarded(work, debug)


@app.command()
def doctor(
    data: Annotated[str | None, typer.Argument(help="A data set to look at: a name, a folder, or a CSV.")] = None,
    plan: Annotated[
        str | None, typer.Option("--plan", metavar="MODEL", help="Try every way to compute a step of this network.")
    ] = None,
    image_size: Annotated[int | None, typer.Option("--image-size", min=1, help="With --plan: side of the input.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="With --plan: images in a batch.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="With --plan: an option of the network.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what this machine can do, how a data set is read, or how a network would be trained here and why."""

    def work() -> None:
        from residua import doctor as examination
        from residua import tables

        if plan is not None:
            from residua.plan_card import examine_plan
            from residua.recipe import parse_overrides

            options = parse_overrides(settings or [])
            card = examine_plan(plan, options, source=data, data_dir=data_dir, image_size=image_size, batch_size=batch_size)
            table = tables.plans
        elif image_size or batch_size or settings:
            raise RequestError("--image-size, --batch-size and --set say how a network is tried: add --plan MODEL.")
        else:
            card = examination.examine_machine() if data is None else examination.examine_data(data, data_dir)
            table = tables.machine if data is None else tables.data
        if as_json:
            emit(card)
        else:
            print(table(card))

    guarded(work, debug)
