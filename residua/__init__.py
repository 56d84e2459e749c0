"""residua: deep residual learning end to end. Build, train, evaluate and take apart networks with skip connections.

    import residua
    run = residua.train("digits", minutes=1)            # a finished run directory
    residua.evaluate(run).top1_error                    # per cent
    model = residua.load(run)                           # a torch module in evaluation mode
    residua.predict(run, ["photo.jpg"])

Names are loaded when they are first used (PEP 562): `import residua` loads neither torch nor any other heavy library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from residua.version import __version__

if TYPE_CHECKING:
    from residua import weights as weights
    from residua.analyzing import analyze as analyze
    from residua.errors import RequestError as RequestError
    from residua.errors import RunError as RunError
    from residua.evaluation import evaluate as evaluate
    from residua.graph import capture as capture
    from residua.inspection import inspect as inspect
    from residua.models import create_model as create_model
    from residua.models import list_models as list_models
    from residua.network import Network as Network
    from residua.prediction import predict as predict
    from residua.recipe import Recipe as Recipe
    from residua.recipes import get_recipe as get_recipe
    from residua.report import write_report as write_report
    from residua.reproducing import reproduce as reproduce
    from residua.runs import Run as Run
    from residua.runs import load as load
    from residua.runs import open_run as open_run
    from residua.training import train as train
    from residua.unit import Unit as Unit
    from residua.unit import switched_off as switched_off
    from residua.unit import walk as walk

_HOMES = {
    "Network": "network",
    "Recipe": "recipe",
    "RequestError": "errors",
    "Run": "runs",
    "RunError": "errors",
    "Unit": "unit",
    "analyze": "analyzing",
    "capture": "graph",
    "create_model": "models",
    "evaluate": "evaluation",
    "get_recipe": "recipes",
    "inspect": "inspection",
    "list_models": "models",
    "load": "runs",
    "open_run": "runs",
    "predict": "prediction",
    "reproduce": "reproducing",
    "switched_off": "unit",
    "train": "training",
    "walk": "unit",
    "weights": "weights",
    "write_report": "report",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'residua' has no attribute {name!r}")
    home = importlib.import_module(f"residua.{_HOMES[name]}")
    value = home if name == _HOMES[name] else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
