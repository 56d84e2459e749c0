"""Writes docs/results.md anew from the files in results/."""

from __future__ import annotations

from pathlib import Path

from residua.results_page import document

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    (ROOT / "docs" / "results.md").write_text(document(ROOT / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
