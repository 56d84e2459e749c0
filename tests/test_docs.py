"""The README and docs/: their commands exist, the marked ones run, their links resolve, their tables follow the code."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import doc_tables
import pytest
from toy_runs import write_image
from typer.main import get_command

from residua.cli import app
from residua.models import CATALOG
from residua.recipe import parse_overrides
from residua.training import request

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?P<mark><!-- run -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = (
    ". .venv/bin/activate",
    "./scripts/setup",
    "./scripts/train",
    "./scripts/test",
    "./scripts/check",
    "pip install",
    "git clone",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str, *, run: bool | None = None) -> Iterator[str]:
    """The fenced blocks of a page in one language; with `run`, only those that are (or are not) marked to be run."""
    for found in FENCE.finditer(page.read_text(encoding="utf-8")):
        if found["language"] == language and (run is None or bool(found["mark"]) == run):
            yield found["text"]


def commands(page: Path, *, run: bool | None = None) -> Iterator[list[str]]:
    """The commands of the shell blocks, as words, without comments."""
    for text in blocks(page, "sh", run=run):
        for line in text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def arguments(words: list[str]) -> list[str] | None:
    """What follows `residua`, however it is started; None for another command."""
    if words[0] == "residua":
        return words[1:]
    if words[0] == "./scripts/train":
        return ["train", *words[1:]]
    if words[0] == "torchrun":
        return words[words.index("residua") + 1 :]
    return None


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that holds what the examples name: photo.png, photos/, and pets/ with two classes."""
    write_image(tmp_path / "photo.png", 8, 8, 0)
    for index in range(2):
        write_image(tmp_path / "photos" / f"{index}.png", 12, 8, index)
    for number, label in enumerate(("cat", "dog")):
        for index in range(20):
            write_image(tmp_path / "pets" / label / f"{index}.png", 8, 8, 100 * number + index)
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_exists(page: Path) -> None:
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    for words in commands(page):
        line = shlex.join(words)
        asked = arguments(words)
        if asked is None:
            script = next((word for word in words if word.endswith(".py")), None)
            assert line.startswith(SHELL) or (script and (ROOT / script).is_file()), line
            continue
        context = verbs[asked[0]].make_context(asked[0], asked[1:])
        if asked[0] == "train" and not str(context.params["recipe"]).endswith((".toml", ".json")):
            values = context.params
            request(values["data"], values["model"], values["recipe"], {"set": parse_overrides(values["settings"] or [])})


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page, run=True))], ids=name_of)
def test_the_marked_commands_run(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for words in commands(page, run=True):
        asked = arguments(words)
        assert asked is not None
        code = get_command(app).main(asked, standalone_mode=False)
        assert not code, f"{shlex.join(words)}\n{capsys.readouterr().err}"


def test_the_python_of_the_readme_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (text,) = blocks(ROOT / "README.md", "python", run=True)
    assert len([line for line in text.splitlines() if line.strip()]) <= 12, "the README promises a short one"
    exec(compile(text, "README.md", "exec"), {})


def test_the_example_of_a_network_is_one() -> None:
    import torch

    from residua.cost import multiply_adds, num_parameters

    names = executed("add-a-model.md")
    entry = names["thin8"]
    network = entry()
    assert num_parameters(network) == entry.parameters
    assert multiply_adds(network, entry.input_shape) == entry.multiply_adds
    assert [tuple(x.shape[1:]) for x in network.features(torch.zeros(2, 3, 32, 32))] == [(8, 32, 32), (16, 16, 16)]


def test_the_example_of_a_data_set_is_one(tmp_path: Path) -> None:
    opened = executed("add-a-dataset.md")["checkers"](tmp_path)
    assert {split: len(samples) for split, samples in opened.splits.items()} == {"train": 64, "test": 16}
    assert opened.splits["train"].load(1)[0, 0, 0] == 255
    assert len(opened.fingerprint()) == 64


def test_the_examples_of_a_recipe_are_ones(tmp_path: Path) -> None:
    from residua.recipe import read

    assert executed("add-a-recipe.md")["gentle"]("resnet20").model.name == "resnet20"
    (tmp_path / "mine.toml").write_text(next(blocks(ROOT / "docs" / "add-a-recipe.md", "toml")), encoding="utf-8")
    assert read(tmp_path / "mine.toml").augment.mixup == 0.2


def test_the_example_of_weights_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert executed("weights.md")["report"].taken > 0
    assert (tmp_path / "mine.safetensors").is_file()


def executed(page: str) -> dict[str, object]:
    """What the marked Python of a page defines."""
    (text,) = blocks(ROOT / "docs" / page, "python", run=True)
    names: dict[str, object] = {}
    exec(compile(text, page, "exec"), names)
    return names


# ---------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_follow_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert doc_tables.rewritten(text) == text, "run `.venv/bin/python tests/doc_tables.py`, and fill in what is empty"


FIGURES = sorted({found for page in PAGES for found in doc_tables.figures(page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize(("network", "unit"), FIGURES)
def test_figures_follow_the_code(network: str, unit: str) -> None:
    drawn = doc_tables.figure_file(network, unit).read_text(encoding="utf-8")
    assert drawn == doc_tables.figure(network, unit), "run `.venv/bin/python tests/doc_tables.py`"


def test_no_figure_is_left_over() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    kept = [path.name for path in (ROOT / "docs" / "figures").glob("*.svg")]
    assert [name for name in kept if f"figures/{name})" not in text] == []


def test_every_family_of_networks_has_a_page_with_its_facts() -> None:
    for stem in {doc_tables.entry_file(name) for name in CATALOG.names()}:
        page = ROOT / "docs" / "families" / f"{stem}.md"
        assert page.is_file(), f"docs/families/{stem}.md is missing"
        assert f"<!-- begin facts {stem} -->" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_row_of_a_table_is_left_without_its_meaning(page: Path) -> None:
    for found in doc_tables.BLOCK.finditer(page.read_text(encoding="utf-8")):
        empty = [name for name, meaning in doc_tables.kept(found["text"]).items() if not meaning]
        assert not empty, f"{name_of(page)}, {found['name']}: {empty}"


def test_every_verb_and_every_field_recipe_plan_and_module_has_its_table() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert [verb for verb in doc_tables.verbs() if f"<!-- begin options {verb} -->" not in text] == []
    assert "<!-- begin recipes -->" in text
    assert "<!-- begin plans -->" in text
    assert "<!-- begin fields -->" in (ROOT / "docs" / "add-a-recipe.md").read_text(encoding="utf-8")
    assert "<!-- begin modules -->" in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("https://", "http://", "mailto:")):
            assert (page.parent / target).exists(), f"{name_of(page)}: {target}"


def tree() -> list[str]:
    """The paths that the README's tree names, from the top of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("\n## ")[0]
    paths = []
    for line in text.splitlines():
        if line.startswith(" " * 6):
            paths += [f"residua/{name}" for name in re.findall(r"\w+\.py\b|\w+/(?=\s)", line)]
        elif line.startswith(" " * 4):
            paths.append(line.split()[0])
    return paths


def test_the_tree_of_the_readme_names_files_that_exist() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert not missing


def test_the_tree_of_the_readme_names_every_catalogue() -> None:
    named = {path.rstrip("/") for path in tree()}
    catalogues = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "residua").glob("*/__init__.py")}
    assert sorted(catalogues - named) == []


def tracked() -> list[Path]:
    """The text files of the repository, or of a copy of it without git."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout, so it cannot be told which files belong to it")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".safetensors")]


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    hosts = [
        "pypi" + ".org",
        "python" + "hosted.org",
        "download.pytorch" + ".org",
        "ana" + "conda.org",
        "npm" + "js.org",
        "extra-" + "index-url",
    ]
    homes = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt)/[\w.-]+")
    for path in tracked():
        text = path.read_text(encoding="utf-8")
        assert not [host for host in hosts if host in text], path
        assert not homes.findall(text), path


def test_only_the_continuous_check_knows_of_the_folder_beside_the_checkout() -> None:
    folder = "../" + "shared"
    assert [str(path.relative_to(ROOT)) for path in tracked() if folder in path.read_text(encoding="utf-8")] == [".ci/run"]
