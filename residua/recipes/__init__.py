"""The catalogue of recipes: functions (model name) -> Recipe, found by name on request."""

from __future__ import annotations

from pathlib import Path

from residua import recipe
from residua.catalog import Catalog
from residua.recipe import Recipe

CATALOG = Catalog("residua.recipes", "recipe", "docs/command-line.md lists them; a recipe file ends in .toml or .json.")


def get_recipe(name: str, model: str | None = None) -> Recipe:
    """The recipe called `name` (a hyphen is an underscore), or the one in the file `name` if it ends in .toml or .json.

    `model` replaces the recipe's own model; a recipe may depend on it.
    """
    if name.endswith((".toml", ".json")):
        found = recipe.read(Path(name))
        return found if model is None else recipe.replaced(found, {"model.name": model}, "--model")
    found = CATALOG.get(name)(model) if model is not None else CATALOG.get(name)()
    assert isinstance(found, Recipe)
    return found
