"""Networks by name from wherever they come: our catalogue, torchvision, timm, transformers, or a file of one's own. Layer 3.

A name without a colon is one of our catalogue. `torchvision:NAME`, `timm:NAME` and `transformers:CONFIG_CLASS` are built without
published weights and without the network; `FILE.py:FACTORY` runs that file and calls the function (or class) in it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from residua.errors import RequestError, unknown
from residua.models import CATALOG, create_model
from residua.published import Published

__all__ = ["ORIGINS", "Origin", "open_network"]

TOKENS = 16  # the length of the sequence that a network of words is shown


@dataclass(frozen=True)
class Origin:
    """A network with the inputs that it is looked at with (a batch of one, or what a file gives), what a reader should know of
    where it is from (`note`), and what can be done if it does not take these inputs (`advice`)."""

    name: str
    model: nn.Module
    inputs: tuple[Any, ...]
    note: str = ""
    advice: str = "Of a network by name, --image-size (image_size) sets the side of the images."


def open_network(name: str, options: Mapping[str, Any], image_size: int | None = None) -> Origin:
    """The network called `name`, built with `options`, and inputs of its usual size or of `image_size` pixels.

    Raises `RequestError` with the nearest names where there is none, and with what to install where a library is missing.
    """
    where, colon, what = name.rpartition(":")
    if not colon and name.endswith(".py"):
        raise RequestError(f"{name} is a file. Name the function or class in it that gives the network: {name}:FACTORY.")
    if not colon:
        return _ours(name, options, image_size)
    if where.endswith(".py"):
        return _from_file(name, Path(where), what, options, image_size)
    if where not in ORIGINS:
        raise unknown("origin of networks", where, ORIGINS, "A file of your own: FILE.py:FACTORY.")
    return ORIGINS[where](name, what, options, image_size)


def _ours(name: str, options: Mapping[str, Any], image_size: int | None) -> Origin:
    entry = CATALOG.get(name)
    builder, arguments = (entry.builder, entry.arguments) if isinstance(entry, Published) else (entry, {})
    defaults = {parameter.name: parameter.default for parameter in signature(builder).parameters.values()}
    if image_size and "image_size" in defaults:  # a network that takes one size only
        options = {"image_size": image_size, **options}
    network = create_model(name, **options)
    built = {**defaults, **arguments, **options}
    side = image_size or built.get("image_size") or (entry.input_shape[-1] if isinstance(entry, Published) else 32)
    return Origin(name, network, (torch.zeros(1, int(built["in_channels"]), int(side), int(side)),))


def _built(name: str, builder: Callable[..., Any], options: Mapping[str, Any], **fixed: Any) -> nn.Module:
    """What a builder of another library gives; `fixed` are arguments that it gets if it knows them."""
    known = signature(builder).parameters
    every = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in known.values())
    if not every and (wrong := next((option for option in options if option not in known), None)):
        raise unknown(f"option of {name}", wrong, known)
    try:
        return builder(**{key: value for key, value in fixed.items() if key in known}, **options)
    except Exception as error:
        raise _unbuilt(name, options, error) from error


def _unbuilt(name: str, options: Mapping[str, Any], error: Exception) -> RequestError:
    given = f" with {', '.join(f'{key}={value}' for key, value in options.items())}" if options else ""
    lines = str(error).splitlines() or [""]
    return RequestError(f"{name} cannot be built{given}: {type(error).__name__}: {lines[0]}")


def _library(name: str, wanted: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise RequestError(
            f"{wanted} needs the library {name}, which is not installed. Install it with: pip install {name}"
        ) from None


def _torchvision(name: str, what: str, options: Mapping[str, Any], image_size: int | None) -> Origin:
    models = _library("torchvision.models", name)
    if what not in models.list_models():
        raise unknown("network of torchvision", what, models.list_models())
    builder = models.get_model_builder(what)
    if what in ("inception_v3", "googlenet"):  # a warning, and minutes of drawing, without it
        options = {"init_weights": False, **options}
    model = _built(name, builder, options, weights=None, weights_backbone=None)
    package = builder.__module__.split(".")[2]
    weights = list(models.get_model_weights(what))
    crop = getattr(weights[-1].transforms, "keywords", {}).get("crop_size", 224) if weights else 224
    side = image_size or (crop if isinstance(crop, int) else crop[0])
    note = ""
    if package == "detection":
        model = model.get_submodule("backbone")
        note = "Of a detector the backbone only: the rest takes lists of images."
    image = torch.zeros(1, 3, side, side)
    if package == "video":
        image = image[:, :, None].expand(1, 3, 16, side, side).contiguous()
    return Origin(name, model, (image, image.clone()) if package == "optical_flow" else (image,), note)


def _timm(name: str, what: str, options: Mapping[str, Any], image_size: int | None) -> Origin:
    timm = _library("timm", name)
    if not timm.is_model(what):
        raise unknown("network of timm", what, timm.list_models())
    if image_size and what.partition(".")[0].startswith(("vit", "deit", "swin", "beit", "mixer", "maxvit", "xcit", "eva")):
        options = {"img_size": image_size, **options}
    try:
        model = timm.create_model(what, pretrained=False, **options)
    except Exception as error:
        raise _unbuilt(name, options, error) from error
    channels, height, width = model.default_cfg.get("input_size", (3, 224, 224))
    channels = options.get("in_chans", channels)
    return Origin(name, model, (torch.zeros(1, channels, image_size or height, image_size or width),))


class _Named(nn.Module):
    """A network of transformers, called with inputs by position; gives tensors in place of a record."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.names, inputs)), return_dict=True)
        return tuple(value for value in output.values() if isinstance(value, Tensor))


