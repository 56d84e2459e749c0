"""Weights of other libraries and our own: equal outputs, equal bytes, what is kept, what is refused; downloads; fine-tuning."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from peers import close, in_float64
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from toy_runs import one_thread  # noqa: F401
from trainings import Stop, final_bytes, stopped, train, write_images

import residua
from residua import naming, weights
from residua.errors import RequestError
from residua.models import create_model
from residua.models.resnet import resnet
from residua.network import Network

KINDS = {"basic": (BasicBlock, "basic"), "bottleneck": (Bottleneck, "3x3")}


def small(kind: str = "3x3", classes: int = 5, channels: int = 3, stem: str = "imagenet", width: int = 8) -> Network:
    """A ResNet of four stages of 2, 1, 1 and 1 units."""
    return resnet((2, 1, 1, 1), width, kind, shortcut="B", stem=stem, in_channels=channels, num_classes=classes)


def with_statistics(model: nn.Module) -> nn.Module:
    """The model with batch statistics that are not the initial ones, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            values = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(values + 0.5 if name.endswith("running_var") else values - 0.5)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
    return model.eval()


def equal_bytes(first: Path, second: Path) -> bool:
    return hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def same_state(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -------------------------------------------------------------------------------------------------- equal to other libraries


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_saved_weights_are_torchvisions_with_equal_outputs_and_come_back_in_equal_bytes(name: str, tmp_path: Path) -> None:
    with in_float64():
        ours = with_statistics(create_model(name, num_classes=7))
        theirs = torchvision.models.get_model(name, num_classes=7)
        again = create_model(name, num_classes=7)
    file = weights.save(ours, tmp_path / "theirs.safetensors", layout="torchvision")
    theirs.load_state_dict(load_file(file))
    report = weights.load(again, file)
    assert (report.taken, report.layout, report.fresh, report.adapted) == (report.total, "torchvision/timm", {}, {})
    assert same_state(ours, again)
    weights.save(ours, tmp_path / "a.safetensors")
    weights.save(again, tmp_path / "b.safetensors")
    assert equal_bytes(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        close(ours(x), theirs.eval()(x), 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_torchvision_gives_its_outputs(kind: str) -> None:
    block, ours_kind = KINDS[kind]
    with in_float64():
        theirs = with_statistics(TorchvisionResNet(block, [2, 1, 1, 1], num_classes=5))
        ours = small(ours_kind, width=64)
    report = weights.load(ours, theirs.state_dict())
    assert report.taken == len(theirs.state_dict())
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        close(ours.eval()(x), theirs(x), 1e-9)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("resnet18", "resnet18"), ("resnet34", "resnet34"), ("resnet50", "resnet50"), ("resnet101", "resnet101"),
        ("resnet152", "resnet152"), ("wrn_50_2", "wide_resnet50_2"), ("wrn_101_2", "wide_resnet101_2"),
        ("vgg11", "vgg11"), ("vgg13", "vgg13"), ("vgg16", "vgg16"), ("vgg19", "vgg19"),
        ("vgg11_bn", "vgg11_bn"), ("vgg13_bn", "vgg13_bn"), ("vgg16_bn", "vgg16_bn"), ("vgg19_bn", "vgg19_bn"),
        ("resnext50_32x4d", "resnext50_32x4d"), ("resnext101_64x4d", "resnext101_64x4d"),
        ("densenet121", "densenet121"), ("densenet169", "densenet169"), ("densenet201", "densenet201"),
        ("densenet161", "densenet161"), ("alexnet", "alexnet"),
    ],
)  # fmt: skip
def test_the_names_are_torchvisions_one_for_one_and_in_its_order(name: str, peer: str) -> None:
    with torch.device("meta"):
        options = {"variant": "torchvision"} if name == "alexnet" else {}
        ours, theirs = create_model(name, **options).state_dict(), torchvision.models.get_model(peer).state_dict()
    chosen, left = naming.naming_for("torchvision", ours)
    assert not left
    assert [chosen.theirs(key) for key in ours] == list(theirs)
    assert [tensor.shape for tensor in ours.values()] == [tensor.shape for tensor in theirs.values()]
    found, back = naming.naming_of(theirs, ours)
    assert back == {key: chosen.theirs(key) for key in ours}
    assert found == chosen


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_timm_reads_what_is_saved_for_it_and_gives_equal_outputs(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is a test dependency only")
    with in_float64():
        ours = with_statistics(create_model(name, num_classes=7))
        theirs = timm.create_model(name, num_classes=7)
    file = weights.save(ours, tmp_path / "theirs.safetensors", layout="timm")
    theirs.load_state_dict(load_file(file))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        close(ours(x), theirs.eval()(x), 1e-9)
    for tensor in theirs.state_dict().values():
        tensor.mul_(2)
    again = create_model(name, num_classes=7).double()
    assert weights.load(again, theirs.state_dict()).taken == len(theirs.state_dict())
    assert torch.equal(again.stem.conv.weight, 2 * ours.stem.conv.weight)


@pytest.mark.parametrize("stride_on", ["3x3", "1x1"])
def test_transformers_reads_what_is_saved_for_it_and_gives_equal_outputs(stride_on: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is no dependency; below its names by hand")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[2, 1, 1, 1], num_labels=5,
        downsample_in_bottleneck=stride_on == "1x1",
    )  # fmt: skip
    theirs = transformers.ResNetForImageClassification(config).double().eval()
    ours = with_statistics(small(stride_on).double())
    theirs.load_state_dict(load_file(weights.save(ours, tmp_path / "theirs.safetensors", layout="transformers")))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        close(ours(x), theirs(x).logits, 1e-9)


def test_the_names_of_transformers_are_these(tmp_path: Path) -> None:
    """As the modules of its modeling_resnet.py are called."""
    wanted = {
        "stem.conv.weight": "resnet.embedder.embedder.convolution.weight",
        "stem.norm.running_var": "resnet.embedder.embedder.normalization.running_var",
        "stages.0.0.branch.conv1.weight": "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        "stages.0.1.branch.norm3.bias": "resnet.encoder.stages.0.layers.1.layer.2.normalization.bias",
        "stages.3.0.shortcut.conv.weight": "resnet.encoder.stages.3.layers.0.shortcut.convolution.weight",
        "stages.3.0.shortcut.norm.weight": "resnet.encoder.stages.3.layers.0.shortcut.normalization.weight",
        "head.classifier.weight": "classifier.1.weight",
        "head.classifier.bias": "classifier.1.bias",
    }
    ours = with_statistics(small())
    file = weights.save(ours, tmp_path / "w.safetensors", layout="transformers")
    stored = load_file(file)
    for key, theirs in wanted.items():
        assert torch.equal(stored[theirs], ours.state_dict()[key])
    assert len(stored) == len(ours.state_dict())
    again = small()
    assert weights.load(again, file).layout == "transformers"
    assert same_state(ours, again)


# --------------------------------------------------------------------------------------------------------- what is kept


def test_another_number_of_classes_keeps_all_but_the_classifier(tmp_path: Path) -> None:
    file = weights.save(with_statistics(small(classes=5)), tmp_path / "w.safetensors", layout="torchvision")
    model = small(classes=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = weights.load(model, file)
    reason = "5 classes there, 3 here"
    assert report.fresh == {"head.classifier.weight": reason, "head.classifier.bias": reason}
    stored = load_file(file)
    for key, value in model.state_dict().items():
        if key.startswith("head."):
            assert torch.equal(value, before[key])
        else:
            assert torch.equal(value, stored[naming.Naming(("torchvision",), "resnet", naming.RESNET).theirs(key) or ""])
    assert f"{len(before) - 2} of {len(before)} tensors" in report.sentence()
    assert "re-initialised: head.classifier.weight, head.classifier.bias (5 classes there, 3 here)" in report.sentence()


def test_one_channel_takes_the_sum_over_the_channels_and_answers_a_grey_image_as_before() -> None:
    with in_float64():
        colour, grey = with_statistics(small()), small(channels=1)
    report = weights.load(grey, colour.state_dict())
    assert report.adapted == {"stem.conv.weight": "summed over 3 channels"}
    assert not report.fresh
    x = torch.randn(2, 1, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        close(grey.eval()(x), colour(x.expand(-1, 3, -1, -1)), 1e-12)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"channels": 4}, "8x3x7x7 there, 8x4x7x7 here"),
        ({"stem": "small"}, "8x3x7x7 there, 8x3x3x3 here"),
        ({"stem": "small", "channels": 1}, "8x3x7x7 there, 8x1x3x3 here"),
    ],
)
def test_another_first_layer_begins_anew_and_the_rest_is_kept(changes: dict[str, Any], reason: str) -> None:
    source, model = with_statistics(small()), small(**changes)
    own = model.stem.conv.weight.clone()
    report = weights.load(model, source.state_dict())
    assert report.fresh == {"stem.conv.weight": reason}
    assert torch.equal(model.stem.conv.weight, own)
    assert torch.equal(model.stem.norm.running_var, source.state_dict()["stem.norm.running_var"])


