"""Fixtures that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

# One thread a process, here and in the processes that tests start: the tests run side by side, and tiny networks gain nothing
# from a second thread, but wait for each other's. Set before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, so that none sees or changes what the user's runs remember."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
