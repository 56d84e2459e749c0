"""Tensors by name from a file, or as published by torchvision, timm or the Hugging Face hub. Layer 1.

Nothing here runs code from a file: `.safetensors` holds none, and other files are read by torch's weights-only load. Published
weights come through the libraries' own download code and lie in their own caches.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import safe_open
from torch import Tensor

from residua.errors import RequestError, unknown
from residua.naming import PEER_NAMES

__all__ = ["ORIGINS", "TAKES", "Source", "is_published", "plain", "published", "read_file", "read_folder"]

ORIGINS = ("torchvision", "timm", "hf")
SAFE_TORCH = (2, 10)  # before it, files made for the purpose got round the weights-only load
PICKLES = (".pth", ".pt", ".bin")
FILES = ("model.safetensors", "pytorch_model.bin")  # what a model's folder on the hub holds, the first choice first
WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which training scripts store the tensors beside other things
PREFIXES = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before each name
TAKES = (
    "a run directory, a .safetensors or .pth file, or published weights such as torchvision:IMAGENET1K_V2, "
    "timm:resnet50.a1_in1k or hf:microsoft/resnet-50"
)


@dataclass(frozen=True)
class Source:
    """Tensors by the names they have in `where`. `stride_on` is the place of a bottleneck's stride ("1x1" or "3x3") where
    something says it: no tensor does. `network` is the name of the network where that is known, and `classes` are the names of
    its classes in the order of its outputs."""

    where: str
    tensors: Mapping[str, Tensor]
    stride_on: str | None = None
    network: str | None = None
    classes: tuple[str, ...] | None = None


# ------------------------------------------------------------------------------------------------------------------ files


def read_file(path: Path) -> Source:
    """The tensors of a `.safetensors` file, or of a `.pth`, `.pt` or `.bin` file by the weights-only load (torch >= 2.10).

    Raises `RequestError` for a file that is missing, damaged, of another kind, or holds no tensors.
    """
    if not path.is_file():
        raise RequestError(f"There is no file {path}. Weights are {TAKES}.")
    if path.suffix == ".safetensors":
        tensors, stride_on = _safetensors(path)
    elif path.suffix in PICKLES:
        tensors, stride_on = _pickle(path), None
    else:
        raise RequestError(f"{path} is none of .safetensors, {', '.join(PICKLES)}. Weights are {TAKES}.")
    if not tensors:
        raise RequestError(
            f"{path} holds no tensors by name, neither at its top nor under one of {', '.join(WRAPPERS)}: it is no state dict. "
            "Store one with torch.save(model.state_dict(), PATH), and give that file."
        )
    return Source(str(path), tensors, stride_on or _stated_stride(path.with_name("config.json")))


def read_folder(path: Path) -> Source | None:
    """The weights of a model's folder as the hub lays it out (`model.safetensors`, config.json); None if it holds none."""
    for name in FILES:
        if (path / name).is_file():
            return read_file(path / name)
    return None


def _safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            stride_on = (file.metadata() or {}).get("stride_on")
            return {name: file.get_tensor(name) for name in file.keys()}, stride_on  # noqa: SIM118 (no mapping)
    except Exception as error:  # safetensors names its errors differently from version to version
        raise RequestError(
            f"{path} is damaged or no safetensors file ({_reason(error)}). Fetch or write it again; a file of torch.save must "
            f"end with one of {', '.join(PICKLES)}."
        ) from error


def check_torch() -> None:
    """Raises `RequestError` where torch's weights-only load is not safe against a file made for the purpose."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise RequestError(
            f"Files other than .safetensors are read from torch {'.'.join(map(str, SAFE_TORCH))} on (this is torch "
            f"{torch.__version__}): before it, a file made for the purpose could run code. Convert the file, or update torch."
        )


def _pickle(path: Path) -> dict[str, Tensor]:
    check_torch()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch itself each fail in their own way
        raise RequestError(
            f"{path} is damaged, or holds more than tensors and plain values, which could run code and is not loaded "
            f"({_reason(error)}). Fetch it again, or where it was written store the tensors alone: "
            "torch.save(model.state_dict(), PATH)."
        ) from error
    return plain(found)


def plain(found: Any) -> dict[str, Tensor]:
    """The state dict in what a training script stored, its names without the prefixes of wrappers around the network."""
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping):
        return {}
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _stated_stride(config: Path) -> str | None:
    """Where a config.json of transformers' ResNet puts the stride; None if there is none."""
    try:
        stated = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stated, dict) or stated.get("model_type") != "resnet":
        return None
    return "1x1" if stated.get("downsample_in_bottleneck") else "3x3"


