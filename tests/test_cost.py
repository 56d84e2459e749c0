"""What a network costs: products of dimensions, and what a real training step is seen to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from residua.cost import kept_bytes, layer_costs, layer_table, num_parameters
from residua.models import create_model, outlined


def test_a_layer_keeps_its_input_unless_another_one_has_kept_it_already() -> None:
    """A convolution keeps its input, a ReLU its output, which the next convolution reads: 4 bytes a number."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(400, 5))
    x = torch.zeros(2, 3, 10, 10)
    kept = kept_bytes(model, (x,))
    assert kept is not None
    assert {path: count for (path, _), count in kept.items()} == {
        "0": 4 * 2 * 3 * 100, "1": 4 * 2 * 8 * 100, "4": 4 * 2 * 4 * 100,
    }  # fmt: skip
    rows = layer_costs(model, (x,), kept)
    assert [row.kept_bytes for row in rows] == [2400, 6400, 0, 0, 3200]
    assert [row.multiply_adds for row in rows] == [2 * 100 * 27 * 8, 0, 2 * 100 * 32, 0, 2 * 400 * 5]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.norm = nn.Linear(6, 18), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inputs(self.norm(x)).chunk(3, 2)
        return x + torch.softmax(q @ k.transpose(1, 2), 2) @ v


def inplace() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: create_model("resnet20"), (2, 3, 32, 32)), (inplace, (2, 3, 32, 32)), (Attending, (2, 7, 6)),
        (lambda: create_model("preact_cifar_resnet", depth=20), (2, 3, 32, 32)),
    ],
    ids=["resnet20", "in-place", "attention", "pre-activation"],
)  # fmt: skip
def test_what_is_kept_is_what_a_real_step_keeps(model: object, shape: tuple[int, ...]) -> None:
    """Storages by their address, on the CPU."""
    network = model().train()  # type: ignore[operator]
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    seen: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor

    x = torch.randn(shape)
    counted = kept_bytes(network, (x,))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(x)
    assert counted is not None
    assert sum(counted.values()) == sum(size for size, _ in seen.values())
    del output


def test_what_cannot_run_in_training_mode_has_no_answer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    assert kept_bytes(model, (torch.zeros(1, 4),)) is None
    assert [row.kept_bytes for row in layer_costs(model, (torch.zeros(1, 4),), None)] == [None, None]


class Looking(nn.Module):
    """Its way depends on a value, so that it cannot run without one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.layer(x if x.sum().item() >= 0 else -x)}


def test_a_module_that_looks_at_values_is_counted_with_values() -> None:
    model = Looking()
    rows = layer_costs(model, (torch.ones(5, 3),), kept_bytes(model, (torch.ones(5, 3),)))
    assert [(row.path, row.multiply_adds, row.output_shape) for row in rows] == [("layer", 30, (5, 2))]
    assert rows[0].kept_bytes == 60
    assert model.training


def test_a_shared_layer_has_a_row_for_every_call() -> None:
    shared = nn.Linear(4, 4)
    rows = layer_costs(nn.Sequential(shared, nn.ReLU(), shared), (torch.zeros(1, 4),))
    assert [row.path for row in rows] == ["0", "1", "0"]


def test_the_table_of_a_catalogue_network_adds_up() -> None:
    network = create_model("resnet20")
    rows = layer_table(network, (3, 32, 32))
    assert sum(row.parameters for row in rows) == num_parameters(network)
    assert all(row.kept_bytes is None for row in rows)


def test_a_network_is_outlined_for_counting_without_a_draw() -> None:
    """Draws on the meta device go through Python and take longer than the network is worth."""
    drawn: list[str] = []

    class Watched(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if getattr(function, "__name__", "").endswith(("normal_", "uniform_")):
                drawn.append(function.__name__)
            return function(*args, **(kwargs or {}))

    before = torch.random.get_rng_state()
    with Watched():
        network = outlined("resnet20")
    assert not drawn
    assert next(network.parameters()).is_meta
    assert num_parameters(network) == 269_722
    assert torch.equal(torch.random.get_rng_state(), before)
