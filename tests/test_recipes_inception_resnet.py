"""The recipe of Inception-ResNet to the letter of the paper."""

from __future__ import annotations

import pytest
import torch

from residua.models import CATALOG, create_model
from residua.optim import build_optimizer, learning_rate_factor
from residua.recipes import get_recipe


def test_the_recipe_is_the_papers_but_for_the_departures_it_names() -> None:
    recipe = get_recipe("inception-resnet-imagenet")
    optim = recipe.optim
    assert (optim.name, optim.lr, optim.square_decay, optim.eps) == ("rmsprop", 0.045, 0.9, 1.0)
    assert recipe.epochs is not None
    for epoch in (0, 1.99, 2, 3.99, 4, 100, 159.9):
        factor = learning_rate_factor(recipe.schedule, epoch / recipe.epochs)
        assert factor == pytest.approx(0.94 ** int(epoch / 2))
    assert recipe.average.decay > 0
    assert optim.clip > 0
    assert recipe.data.image_size == 299
    assert CATALOG.get(recipe.model.name).input_shape == (3, 299, 299)


def test_its_first_step_is_that_of_the_formula() -> None:
    """v = 0.1 g^2 and w - lr g / (sqrt(v) + 1)."""
    recipe = get_recipe("inception-resnet-imagenet")
    model = create_model("cifar_resnet", depth=8).double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    build_optimizer(model, recipe.optim).step()
    for parameter, start in zip(model.parameters(), before):
        g = parameter.grad
        assert g is not None
        torch.testing.assert_close(parameter.detach(), start - 0.045 * g / ((0.1 * g * g).sqrt() + 1))
