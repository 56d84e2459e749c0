"""The report of a run: one HTML file that holds all it shows. Layer 5.

No script, no request to anywhere: it can be mailed, archived and read offline. Texts that come from the data (class names,
file names) are escaped by the template engine; a policy in the page itself forbids scripts and requests besides.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from residua import report_results as results
from residua import report_setup as words
from residua.errors import RunError
from residua.plots import shortened
from residua.report_inputs import Inputs, read_inputs
from residua.runs import Run, open_run, write_atomically

__all__ = ["environment", "packaged", "printable", "write_report"]

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def write_report(run: Run | Path | str) -> Path:
    """Writes `<run>/report.html` from what the run directory holds, and returns its path.

    What is missing there (an evaluation not yet made, say) is left out with a sentence. Raises `RequestError` if `run` is no
    run directory, `RunError` if the file cannot be written.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    path = opened.outputs / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _page(read_inputs(opened)))
    except OSError as error:
        raise RunError(f"The report {path} cannot be written: {error.strerror or error}.") from error
    return path


def _page(inputs: Inputs) -> str:
    template = environment().from_string(packaged("report_template.html"))
    page = template.render(
        style=Markup(packaged("report_style.css")),
        head=words.headline(inputs),
        setup=words.setup(inputs),
        data=results.data(inputs),
        curves=results.curves(inputs),
        evaluation=results.evaluation(inputs),
        mistakes=results.mistakes(inputs),
        repeat=words.repeat(inputs),
        caveats=words.caveats(inputs),
        manifest=inputs.run.manifest,
        recipe_name=inputs.run.recipe.name,
    )
    return printable(page)


def environment() -> Environment:
    """What turns a template and values into a page; every text is escaped, and a name that has no value is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = _short
    environment.filters["drawn"] = Markup
    return environment


def _short(thing: Any, most: int = 60) -> str:
    """A name on one line, in at most `most` columns."""
    return shortened(str(thing), most)


def printable(page: str) -> str:
    """The page with a mark in place of characters that HTML may not hold."""
    return _UNPRINTABLE.sub("\ufffd", page)


def packaged(name: str) -> str:
    """The text of a file that lies beside this module."""
    return resources.files("residua").joinpath(name).read_text(encoding="utf-8")