def test_weights_without_a_classifier_or_counters_are_taken() -> None:
    source, model = with_statistics(small()), small()
    tensors = {k: v for k, v in source.state_dict().items() if "classifier" not in k and "num_batches" not in k}
    report = weights.load(model, tensors)
    assert set(report.fresh) == {"head.classifier.weight", "head.classifier.bias"}
    assert report.taken == len(tensors)


def test_half_precision_is_converted() -> None:
    source, model = with_statistics(small()), small()
    weights.load(model, {key: value.half() for key, value in source.state_dict().items()})
    assert model.stem.conv.weight.dtype == torch.float32
    assert torch.equal(model.stem.conv.weight, source.stem.conv.weight.half().float())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_training_scripts_pth_is_read(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    source, model = with_statistics(small()), small()
    tensors = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({wrapper: tensors, "epoch": 3} if wrapper else tensors, tmp_path / "w.pth")
    assert weights.load(model, tmp_path / "w.pth").taken == len(tensors)
    assert same_state(source, model)


def test_the_older_names_in_torchvisions_published_densenets_are_read() -> None:
    """The files that it publishes say norm.1 and conv.2 for norm1 and conv2; it renames them itself when it loads them."""
    source, model = with_statistics(create_model("densenet121")), create_model("densenet121")
    chosen, _ = naming.naming_for("torchvision", source.state_dict())
    names = {key: chosen.theirs(key) or "" for key in source.state_dict()}
    old = {key: re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name) for key, name in names.items()}
    assert old["stages.1.1.branch.norm2.weight"] == "features.denseblock2.denselayer1.norm.2.weight"
    weights.load(model, {old[key]: value for key, value in source.state_dict().items()})
    assert same_state(source, model)