def _transformers(name: str, what: str, options: Mapping[str, Any], image_size: int | None) -> Origin:
    library = _library("transformers", name)
    configs = [entry for entry in dir(library) if entry.endswith("Config")]
    if what not in configs:
        raise unknown("configuration of transformers", what, configs, "Names are those of configuration classes: BertConfig.")
    try:
        usual = getattr(library, what)()  # it takes options that it does not know, and forgets them
        if wrong := next((option for option in options if not hasattr(usual, option)), None):
            raise unknown(f"option of {name}", wrong, usual.to_dict())
        config = getattr(library, what)(**{**({"image_size": image_size} if image_size else {}), **options})
        if hasattr(config, "use_cache"):
            config.use_cache = False
        model = library.AutoModel.from_config(config)
    except RequestError:
        raise
    except Exception as error:
        raise _unbuilt(name, options, error) from error
    text = torch.zeros(1, TOKENS, dtype=torch.long)
    inputs: dict[str, Tensor] = {}
    vision = getattr(config, "vision_config", config)
    if model.main_input_name == "pixel_values" or vision is not config:
        size = getattr(vision, "image_size", None) or image_size or 224
        height, width = (size, size) if isinstance(size, int) else size
        inputs["pixel_values"] = torch.zeros(1, getattr(vision, "num_channels", 3), height, width)
    if model.main_input_name == "input_ids" or hasattr(config, "text_config"):
        inputs["input_ids"] = text
    if not inputs:
        raise RequestError(
            f"{name} takes {model.main_input_name!r}, for which no inputs are known here. "
            "Build it in Python and call residua.inspect(model, example_inputs)."
        )
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = text.clone()
    return Origin(name, _Named(model, tuple(inputs)), tuple(inputs.values()))


def _from_file(name: str, path: Path, what: str, options: Mapping[str, Any], image_size: int | None) -> Origin:
    if not path.is_file():
        raise RequestError(f"There is no file {path}. To look at a network of your own, give FILE.py:FACTORY.")
    module = _run(path)
    factory = getattr(module, what, None)
    if not callable(factory):
        raise unknown(
            f"function in {path}", what, [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        )
    built = _built(name, factory, options)
    model, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise RequestError(
            f"{what} in {path} gives {type(model).__name__}. It must give a torch.nn.Module, or that and its example inputs."
        )
    advice = ""
    if inputs is None:
        inputs = _guessed(name, model, image_size)
        advice = "They were guessed from its first layer: let the factory give (model, example_inputs)."
    return Origin(name, model, (inputs,) if isinstance(inputs, Tensor) else tuple(inputs), f"{path} was run.", advice)


def _run(path: Path) -> Any:
    """The module that the file is, under a name that no other module has: dataclasses and pickles look for it by its name."""
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    name = f"_residua_file_{path.stem.replace('.', '_')}_{place}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise RequestError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _guessed(name: str, model: nn.Module, image_size: int | None) -> tuple[Tensor, ...]:
    """Inputs for the first layer of a network that came without any."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return (torch.zeros(1, layer.in_channels, *(image_size or 224,) * len(layer.kernel_size)),)
        if isinstance(layer, nn.Linear):
            return (torch.zeros(1, layer.in_features),)
        if isinstance(layer, nn.Embedding):
            return (torch.zeros(1, TOKENS, dtype=torch.long),)
    raise RequestError(f"What {name} takes is not to be seen. Let the factory give (model, example_inputs).")


ORIGINS: dict[str, Callable[[str, str, Mapping[str, Any], int | None], Origin]] = {
    "torchvision": _torchvision, "timm": _timm, "transformers": _transformers,
}  # fmt: skip
