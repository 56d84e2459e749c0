"""Catalogues: names are read without importing, entries found by name, doubles refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from residua import data, models, recipes
from residua.catalog import Catalog, literal_all
from residua.errors import RequestError, nearest, unknown


def test_reading_names_imports_neither_the_files_nor_torch() -> None:
    code = (
        "import sys; from residua.catalog import Catalog\n"
        "assert 'resnet50' in Catalog('residua.models', 'model').names()\n"
        "assert 'he2015-cifar' in Catalog('residua.recipes', 'recipe')\n"
        "assert 'digits' in Catalog('residua.data', 'data set')\n"
        "loaded = [n for n in sys.modules if n.split('.')[0] in ('torch', 'numpy', 'torchvision', 'sklearn')]\n"
        "assert not loaded, loaded\n"
        "assert not [n for n in sys.modules if n.startswith('residua.models')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue with a file that cannot be imported, of a package that lies where residua does."""
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "_private.py").write_text('__all__ = ["hidden"]\n')
    (folder / "first.py").write_text('__all__ = ["b", "a"]\na = 1\nb = 2\n')
    (folder / "second.py").write_text('__all__ = ["c"]\nraise ImportError\n')
    (folder / "third.py").write_text("x = 1\n")
    monkeypatch.setattr("residua.catalog.__file__", str(tmp_path / "catalog.py"))
    return folder


@pytest.mark.usefixtures("package")
def test_names_come_in_the_order_of_the_files_and_of_their_lists() -> None:
    assert Catalog("residua.family", "thing").names() == ["b", "a", "c"]


def test_two_files_may_not_define_one_name(package: Path) -> None:
    (package / "zeta.py").write_text('__all__ = ["a"]\n')
    with pytest.raises(AssertionError, match=r"a is defined in residua\.family\.first and in zeta"):
        Catalog("residua.family", "thing").names()


def test_the_list_is_read_from_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('raise SystemExit\n__all__ = ["x", "y"]  # fmt: skip\n')
    (tmp_path / "b.py").write_text("pass\n")
    assert literal_all(tmp_path / "a.py") == ["x", "y"]
    assert literal_all(tmp_path / "b.py") == []


@pytest.mark.parametrize("catalog", [models.CATALOG, recipes.CATALOG, data.CATALOG], ids=lambda c: c.kind)
def test_every_entry_can_be_had_and_a_hyphen_is_an_underscore(catalog: Catalog) -> None:
    for name in catalog.names():
        entry = catalog.get(name)
        assert callable(entry)
        assert catalog.get(name.replace("_", "-")) is entry
        assert name.replace("_", "-") in catalog
    assert [name for name, _ in catalog.items()] == catalog.names()


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(RequestError, match=r"no model called 'resnet5'.*'resnet50'.*`residua models` lists them"):
        models.CATALOG.get("resnet5")
    with pytest.raises(RequestError, match=r"no recipe called 'he2015-cifer'.*'he2015_cifar'"):
        recipes.CATALOG.get("he2015-cifer")
    assert "nothing" not in models.CATALOG


def test_the_nearest_names_come_best_first_and_without_regard_to_case() -> None:
    assert nearest("ResNet50", ["resnet50", "resnet5", "plain"])[0] == "resnet50"
    assert nearest("zzz", ["resnet50"]) == []


def test_of_a_few_names_all_are_listed_when_none_is_near() -> None:
    assert str(unknown("fruit", "zzz", ["apple", "pear"], "Ask.")) == ("There is no fruit called 'zzz'. Valid: apple, pear. Ask.")
    assert str(unknown("fruit", "zzz", [f"fruit{n}" for n in range(13)])) == "There is no fruit called 'zzz'."


def test_where_nothing_has_a_name_the_message_says_so() -> None:
    assert str(unknown("kept run", "a", [], "See there.")) == "There is no kept run called 'a'. There is none at all. See there."
