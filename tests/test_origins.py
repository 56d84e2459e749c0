"""Networks from wherever they come, by name, and what is said where there is none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from residua.errors import RequestError
from residua.origins import open_network


def shapes(name: str, image_size: int | None = None, **options: Any) -> list[tuple[int, ...]]:
    origin = open_network(name, options, image_size)
    with torch.no_grad():
        origin.model.eval()(*origin.inputs)
    return [tuple(value.shape) for value in origin.inputs]


def test_networks_of_torchvision_come_with_inputs_that_they_take() -> None:
    assert shapes("torchvision:resnet18", 64) == [(1, 3, 64, 64)]
    assert open_network("torchvision:inception_v3", {}).inputs[0].shape == (1, 3, 299, 299)
    assert shapes("torchvision:r3d_18", 32) == [(1, 3, 16, 32, 32)]
    assert open_network("torchvision:resnet18", {"num_classes": 7}).model.fc.out_features == 7


def test_of_a_detector_the_backbone_is_looked_at_and_that_is_said() -> None:
    origin = open_network("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", {}, 64)
    assert "backbone" in origin.note
    assert "fpn" in dict(origin.model.named_children())


def test_networks_of_timm_come_with_inputs_that_they_take() -> None:
    pytest.importorskip("timm")
    assert shapes("timm:resnet10t", 64, in_chans=1) == [(1, 1, 64, 64)]
    assert shapes("timm:vit_tiny_patch16_224", 32) == [(1, 3, 32, 32)]


def test_networks_of_transformers_come_with_inputs_that_they_take() -> None:
    pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    assert shapes("transformers:BertConfig", **small) == [(1, 16)]
    assert shapes("transformers:ViTConfig", 32, **small) == [(1, 3, 32, 32)]
    encoder_decoder = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4}
    assert shapes("transformers:T5Config", **encoder_decoder) == [(1, 16), (1, 16)]


FILE = """
from neighbour import width
import torch
from torch import nn

def build(depth: int = 1):
    return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

def with_inputs():
    return nn.Conv1d(2, 3, 3), (torch.zeros(1, 2, 9),)

def number():
    return 3

def fails():
    raise ValueError("no luck")

class Net(nn.Embedding):
    def __init__(self):
        super().__init__(10, 4)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("width = 5\n", encoding="utf-8")
    path = tmp_path / "nets.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_file_of_ones_own_is_run_and_its_factory_called(file: Path) -> None:
    assert shapes(f"{file}:build", depth=3) == [(1, 5)]
    assert shapes(f"{file}:with_inputs") == [(1, 2, 9)]
    assert shapes(f"{file}:Net") == [(1, 16)]
    origin = open_network(f"{file}:build", {})
    assert isinstance(origin.model, nn.Sequential)
    assert origin.note == f"{file} was run."


MODERN = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Widths:
    inner: int = 4
    outer: int = 3

def build():
    return nn.Linear(Widths().inner, Widths().outer)
"""


def test_a_file_can_hold_whatever_looks_for_its_own_module(tmp_path: Path) -> None:
    """A dataclass with annotations that are texts does."""
    before = set(sys.modules)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "my.nets.py"
        path.write_text(MODERN, encoding="utf-8")
        assert shapes(f"{path}:build") == [(1, 4)]
    new = [name for name in set(sys.modules) - before if name.startswith("_residua_file_my_nets_")]
    assert len(new) == 2, "files of one name in different folders stand beside each other"
    path.write_text(MODERN + "raise ValueError", encoding="utf-8")
    with pytest.raises(RequestError, match="ValueError"):
        open_network(f"{path}:build", {})
    assert sum(name in sys.modules for name in new) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision:resnet19", ["resnet19", "'resnet18'"]),
        ("timm:resnt50", ["resnt50", "'resnet50'"]),
        ("transformers:BartKonfig", ["BartKonfig", "'BartConfig'"]),
        ("torchvison:resnet18", ["torchvison", "'torchvision'"]),
        ("resnet21", ["resnet21", "'resnet20'"]),
        ("nowhere.py:build", ["There is no file nowhere.py", "FILE.py:FACTORY"]),
        ("{file}", ["is a file", "{file}:FACTORY"]),
        ("{file}:built", ["built", "'build'"]),
        ("{file}:number", ["gives int"]),
        ("{file}:fails", ["no luck"]),
    ],
)
def test_a_wrong_name_is_answered_with_what_is_there(file: Path, name: str, words: list[str]) -> None:
    if name.startswith(("timm", "transformers")):
        pytest.importorskip(name.partition(":")[0])
    with pytest.raises(RequestError) as error:
        open_network(name.format(file=file), {})
    assert all(word.format(file=file) in str(error.value) for word in words), error.value


def test_a_wrong_option_is_answered_with_the_right_ones(file: Path) -> None:
    with pytest.raises(RequestError, match="'depth'"):
        open_network(f"{file}:build", {"dept": 2})


def test_an_option_that_transformers_would_forget_is_refused() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(RequestError, match="'num_hidden_layers'"):
        open_network("transformers:BertConfig", {"num_hiden_layers": 2})


def test_a_file_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"bad\.py cannot be run: ModuleNotFoundError"):
        open_network(f"{tmp_path / 'bad.py'}:build", {})


def test_a_missing_library_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    loaded = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return loaded(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(RequestError, match="pip install timm"):
        open_network("timm:resnet18", {})
