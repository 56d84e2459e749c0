"""The kill test of benchmarks/kill_test.py, in short: three kills, one aimed into a save, 2 workers, against a run with none."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def kill_test() -> ModuleType:
    """The script as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / "kill_test.py"
    spec = importlib.util.spec_from_file_location("kill_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_killed_run_ends_in_the_bytes_of_the_undisturbed_one(kill_test: ModuleType, tmp_path: Path) -> None:
    work = kill_test.Work(tmp_path, steps=80, seconds=0.2)
    kill_test.write_images(tmp_path / "images", train=8, val=2)
    work.finish("undisturbed", 0)
    outcome = kill_test.torment(work, "killed", workers=2, kills=3, saves=1, chance=random.Random(0))
    assert outcome.wrong == []
    assert len(outcome.kills) == 3
    assert outcome.result == work.result("undisturbed")
