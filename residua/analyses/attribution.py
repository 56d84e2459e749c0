"""What a prediction rests on: Grad-CAM and integrated gradients of a few images, computed by captum. Layer 3.

`residua.attributions` has the definitions. The score is the logit of the class that the network predicts. The maps are kept as
small PNG images: the picture, Grad-CAM from black (nothing) to white (the most in this image), and integrated gradients summed
over the channels from black (against the class) over grey (nothing) to white (for it).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from residua.analysis import Analysis, Budget, Drawing, NotApplicable, Subject
from residua.attributions import Integrated, grad_cam, integrated_gradients, last_map
from residua.plots import BLUE, ORANGE, shortened, styled, svg
from residua.wording import percent

__all__ = ["attribution"]

IMAGES = 6
FIRST_STEPS, MOST_STEPS = 32, 512
SMALL_ERROR = 0.01  # completeness, as a share of the change of the score
SHOWN_SIDE = 96  # pixels of the stored pictures
_SIGNED = LinearSegmentedColormap.from_list("signed", [ORANGE, "white", BLUE])


def _measure(subject: Subject, budget: Budget) -> dict[str, Any]:
    images, labels = subject.images(IMAGES)
    if images.dim() != 4:
        raise NotApplicable(f"{subject.name} takes no images [N, C, H, W], so that there is no picture to lay a map over.")
    with torch.inference_mode():
        chances = subject.model(images).float().softmax(1)
    certain, targets = (values.clone() for values in chances.max(1))
    found = _integrated(subject, images, targets, budget)
    place = last_map(subject.model, images[:1])
    cams = grad_cam(subject.model, images, targets, place) if place is not None else None
    budget.progress(1.0)
    rows = [
        {
            "label": subject.classes[int(labels[number])], "predicted": subject.classes[int(targets[number])],
            "probability": float(certain[number]), "picture": _png(_picture(images[number], subject)),
            "grad_cam": None if cams is None else _png(_scaled(cams[number])),
            "integrated_gradients": _png(_scaled(found.values[number].sum(0), signed=True)),
            "score_change": float(found.change[number]), "completeness_error": float(found.completeness[number]),
            "half_of_grad_cam": None if cams is None else _half(cams[number]),
            "half_of_integrated_gradients": _half(found.values[number].sum(0).abs()),
        }
        for number in range(len(images))
    ]  # fmt: skip
    return {
        "images": rows,
        "map": None if place is None else {"path": place.path, "call": place.call, "shape": list(place.shape)},
        "completeness_error": found.error(),
        "used": {"images": len(images), "steps of the integral": found.steps},
    }


def _integrated(subject: Subject, images: Tensor, targets: Tensor, budget: Budget) -> Integrated:
    """Twice the steps until the sum is complete to a hundredth or the time for twice as many is not there."""
    steps = FIRST_STEPS
    while True:
        before = budget.spent
        found = integrated_gradients(subject.model, images, targets, steps, batch=32)
        budget.progress(0.8 * steps / MOST_STEPS)
        if found.error() < SMALL_ERROR or steps >= MOST_STEPS or 2.2 * (budget.spent - before) > 0.9 * budget.left:
            return found
        steps *= 2


def _half(values: Tensor) -> float | None:
    """The share of the pixels, the strongest first, that hold half of the sum of `values`."""
    ordered = values.flatten().double().sort(descending=True).values.cumsum(0)
    if not ordered[-1] > 0:
        return None
    return int((ordered < 0.5 * ordered[-1]).sum() + 1) / ordered.numel()


# --------------------------------------------------------------------------------------------------------------- pictures


def _picture(image: Tensor, subject: Subject) -> Tensor:
    """The normalised image as pixels, uint8 [H, W, 3]; stretched to its own range where the normalisation is not known."""
    image = image.float().cpu()
    if subject.normalization is not None:
        image = image * subject.normalization["std"].cpu() + subject.normalization["mean"].cpu()
    else:
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    image = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return _small(image).permute(1, 2, 0).mul(255).clamp(0, 255).round().to(torch.uint8)


def _scaled(values: Tensor, *, signed: bool = False) -> Tensor:
    """A map [H, W] as uint8: 0 to its largest value as 0 to 255, or with its sign around 127.5."""
    values = _small(values.float().cpu()[None])[0]
    most = values.abs().max().clamp_min(1e-30)
    return ((values / most + 1) * 127.5 if signed else values / most * 255).clamp(0, 255).round().to(torch.uint8)


def _small(image: Tensor) -> Tensor:
    """[C, H, W] with a side of at most `SHOWN_SIDE`, averaged over areas."""
    factor = max(image.shape[-2:]) / SHOWN_SIDE
    if factor <= 1:
        return image
    size = [max(1, round(side / factor)) for side in image.shape[-2:]]
    return F.interpolate(image[None], size, mode="area")[0]


def _png(pixels: Tensor) -> str:
    written = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def _pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


# ---------------------------------------------------------------------------------------------------------------- showing


def _draw(results: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    """A row for each image: the picture, and for each network both maps."""
    first = next(iter(results.values()))
    with styled():
        wide = 1 + 2 * len(results)
        figure = Figure(figsize=(1.35 * wide, 1.5 * len(first["images"]) + 0.3), layout="constrained")
        grid = figure.subplots(len(first["images"]), wide, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for number, row in enumerate(grid):
            picture = _pixels(first["images"][number]["picture"])
            row[0].imshow(picture, interpolation="nearest")
            row[0].set_title(shortened(first["images"][number]["label"], 16), fontsize=8)
            for network, result in enumerate(results.values()):
                item = result["images"][number] if number < len(result["images"]) else None
                if item is None:
                    continue
                left, right = row[1 + 2 * network], row[2 + 2 * network]
                if item["grad_cam"] is not None:  # on the image that it is of: networks may see others, or see it otherwise
                    left.imshow(_pixels(item["picture"]).mean(2), cmap="gray", interpolation="nearest")
                    left.imshow(_pixels(item["grad_cam"]), cmap="inferno", alpha=0.6, interpolation="nearest")
                right.imshow(_pixels(item["integrated_gradients"]), cmap=_SIGNED, vmin=0, vmax=255, interpolation="nearest")
                text = f"{shortened(item['predicted'], 14)} {percent(100 * item['probability'], 0)}"
                if item["label"] != first["images"][number]["label"]:
                    text += f" (is {shortened(item['label'], 14)})"
                left.set_title(text, fontsize=8, loc="left")
        drawn = svg(figure, "attribution-maps", "Images with Grad-CAM and integrated gradients")
    listed = ", then of ".join(results)
    return [
        Drawing(
            "Where the prediction comes from",
            drawn,
            f"The image under its label, then Grad-CAM (bright: for the predicted class) and integrated gradients (blue: for it, "
            f"orange: against it) of {listed}.",
            wide=True,
        )
    ]


def _read(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    how = (
        "Bright places of Grad-CAM are those whose features speak for the predicted class, coarse as the last map is; integrated "
        "gradients divide the score among the pixels, and are complete where their sum is the change of the score."
    )
    said = []
    for name, result in results.items():
        text = f"in {name} the sum misses the change of the score by {percent(100 * result['completeness_error'])} on average"
        halves = [row["half_of_grad_cam"] for row in result["images"] if row["half_of_grad_cam"] is not None]
        if halves:
            text += f", and half of Grad-CAM lies on {percent(100 * sum(halves) / len(halves), 0)} of the image"
        if result["map"] is None:
            text += "; it has no map of features for Grad-CAM"
        else:
            sides = "x".join(str(side) for side in result["map"]["shape"][1:])
            text += f" (map of {sides} from {result['map']['path']})"
        said.append(text + f", with {result['used']['steps of the integral']} steps")
    text = "; ".join(said) + "."
    return how, text[0].upper() + text[1:]


attribution = Analysis(
    name="attribution",
    title="Attribution to pixels",
    about="Grad-CAM (Selvaraju et al. 2017) and integrated gradients (Sundararajan et al. 2017) of the predicted class, computed "
    "by captum.",
    measure=_measure,
    draw=_draw,
    read=_read,
    share=0.5,
)
