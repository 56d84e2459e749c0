"""What is said of a network: the size of its input follows from the command, the options and the builder, in this order."""

from __future__ import annotations

from typing import Any

import pytest

from residua.inspection import inspect_model


@pytest.mark.parametrize(
    ("name", "options", "image_size", "shape"),
    [
        ("resnet20", {}, None, [3, 32, 32]),
        ("resnet20", {"in_channels": 1}, 48, [1, 48, 48]),
        ("cifar_resnet", {"depth": 8}, None, [3, 32, 32]),
        ("highway_10", {}, None, [1, 28, 28]),
        ("highway_10", {}, 12, [1, 12, 12]),
        ("highway_10", {"image_size": 9, "in_channels": 3}, None, [3, 9, 9]),
        ("highway", {"depth": 3}, None, [1, 28, 28]),
        ("highway_conv_19", {}, 40, [3, 40, 40]),
        ("residual_mlp", {"widths": [4]}, None, [3, 32, 32]),
    ],
)
def test_the_input_is_the_papers_unless_the_request_says_otherwise(
    name: str, options: dict[str, Any], image_size: int | None, shape: list[int]
) -> None:
    card = inspect_model(name, options, image_size)
    assert card["input_shape"] == shape
    assert card["layers"][-1]["output_shape"] == (1, 10)
    assert card["parameters"] == sum(layer["parameters"] for layer in card["layers"])
