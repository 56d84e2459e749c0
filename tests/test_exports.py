"""The public surface, and what it costs to name it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import residua

PUBLIC = [
    "Network",
    "Recipe",
    "RequestError",
    "Run",
    "RunError",
    "Unit",
    "__version__",
    "analyze",
    "capture",
    "create_model",
    "evaluate",
    "get_recipe",
    "inspect",
    "list_models",
    "load",
    "open_run",
    "predict",
    "reproduce",
    "switched_off",
    "train",
    "walk",
    "weights",
    "write_report",
]
HEAVY = ("torch", "numpy", "torchvision", "scipy", "sklearn", "PIL", "matplotlib", "pydantic", "safetensors")


def loads_none_of(libraries: tuple[str, ...], code: str) -> None:
    check = f"\nimport sys\nloaded = [n for n in {libraries!r} if n in sys.modules]\nassert not loaded, loaded\n"
    subprocess.run([sys.executable, "-c", code + check], check=True, stdout=subprocess.DEVNULL)


def test_the_public_names_are_these() -> None:
    assert sorted(residua.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(residua))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_had_and_is_documented(name: str) -> None:
    value = getattr(residua, name)
    assert isinstance(value, str) or value.__doc__


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        residua.tarin  # noqa: B018


def test_importing_the_package_loads_no_heavy_library() -> None:
    loads_none_of(HEAVY, "import residua; residua.__version__; dir(residua)")


def test_help_answers_without_a_heavy_library() -> None:
    for arguments, libraries in ((["--help"], HEAVY), (["train", "--help"], HEAVY[:6])):
        code = (
            "import sys\n"
            f"sys.argv = ['residua', *{arguments!r}]\n"
            "from residua.cli import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        )
        loads_none_of(libraries, code)


def test_the_type_checker_sees_the_names_that_are_loaded_on_use() -> None:
    from pathlib import Path

    text = Path(residua.__file__).read_text(encoding="utf-8")
    for name in PUBLIC:
        assert name == "__version__" or f"import {name} as {name}" in text