def _reason(error: BaseException) -> str:
    """The first line of an error, without its full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------------------- published


def is_published(name: str) -> bool:
    """Whether `name` is of the form origin:name, and no file of that name exists."""
    origin, colon, rest = name.partition(":")
    return bool(colon and rest) and re.fullmatch(r"\w+", origin) is not None and not Path(name).exists()


def published(name: str, networks: Callable[[], list[str]]) -> Source:
    """Published weights: `torchvision:IMAGENET1K_V2` (those of the first of our `networks()` that it has) or
    `torchvision:ResNet50_Weights.IMAGENET1K_V2`, `timm:resnet50.a1_in1k`, `hf:microsoft/resnet-50`.

    Downloaded once, with a check of the hash, into the library's cache. Raises `RequestError` for a name that does not exist, a
    library that is not installed, a file that is damaged, and without a connection: then with the place for the file.
    """
    origin, _, rest = name.partition(":")
    if origin not in ORIGINS:
        raise unknown("origin of published weights", origin, ORIGINS)
    if origin == "torchvision":
        return _from_torchvision(name, rest, networks)
    repository = rest
    if origin == "timm":
        if "." not in rest or "/" in rest:
            raise RequestError(f"timm's weights are named NETWORK.TAG, such as timm:resnet50.a1_in1k, not {name}.")
        repository = f"timm/{rest}"
    return _from_hub(name, repository)


def _from_torchvision(name: str, rest: str, networks: Callable[[], list[str]]) -> Source:
    entry = _torchvision_entry(name, rest, networks)
    check_torch()
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    _check_hash(cached, cached.stem.rpartition("-")[2])
    try:
        with redirect_stdout(sys.stderr):  # torch.hub writes where it downloads to; stdout is for results
            tensors = entry.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except OSError as error:  # URLError, HTTPError, timeouts, a cache that cannot be written
        raise RequestError(
            f"{name} could not be downloaded ({_reason(error)}). Without a connection: fetch {entry.url} elsewhere and put it "
            f"at {cached}, or give the path of the file instead of the name."
        ) from error
    except RuntimeError as error:  # what arrived has another hash
        raise RequestError(f"{name} arrived damaged and was not kept: {_reason(error)}. Try again.") from error
    return Source(name, tensors, "3x3")


def _torchvision_entry(name: str, rest: str, networks: Callable[[], list[str]]) -> Any:
    """The member of torchvision's enumeration of weights."""
    from torchvision.models import get_model_weights, get_weight, list_models

    if "." in rest:
        try:
            return get_weight(rest)
        except (ValueError, KeyError) as error:
            raise RequestError(f"torchvision has no weights {rest!r}: {_reason(error)}.") from None
    names = networks()
    peer = next((known for known in (PEER_NAMES.get(own, own) for own in names) if known in list_models()), None)
    if peer is None:
        here = f"torchvision has no network {' or '.join(map(repr, names))}" if names else "the network's name is not known"
        raise RequestError(f"{name}: {here}. Write it whole, such as torchvision:ResNet50_Weights.IMAGENET1K_V2.")
    members = get_model_weights(peer)
    if rest not in members.__members__:
        raise unknown(f"set of weights of torchvision's {peer}", rest, members.__members__)
    return members[rest]


def _check_hash(cached: Path, expected: str) -> None:
    """Refuses a file in a cache that is not what its name says; what is downloaded now is checked by the library."""
    if cached.is_file() and re.fullmatch(r"[0-9a-f]{8,64}", expected) and not sha256(cached).startswith(expected):
        raise RequestError(f"{cached} is damaged: its SHA-256 does not begin with {expected}. Remove it, and it is fetched anew.")


def _from_hub(name: str, repository: str) -> Source:
    try:
        import huggingface_hub as hub  # type: ignore[import-not-found, unused-ignore]
        from huggingface_hub import constants, errors
    except ImportError:
        raise RequestError(
            f"{name} is fetched by the library huggingface_hub, which is not installed (pip install timm)."
        ) from None

    def fetched(file: str) -> Path:
        path = Path(hub.hf_hub_download(repository, file))
        blob = path.resolve().name
        if len(blob) == 64:  # the cache names large files by their SHA-256, small ones by git's SHA-1
            _check_hash(path, blob)
        return path

    place = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        path = next(filter(None, (_if_there(fetched, file, errors) for file in FILES)), None)
        config = _if_there(fetched, "config.json", errors) if path else None
    except errors.RepositoryNotFoundError:
        raise RequestError(f"There is no {name}: the hub has no public model {repository}.") from None
    except errors.HFValidationError as error:
        raise RequestError(f"{name} is not a name of the hub: {_reason(error)}.") from None
    except RequestError:
        raise
    except Exception as error:  # its HTTP library's errors are other ones from version to version
        raise RequestError(
            f"{name} could not be downloaded ({_reason(error)}). Without a connection: run `hf download {repository}` elsewhere "
            f"and copy the folder it fills to {place}, or give the path of the model's folder or file instead of the name."
        ) from error
    if path is None:
        raise RequestError(f"{name} has no weights that are read here ({' or '.join(FILES)}).")
    found = read_file(path)
    return Source(name, found.tensors, _stated_stride(config) if config else None)


def _if_there(fetched: Any, file: str, errors: Any) -> Path | None:
    """The file of the repository, or None if it has none of that name."""
    try:
        return fetched(file)
    except errors.LocalEntryNotFoundError:  # no connection and not in the cache: not the same as not there
        raise
    except errors.EntryNotFoundError:
        return None