def test_our_cifar_and_plain_networks_are_saved_in_torchvisions_names(tmp_path: Path) -> None:
    for name in ("resnet20", "plain20"):
        file = weights.save(create_model(name), tmp_path / f"{name}.safetensors", layout="torchvision")
        assert "layer3.2.conv2.weight" in load_file(file)
        assert weights.load(create_model(name), file).taken > 0


# ----------------------------------------------------------------------------------------------------------- what is refused


def refused(model: nn.Module, source: Any, **options: Any) -> str:
    """The message with which a load is refused; the model must be as before."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RequestError) as caught:
        weights.load(model, source, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "peer", "words"),
    [
        ("resnet18", "resnet34", ("they look like resnet34", "this is resnet18", "layer1.2.conv1.weight is unexpected")),
        ("resnet34", "resnet18", ("they look like resnet18", "layer1.2.conv1.weight is missing")),
        ("resnet34", "resnet50", ("they look like resnet50", "layer1.0.conv1.weight has the shape 64x64x1x1 instead")),
        ("resnet50", "wide_resnet50_2", ("they look like wrn_50_2",)),
        ("densenet121", "densenet169", ("they look like densenet169", "features.denseblock3.denselayer25.conv1.weight is")),
        ("vgg16_bn", "vgg13_bn", ("they look like vgg13_bn",)),
        ("plain18", "resnet18", ("they look like resnet18", "layer2.0.downsample.0.weight is unexpected")),
    ],
)  # fmt: skip
def test_another_network_is_refused_by_the_name_of_what_it_looks_like(model: str, peer: str, words: tuple[str, ...]) -> None:
    with torch.device("meta"):
        network, tensors = create_model(model, num_classes=3), torchvision.models.get_model(peer).state_dict()
    with pytest.raises(RequestError) as caught:
        weights.load(network, tensors, name=model)
    for part in words:
        assert part in str(caught.value)


def test_without_a_name_the_network_is_told_by_what_it_looks_like() -> None:
    with torch.device("meta"):
        tensors = torchvision.models.resnet34().state_dict()
        network = create_model("resnet18", in_channels=1, num_classes=10)
    with pytest.raises(RequestError, match="this looks like resnet18"):
        weights.load(network, tensors)


def test_a_network_of_no_catalogue_is_described() -> None:
    said = refused(small("basic"), small("3x3").state_dict())
    assert "none of the catalogue, with stages of 2, 1, 1, 1 bottleneck units" in said
    assert "none of the catalogue, with stages of 2, 1, 1, 1 basic units" in said


def test_a_misspelt_tensor_is_told_with_the_nearest_name() -> None:
    tensors = dict(small().state_dict())
    tensors["stages.1.0.branch.conv_1.weight"] = tensors.pop("stages.1.0.branch.conv1.weight")
    said = refused(small(), tensors)
    assert "2 tensors differ" in said
    assert "stages.1.0.branch.conv1.weight is missing (nearest: stages.1.0.branch.conv_1.weight)" in said
    assert "stages.1.0.branch.conv_1.weight is unexpected (nearest: stages.1.0.branch.conv1.weight)" in said


def test_tensors_of_something_else_are_told_by_their_names() -> None:
    said = refused(small(), {"encoder.layer.0.attention.weight": torch.zeros(3, 3)})
    assert "no known layout" in said
    assert "encoder.layer.0.attention.weight" in said


def test_the_place_of_the_stride_travels_with_the_file_and_is_held_to(tmp_path: Path) -> None:
    file = weights.save(small("1x1"), tmp_path / "w.safetensors")
    assert weights.load(small("1x1"), file).notes == ()
    said = refused(small("3x3"), file)
    assert "strides on the 1x1" in said
    assert "--set model.stride_on=1x1" in said


@pytest.mark.parametrize("layout", ["torchvision", "timm"])
def test_a_file_that_its_library_would_read_as_another_function_is_not_written(layout: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="another function would come out"):
        weights.save(small("1x1"), tmp_path / "w.safetensors", layout=layout)
    assert weights.save(small("3x3"), tmp_path / "w.safetensors", layout=layout).is_file()


def test_a_run_gives_its_weights_to_the_same_network_whatever_its_data_decided(tmp_path: Path) -> None:
    settings = {
        "model.name": "speed_resnet",
        "model.widths": [8, 16, 16],
        "batch_size": 64,
        "steps": 1,
        "plan": "fp32",
        "data.image_size": 32,
    }
    first = residua.train("digits", out=tmp_path / "a", set=settings)
    assert first.recipe.model.options["in_channels"] == 1
    second = residua.train("digits", out=tmp_path / "b", set={**settings, "model.weights": str(first.path)})
    assert second.manifest["weights"]["taken"] == second.manifest["weights"]["total"]


def test_the_config_beside_a_file_of_transformers_says_where_it_strides(tmp_path: Path) -> None:
    stored = load_file(weights.save(small("1x1"), tmp_path / "own.safetensors", layout="transformers"))
    save_file(stored, tmp_path / "model.safetensors")
    for bottleneck, fits, other in ((True, "1x1", "3x3"), (False, "3x3", "1x1")):
        config = {"model_type": "resnet", "downsample_in_bottleneck": bottleneck}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert weights.load(small(fits), tmp_path).taken == len(stored)
        assert f"strides on the {fits}" in refused(small(other), tmp_path)


def test_where_nothing_says_it_a_network_that_strides_on_the_1x1_is_told() -> None:
    tensors = small("1x1").state_dict()
    assert "Nothing in the given state dict says" in weights.load(small("1x1"), tensors).sentence()
    assert weights.load(small("3x3"), tensors).notes == ()


class Evil:
    """What a file made for the purpose could hold."""

    def __reduce__(self) -> Any:
        return (print, ("this file ran code",))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "evil.bin"):
        said = refused(small(), tmp_path / name)
        assert "holds more than tensors" in said
        assert "store the tensors alone: torch.save(model.state_dict(), PATH)" in said
    assert "ran code" not in capsys.readouterr().out


def test_pth_is_refused_before_torch_2_10_and_safetensors_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_statistics(small())
    torch.save(source.state_dict(), tmp_path / "w.pth")
    weights.save(source, tmp_path / "w.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    said = refused(small(), tmp_path / "w.pth")
    assert "from torch 2.10 on (this is torch 2.9.1+cpu)" in said
    assert weights.load(small(), tmp_path / "w.safetensors").taken


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_file_is_refused_by_name(suffix: str, damage: str, tmp_path: Path) -> None:
    file = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        weights.save(small(), file)
    else:
        torch.save(small().state_dict(), file)
    contents = file.read_bytes()
    file.write_bytes({"cut": contents[: len(contents) // 2], "noise": b"\x13" * 4000, "empty": b""}[damage])
    said = refused(small(), file)
    assert str(file) in said
    assert "is damaged" in said


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing.safetensors", "There is no file nothing.safetensors"),
        ("nothing", "There is no run directory or file nothing"),
        ("mxnet:resnet50", "no origin of published weights called 'mxnet'"),
        ("timm:resnet50", "NETWORK.TAG"),
        ("torchvision:ResNet50_Weights.V9", "torchvision has no weights 'ResNet50_Weights.V9'"),
        ("torchvision:ResNot_Weights.V1", "torchvision has no weights"),
        ("torchvision:IMAGENET1K_V1", "torchvision has no network"),
    ],
)
def test_weights_that_do_not_exist_are_refused_by_name(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(create_model("resnet20"), source, name="resnet20")


def test_a_run_that_is_near_what_was_typed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "flowers"
    run.mkdir(parents=True)
    (run / "manifest.json").write_text("{}")
    for source in ("flowers", "runs/flower"):
        assert f"run directory or file {source}. Did you mean runs/flowers? Weights are" in refused(small(), source)


def test_a_folder_or_file_that_is_no_weights_is_refused(tmp_path: Path) -> None:
    assert "neither a run directory" in refused(small(), tmp_path)
    (tmp_path / "w.txt").write_text("hello")
    assert "none of .safetensors" in refused(small(), tmp_path / "w.txt")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    assert "holds no tensors by name, neither at its top nor under one of state_dict" in refused(small(), tmp_path / "w.pth")
    assert "holds no tensors" in refused(small(), {})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_tensor_and_file(suffix: str, value: float, tmp_path: Path) -> None:
    model, file = small(), tmp_path / f"w{suffix}"
    tensors = {key: tensor.clone() for key, tensor in small().state_dict().items()}
    tensors["stages.1.0.branch.norm1.running_var"][2] = value
    if suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    said = refused(model, file)
    assert str(file) in said
    assert "hold NaN or infinities, in stages.1.0.branch.norm1.running_var:" in said
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_saving_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no layout of weights called 'torchvison'\. Did you mean 'torchvision'"):
        weights.save(small(), tmp_path / "w.safetensors", layout="torchvison")
    with pytest.raises(RequestError, match=r"saved as \.safetensors"):
        weights.save(small(), tmp_path / "w.pth")
    with pytest.raises(RequestError, match="torchvision has no such network"):
        weights.save(create_model("resnet20", start="rezero"), tmp_path / "w.safetensors", layout="torchvision")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        weights.save(small(), tmp_path / "file" / "w.safetensors")


# ------------------------------------------------------------------------------------------------------------- downloads


class Library(BaseHTTPRequestHandler):
    """Serves the files of `files`; with headers as the hub has them, for paths ORG/NAME/resolve/REVISION/FILE."""

    files: Mapping[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        """The headers only."""
        self.answer(False)

    def do_GET(self) -> None:
        """The file."""
        self.answer(True)

    def answer(self, whole: bool) -> None:
        """Answers with the file or with 404."""
        self.asked.append(f"{self.command} {self.path}")
        contents = self.files.get(self.path)
        self.send_response(200 if contents is not None else 404)
        if contents is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "/known/" in self.path else "RepoNotFound")
        else:
            self.send_header("X-Repo-Commit", "0" * 40)
            kind = hashlib.sha256 if self.path.endswith(".safetensors") else hashlib.sha1  # as the hub does for large and small
            self.send_header("ETag", f'"{kind(contents).hexdigest()}"')
        self.send_header("Content-Length", str(len(contents or b"")))
        self.end_headers()
        if whole and contents:
            self.wfile.write(contents)

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def library() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A server on this machine: its address, its files by path, and what was asked of it."""
    files: dict[str, bytes] = {}
    asked: list[str] = []
    handler = type("Handler", (Library,), {"files": files, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", files, asked
        server.shutdown()
        thread.join()


@pytest.fixture
def published(
    library: tuple[str, dict[str, bytes], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, bytes], list[str], nn.Module]:
    """torchvision's ResNet-18 weights at a local address under a name with their hash: path, files, requests, the network."""
    address, files, asked = library
    source = with_statistics(torchvision.models.resnet18())
    torch.save(source.state_dict(), tmp_path / "served.pth")
    contents = (tmp_path / "served.pth").read_bytes()
    path = f"/resnet18-{hashlib.sha256(contents).hexdigest()[:8]}.pth"
    files[path] = contents
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value, "url", address + path)
    return path, files, asked, source


def test_torchvisions_weights_are_downloaded_once_checked_and_loaded(
    published: tuple[str, dict[str, bytes], list[str], nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _, asked, source = published
    model = create_model("resnet18", num_classes=10)
    report = weights.load(model, "torchvision:IMAGENET1K_V1", name="resnet18")
    assert report.where == "torchvision:IMAGENET1K_V1"
    assert set(report.fresh) == {"head.classifier.weight", "head.classifier.bias"}
    assert torch.equal(model.stages[3][1].branch.conv2.weight, source.state_dict()["layer4.1.conv2.weight"])
    for name in ("torchvision:IMAGENET1K_V1", "torchvision:DEFAULT", "torchvision:ResNet18_Weights.IMAGENET1K_V1"):
        weights.load(model, name)
    assert asked == [f"GET {path}"], "the cache serves the others; without a name the shapes tell the network"
    assert capsys.readouterr().out == "", "stdout is for results"


def test_a_download_with_another_hash_is_not_kept(
    published: tuple[str, dict[str, bytes], list[str], nn.Module], tmp_path: Path
) -> None:
    path, files, _, _ = published
    files[path] = files[path][:-1] + b"!"
    said = refused(create_model("resnet18"), "torchvision:IMAGENET1K_V1")
    assert "arrived damaged and was not kept" in said
    assert not list((tmp_path / "torch").rglob("*.pth"))


def test_a_damaged_file_in_torchs_cache_is_refused_by_its_place(
    published: tuple[str, dict[str, bytes], list[str], nn.Module], tmp_path: Path
) -> None:
    path, files, asked, _ = published
    cached = tmp_path / "torch" / "hub" / "checkpoints" / path[1:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(files[path][:1000])
    said = refused(create_model("resnet18"), "torchvision:IMAGENET1K_V1")
    assert f"{cached} is damaged" in said
    assert not asked


def test_without_a_connection_torchvisions_are_refused_with_the_place_for_the_file_and_taken_from_there(
    published: tuple[str, dict[str, bytes], list[str], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files, _, _ = published
    url = f"http://127.0.0.1:9{path}"  # nothing listens on the discard port
    monkeypatch.setattr(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    model = create_model("resnet18")
    said = refused(model, "torchvision:IMAGENET1K_V1")
    place = tmp_path / "torch" / "hub" / "checkpoints" / path[1:]
    assert f"fetch {url} elsewhere and put it at {place}" in said
    place.write_bytes(files[path])
    assert weights.load(model, "torchvision:IMAGENET1K_V1").taken == len(model.state_dict())


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when the library is imported."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def hub(
    library: tuple[str, dict[str, bytes], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, bytes], list[str], Path]:
    """The hub at a local address: its files, what was asked, and the cache."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="timm, a test dependency, brings it")
    address, files, asked = library
    point_to(address, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return files, asked, tmp_path / "hub"


def served(model: nn.Module, layout: str, folder: Path) -> bytes:
    """The file that the hub would hold: without what our own files say beside the tensors."""
    stored = load_file(weights.save(model, folder / "own.safetensors", layout=layout))
    save_file(stored, folder / "served.safetensors")
    return (folder / "served.safetensors").read_bytes()


def test_weights_of_the_hub_are_downloaded_once_and_loaded(hub: tuple[dict[str, bytes], list[str], Path], tmp_path: Path) -> None:
    files, asked, _ = hub
    source = with_statistics(small("1x1"))
    files["/known/net/resolve/main/model.safetensors"] = served(source, "transformers", tmp_path)
    files["/known/net/resolve/main/config.json"] = b'{"model_type": "resnet", "downsample_in_bottleneck": true}'
    model = small("1x1")
    report = weights.load(model, "hf:known/net")
    assert (report.layout, report.notes) == ("transformers", ())
    assert same_state(source, model)
    assert "strides on the 1x1" in refused(small("3x3"), "hf:known/net")
    assert sum(line.startswith("GET") and line.endswith("model.safetensors") for line in asked) == 1


def test_a_damaged_file_in_the_hubs_cache_is_refused_by_its_place(
    hub: tuple[dict[str, bytes], list[str], Path], tmp_path: Path
) -> None:
    files, _, cache = hub
    files["/known/net/resolve/main/model.safetensors"] = served(small(), "transformers", tmp_path)
    weights.load(small(), "hf:known/net")
    (blob,) = (path for path in cache.rglob("blobs/*") if len(path.name) == 64)
    contents = bytearray(blob.read_bytes())
    contents[-1] ^= 1
    blob.write_bytes(contents)
    assert "is damaged: its SHA-256 does not begin with" in refused(small(), "hf:known/net")


def test_timms_weights_come_from_the_hub(hub: tuple[dict[str, bytes], list[str], Path], tmp_path: Path) -> None:
    files, _, _ = hub
    source = with_statistics(small("basic"))
    files["/timm/small.a1_in1k/resolve/main/model.safetensors"] = served(source, "timm", tmp_path)
    files["/timm/small.a1_in1k/resolve/main/config.json"] = b'{"architecture": "small"}'
    model = small("basic")
    weights.load(model, "timm:small.a1_in1k")
    assert same_state(source, model)


def test_the_hubs_refusals_are_told(hub: tuple[dict[str, bytes], list[str], Path]) -> None:
    files, _, _ = hub
    files["/known/empty/resolve/main/README.md"] = b"nothing here"
    assert "no weights that are read here" in refused(small(), "hf:known/empty")
    assert "There is no hf:nobody/nothing" in refused(small(), "hf:nobody/nothing")
    assert "is not a name of the hub" in refused(small(), "hf:a/b/c/d")


@pytest.mark.parametrize("why", ["switch", pytest.param("nobody listens", marks=pytest.mark.slow)])  # it tries for 23 s
def test_without_a_connection_the_hubs_are_refused_with_the_place_and_taken_from_a_folder(
    why: str, hub: tuple[dict[str, bytes], list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "switch":  # HF_HUB_OFFLINE=1
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        point_to("http://127.0.0.1:9", monkeypatch)
    said = refused(small(), "hf:microsoft/resnet-50")
    assert "hf download microsoft/resnet-50" in said
    assert str(hub[2] / "models--microsoft--resnet-50") in said
    source = with_statistics(small())
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "model.safetensors").write_bytes(served(source, "transformers", tmp_path))
    model = small()
    weights.load(model, tmp_path / "copied")
    assert same_state(source, model)


def test_without_huggingface_hub_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "huggingface_hub, which is not installed" in refused(small(), "hf:microsoft/resnet-50")


# ------------------------------------------------------------------------------------------------------------ fine-tuning


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training images of two classes."""
    return write_images(tmp_path_factory.mktemp("data") / "images", {"dark": 12, "light": 12})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network for seven classes, in torchvision's names."""
    torch.manual_seed(3)
    source = with_statistics(create_model("cifar_resnet", depth=8, num_classes=7))
    return weights.save(source, tmp_path_factory.mktemp("weights") / "w.safetensors", layout="torchvision")


def checkpoint(run: residua.Run, step: int) -> dict[str, Tensor]:
    return load_file(run.checkpoints / f"step-{step:08d}" / "model.safetensors")


def test_a_run_starts_from_the_weights_and_tells_what_begins_anew(images: Path, trained: Path, tmp_path: Path) -> None:
    listener = Stop()
    run = train(images, tmp_path / "run", listener=listener, model__weights=str(trained), steps=1, optim__lr=1e-12)
    said = next(note for note in listener.notes if note.startswith("Weights: "))
    assert f"from {trained}" in said
    assert "re-initialised: head.classifier.weight, head.classifier.bias (7 classes there, 2 here)" in said
    assert run.manifest["weights"]["sentence"] == said
    assert run.manifest["weights"]["fresh"].keys() == {"head.classifier.weight", "head.classifier.bias"}
    begun, stored = checkpoint(run, 1), load_file(trained)
    torch.testing.assert_close(begun["stages.1.0.branch.conv2.weight"], stored["layer2.0.conv2.weight"], rtol=0, atol=1e-6)
    residua.evaluate(run)
    assert said in residua.write_report(run).read_text(encoding="utf-8").replace("\n", " ")


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "muon"])
def test_the_head_is_trained_first_and_the_rest_not_touched_in_a_bit(
    images: Path, trained: Path, tmp_path: Path, optimiser: str
) -> None:
    fields = {
        "model.weights": str(trained), "optim.name": optimiser, "optim.head_first": 0.5, "optim.weight_decay": 0.1,
        "model.stochastic_depth": 0.5, "average.decay": 0.9, "checkpoints.keep": 9, "checkpoints.seconds": 1e-6,
    }  # fmt: skip
    run = train(images, tmp_path / "run", **fields)
    stored = {naming.NAMINGS[1].ours(key): value for key, value in load_file(trained).items()}
    for step in (1, 4):
        found = checkpoint(run, step)
        for key, value in found.items():
            if not key.startswith("head."):
                assert torch.equal(value, stored[key]), f"{key} changed by step {step}"
    first, fourth, last = (checkpoint(run, step) for step in (1, 4, 8))
    assert not torch.equal(first["head.classifier.weight"], fourth["head.classifier.weight"])
    assert all(not torch.equal(last[key], fourth[key]) for key in last if key.endswith(("conv1.weight", "running_mean")))
    averaged = load_file(run.checkpoints / "step-00000004" / "average.safetensors")
    assert all(torch.equal(averaged[key], stored[key]) for key in averaged if not key.startswith("head."))


@pytest.mark.parametrize("optimiser", ["sgd", "adamw", "muon"])
def test_a_stop_in_either_part_or_between_changes_no_byte(images: Path, trained: Path, tmp_path: Path, optimiser: str) -> None:
    fields = {"model.weights": str(trained), "optim.name": optimiser, "optim.head_first": 0.5, "optim.layer_decay": 0.8,
              "model.dropout": 0.3, "model.stochastic_depth": 0.4, "average.decay": 0.9, "evaluations": 8}  # fmt: skip
    whole = final_bytes(train(images, tmp_path / "whole", **fields))
    for step in (2, 3, 4, 5, 7):
        stopped(images, tmp_path / "stopped", step, **fields)
    assert final_bytes(train(images, tmp_path / "stopped", **fields)) == whole


def test_all_of_a_run_may_train_only_the_head(images: Path, trained: Path, tmp_path: Path) -> None:
    run = train(images, tmp_path / "run", model__weights=str(trained), optim__head_first=1.0)
    stored = {naming.NAMINGS[1].ours(key): value for key, value in load_file(trained).items()}
    assert all(torch.equal(value, stored[key]) for key, value in checkpoint(run, 8).items() if not key.startswith("head."))


def test_a_head_on_random_features_is_told(images: Path, trained: Path, tmp_path: Path) -> None:
    listener = Stop()
    train(images, tmp_path / "a", listener=listener, steps=2, optim__head_first=0.5)
    assert any("random features" in note for note in listener.notes)
    listener = Stop()
    fields = {"model.weights": str(trained), "model.stem": "imagenet", "steps": 2, "optim.head_first": 0.5}
    train(images, tmp_path / "b", listener=listener, **fields)
    assert any("while stem.conv.weight still has its random values" in note for note in listener.notes)


def test_a_continued_run_needs_no_weights_file_once_it_has_a_checkpoint(images: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(trained.read_bytes())
    whole = final_bytes(train(images, tmp_path / "whole", model__weights=str(copy)))
    stopped(images, tmp_path / "run", 3, model__weights=str(copy))
    copy.unlink()
    assert final_bytes(train(images, tmp_path / "run", model__weights=str(copy))) == whole


def test_before_the_first_checkpoint_changed_weights_are_refused(images: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "w.safetensors"
    copy.write_bytes(trained.read_bytes())
    run = train(images, tmp_path / "run", model__weights=str(copy), steps=1)
    for path in run.checkpoints.iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    weights.save(create_model("cifar_resnet", depth=8), copy)
    with pytest.raises(RequestError, match=r"have changed since the run .* began from them.*Put the former ones back"):
        train(images, tmp_path / "run", model__weights=str(copy), steps=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.safetensors", "There is no file missing.safetensors"),
        ("other", "they look like resnet20 or plain20, and this is cifar_resnet"),
    ],
)
def test_wrong_weights_are_refused_before_the_data_is_opened(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights.save(create_model("resnet20"), tmp_path / "other.safetensors")
    file = "other.safetensors" if name == "other" else name
    with pytest.raises(RequestError, match=words):
        train("no-such-data", tmp_path / "run", model__weights=file)
    assert not (tmp_path / "run").exists()


def test_a_run_gives_its_weights(images: Path, tmp_path: Path) -> None:
    first = train(images, tmp_path / "first", average__decay=0.9)
    second = train(images, tmp_path / "second", model__weights=str(first.path), steps=1, optim__lr=1e-12)
    assert second.manifest["weights"]["layout"] == "residua"
    assert second.manifest["weights"]["fresh"] == {}
    model = create_model("cifar_resnet", depth=8, num_classes=2)
    weights.load(model, first.path)
    assert same_state(model.eval(), residua.load(first)), "the averaged weights, as residua.load gives them"


@pytest.mark.parametrize(
    ("names", "rows", "said"),
    [
        (("dark", "light"), {0: 0, 1: 1}, None),
        (("also-light", "dark", "light"), {1: 0, 2: 1}, "rows of 2 of 3 classes by name, 1 anew"),
        (("light", "zebra"), {0: 1}, "rows of 1 of 2 classes by name, 1 anew"),
        (("ape", "bee"), {}, "none of the 2 classes has the name of one of the 2 there"),
    ],
)
def test_a_run_gives_the_rows_of_its_classifier_to_the_classes_of_the_same_name(
    names: tuple[str, ...], rows: dict[int, int], said: str | None, images: Path, tmp_path: Path
) -> None:
    first = train(images, tmp_path / "first", steps=2)
    others = write_images(tmp_path / "others", dict.fromkeys(names, 8))
    listener = Stop()
    tiny = {"steps": 1, "optim__lr": 1e-12, "seed": 5}
    second = train(others, tmp_path / "second", listener=listener, model__weights=str(first.path), **tiny)
    anew = train(others, tmp_path / "anew", **tiny)
    there, here, fresh = (checkpoint(run, run.manifest["total_steps"]) for run in (first, second, anew))
    for tensor in ("head.classifier.weight", "head.classifier.bias"):
        wanted = torch.stack([there[tensor][rows[row]] if row in rows else fresh[tensor][row] for row in range(len(names))])
        torch.testing.assert_close(here[tensor], wanted, rtol=0, atol=1e-6)
    sentence = next(note for note in listener.notes if note.startswith("Weights: "))
    assert ("classes" in sentence) == (said is not None)
    assert said is None or f"head.classifier.weight, head.classifier.bias ({said})" in sentence


@pytest.mark.usefixtures("published")
def test_published_weights_by_name_train(images: Path, tmp_path: Path) -> None:
    fields = {"model.name": "resnet18", "model.weights": "torchvision:IMAGENET1K_V1", "steps": 1, "model.stem": "imagenet"}
    run = residua.train(str(images), out=tmp_path / "run", set={**fields, "plan": "fp32", "batch_size": 4, "evaluations": 1})
    assert run.manifest["weights"]["where"] == "torchvision:IMAGENET1K_V1"
    assert run.manifest["weights"]["taken"] == run.manifest["weights"]["total"] - 2
