"""One update: the same for any micro-batch, weighed, clipped, and refused when the loss is not finite."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from residua.augment import Key, transformed
from residua.batches import Batch, Order, Share, even_cuts, train_batches
from residua.dataset import ArraySamples
from residua.errors import RunError
from residua.models import create_model
from residua.network import Auxiliary, Head, Network
from residua.plan import PLANS, Plan
from residua.recipe import Recipe, replaced
from residua.step import NonFiniteLoss, Step
from residua.tasks import classify

CPU = torch.device("cpu")
STATS = {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.3)}
SIZE, CLASSES = 22, 4


def recipe_with(**changes: Any) -> Recipe:
    settings = {
        "augment.crop": "pad", "augment.pad": 1, "augment.flip": True, "data.image_size": 8, "batch_size": SIZE,
        "schedule.shape": "constant", "optim.lr": 0.05, **{name.replace("__", "."): value for name, value in changes.items()},
    }  # fmt: skip
    return replaced(Recipe(), settings)


def network(**options: Any) -> Network:
    torch.manual_seed(0)
    settings = {"depth": 8, "num_classes": CLASSES, "normalization": "group", **options}
    return create_model("cifar_resnet", **settings)


def samples() -> ArraySamples:
    pixels = torch.randint(256, (60, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ArraySamples(pixels, torch.arange(60) % CLASSES, [f"image {n}" for n in range(60)])


def batch_of(recipe: Recipe, step: int = 0, unreadable: tuple[int, ...] = ()) -> Batch:
    data = samples()
    order = Order(data.labels, recipe.batch_size, recipe.seed)
    if unreadable:
        draws = order.epoch(0)[list(unreadable)].tolist()
        data = ArraySamples(data.images, data.labels, data.names, dict.fromkeys(draws, "broken"))
    return next(iter(train_batches(data, order, recipe.augment, 8, step, step + 1, Share(), 0)))


def make_step(model: Network, recipe: Recipe, **options: Any) -> Step:
    return Step(model, recipe, PLANS["exact"], STATS, 10, device=CPU, **options)


def gradients(model: Network) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 8, 21, 22, 100])
@pytest.mark.parametrize("mixing", [{}, {"augment__mixup": 0.4, "augment__cutmix": 1.0}], ids=["plain", "mixed"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch: int, mixing: dict[str, Any]) -> None:
    found = []
    for part in (None, micro_batch):
        recipe = recipe_with(micro_batch=part, label_smoothing=0.1, **mixing)
        step = make_step(network(), recipe)
        outcome = step(batch_of(recipe))
        found.append((outcome, gradients(step.network)))
    (whole, expected), (parts, summed) = found
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (parts.error, parts.count) == (whole.error, whole.count) == (whole.error, SIZE)
    for a, b in zip(summed, expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()) + 1e-7)


@pytest.mark.parametrize("micro_batch", [2, 3, 4, 5, 7, 8, 11, 21, 22, 23])
@pytest.mark.parametrize("size", [SIZE, 21, 8])
def test_no_forward_pass_takes_more_than_a_micro_batch(micro_batch: int, size: int) -> None:
    recipe = recipe_with(micro_batch=micro_batch, batch_size=size)
    step = make_step(network(), recipe)
    taken: list[int] = []
    step.network.register_forward_pre_hook(lambda _m, args: taken.append(len(args[0])))
    step(batch_of(recipe))
    assert sum(taken) == size
    assert max(taken) <= micro_batch
    assert len(taken) <= -(-size // max(2, micro_batch - micro_batch % 2)), "no more passes than needed"


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_all_processes_make_as_many_forward_passes_and_none_too_large(world: int) -> None:
    for size in range(world * 2, 40):
        for micro_batch in (2, 4, 6):
            recipe = recipe_with(micro_batch=micro_batch, batch_size=size)
            step = make_step(network(), recipe)
            step.share = Share(0, world)
            parts = step._num_micro_batches()
            cuts = even_cuts(size, world)
            for share in (b - a for a, b in itertools.pairwise(cuts)):
                inner = even_cuts(share, parts)
                assert max(b - a for a, b in itertools.pairwise(inner)) <= micro_batch


def test_a_step_is_the_papers_update_of_the_mean_loss() -> None:
    """The same by hand: transform, forward, mean cross-entropy, backward, momentum, decay."""
    recipe = recipe_with(optim__weight_decay=0.01)
    step = make_step(network(), recipe)
    twin = copy.deepcopy(step.network)
    weights = [p.detach().clone() for p in twin.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for number in range(3):
        batch = batch_of(recipe, number)
        outcome = step(batch)
        x, _ = transformed(batch.images, recipe.augment, STATS, Key(recipe.seed, batch.epoch), batch.draws)
        twin.zero_grad()
        logits = twin(x)
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        with torch.no_grad():
            for index, parameter in enumerate(twin.parameters()):
                velocity[index] = 0.9 * velocity[index] + parameter.grad + 0.01 * parameter
                parameter -= 0.05 * velocity[index]
        assert outcome.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert outcome.error == pytest.approx(100 * float((logits.argmax(1) != batch.labels).double().mean()))
        assert (outcome.lr, outcome.count) == (0.05, SIZE)
    for a, b in zip(step.network.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_rate_follows_the_schedule_by_the_number_of_the_step() -> None:
    recipe = recipe_with(schedule__shape="steps", schedule__drops=[0.5])
    step = make_step(network(), recipe)
    rates = [step(batch_of(recipe, number)).lr for number in (0, 4, 5, 9, 0)]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.05])


def test_a_step_depends_on_nothing_but_its_number_and_the_weights() -> None:
    recipe = recipe_with(micro_batch=6, augment__mixup=0.2)
    found = []
    for seed in (1, 2):
        step = make_step(network(dropout=0.5, stochastic_depth=0.5), recipe)
        torch.manual_seed(seed)
        torch.rand(seed)
        found.append((step(batch_of(recipe, 3)).loss, gradients(step.network)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1]))
    other = make_step(network(dropout=0.5, stochastic_depth=0.5), replaced(recipe, {"seed": 1}))
    assert other(batch_of(recipe, 3)).loss != found[0][0]


def test_class_weights_multiply_each_samples_loss() -> None:
    recipe = recipe_with()
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    step = make_step(network(), recipe, class_weights=weights)
    twin = copy.deepcopy(step.network)
    batch = batch_of(recipe)
    outcome = step(batch)
    x, _ = transformed(batch.images, recipe.augment, STATS, Key(0, 0), batch.draws)
    losses = weights[batch.labels] * F.cross_entropy(twin(x), batch.labels, reduction="none")
    losses.mean().backward()
    assert outcome.loss == pytest.approx(float(losses.mean().detach()), rel=1e-5)
    for a, b in zip(gradients(step.network), gradients(twin)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_unreadable_images_count_for_nothing() -> None:
    recipe = recipe_with(micro_batch=8)
    bad = (0, 5, 6, 7, 21)
    step = make_step(network(), recipe)
    batch = batch_of(recipe, unreadable=bad)
    assert int(batch.valid.sum()) == SIZE - len(bad)
    twin = copy.deepcopy(step.network)
    outcome = step(batch)
    x, _ = transformed(batch.images, recipe.augment, STATS, Key(0, 0), batch.draws)
    loss = F.cross_entropy(twin(x[batch.valid]), batch.labels[batch.valid])
    loss.backward()
    assert (outcome.count, outcome.loss) == (SIZE - len(bad), pytest.approx(float(loss.detach()), rel=1e-5))
    for a, b in zip(gradients(step.network), gradients(twin)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without its code generator, which takes a minute a shape: graphs, guards and limits are torch's own."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


@pytest.mark.usefixtures("traced_only")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, where a stage's input is another's output
@pytest.mark.parametrize("name", ["fp32-compile", "bf16-compile-stages"])
def test_a_compiled_network_takes_batches_that_lost_any_number_of_images(name: str) -> None:
    recipe, plain = recipe_with(), Plan("plain", PLANS[name].precision, "channels_last")
    ours, theirs = (Step(network(), recipe, plan, STATS, 20, device=CPU) for plan in (PLANS[name], plain))
    graphs = []
    for number, lost in enumerate((0, 0, *range(1, 11))):
        batch = batch_of(recipe, number, tuple(range(lost)))
        found, expected = ours(batch), theirs(batch)
        assert found.count == expected.count == int(batch.valid.sum())
        assert found.loss == pytest.approx(expected.loss, rel=1e-4 if PLANS[name].precision == "fp32" else 0.02)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[1] > 0, "only the whole batch is compiled"


@pytest.mark.usefixtures("traced_only")
def test_a_compiled_network_takes_images_of_many_sizes() -> None:
    scales = tuple((share / 10, (share + 3) / 12) for share in range(10))
    recipe = recipe_with(augment__scales=scales, data__image_size=24)
    step = Step(network(), recipe, PLANS["fp32-compile"], STATS, 10, device=CPU)
    large = torch.zeros(SIZE, 3, 24, 24, dtype=torch.uint8)
    for number in range(10):
        assert step(replace(batch_of(recipe, number), images=large)).count == SIZE


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_the_gradient_is_clipped_to_its_largest_norm(limit: float) -> None:
    found = []
    for clip in (0.0, limit):
        step = make_step(network(), recipe_with(optim__clip=clip))
        step(batch_of(recipe_with()))
        found.append(torch.cat([g.flatten() for g in gradients(step.network)]))
    free, clipped = found
    norm = float(free.norm())
    assert norm > 1e-2
    torch.testing.assert_close(clipped, free * min(1.0, limit / norm), rtol=1e-3, atol=1e-9)


def test_a_loss_that_is_not_finite_is_refused_before_anything_changes() -> None:
    recipe = recipe_with(micro_batch=8, average__decay=0.9)
    step = make_step(network(), recipe)
    step(batch_of(recipe, 0))
    with torch.no_grad():
        step.network.head.classifier.bias[0] = float("inf")
    before = copy.deepcopy(step.tensors())
    batch = batch_of(recipe, 1)
    with pytest.raises(NonFiniteLoss, match=r"nan|inf") as refused:
        step(batch)
    assert isinstance(refused.value, RunError)
    assert refused.value.step == 1
    assert torch.equal(refused.value.draws, batch.draws)
    for file, tensors in step.tensors().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, before[file][name]), (file, name)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_step_that_was_stored_goes_on_identically(name: str) -> None:
    recipe = recipe_with(optim__name=name, optim__lr=0.01, average__decay=0.9)
    step = make_step(network(normalization="batch"), recipe)
    for number in range(2):
        step(batch_of(recipe, number))
    stored = copy.deepcopy(step.tensors())
    assert set(stored) == {"model", "optimizer", "average"}
    torch.manual_seed(5)
    other = make_step(create_model("cifar_resnet", depth=8, num_classes=CLASSES), recipe)
    other.load(stored)
    for each in (step, other):
        for number in range(2, 4):
            each(batch_of(recipe, number))
    for file, tensors in step.tensors().items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors()[file][key]), (file, key)


# ------------------------------------------------------------------------------------------------------ the head first


def test_while_only_the_head_is_trained_the_update_is_that_of_a_linear_layer_on_fixed_features() -> None:
    """By hand: features of the network in evaluation mode, softmax regression with momentum and decay on top of them."""
    recipe = recipe_with(optim__head_first=0.3, optim__weight_decay=0.01)
    step = make_step(network(normalization="batch", stochastic_depth=0.5), recipe)
    twin = copy.deepcopy(step.network).eval()
    weights = [p.detach().clone() for p in twin.head.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for number in range(3):
        batch = batch_of(recipe, number)
        step(batch)
        x, _ = transformed(batch.images, recipe.augment, STATS, Key(recipe.seed, batch.epoch), batch.draws)
        with torch.no_grad():
            pooled = twin.features(x)[-1].mean((2, 3))
            slope = (F.linear(pooled, *weights).softmax(1) - F.one_hot(batch.labels, CLASSES)) / len(x)
            for index, gradient in enumerate((slope.T @ pooled, slope.sum(0))):
                velocity[index] = 0.9 * velocity[index] + gradient + 0.01 * weights[index]
                weights[index] = weights[index] - 0.05 * velocity[index]
    for a, b in zip(step.network.head.parameters(), weights):
        torch.testing.assert_close(a.detach(), b, rtol=1e-4, atol=1e-6)
    before = twin.state_dict()
    for name, tensor in step.network.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, before[name]), name
    step(batch_of(recipe, 3))
    assert all(p.grad is not None for p in step.network.parameters())
    for name, tensor in step.network.state_dict().items():
        if name.endswith(("conv1.weight", "running_mean")):
            assert not torch.equal(tensor, before[name]), f"{name} is trained from step 3 of 10 on"


@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.04, 0), (0.3, 3), (0.7, 7), (1.0, 10)])
def test_the_head_is_trained_first_for_its_share_of_the_steps(share: float, steps: int) -> None:
    step = make_step(network(), recipe_with(optim__head_first=share))
    alone = []
    for number in range(10):
        step(batch_of(step.recipe, number))
        alone.append(step.network.stem.conv.weight.grad is None)
    assert alone == [True] * steps + [False] * (10 - steps)


@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.04, 0), (0.3, 3), (1.0, 10)])
def test_the_stem_is_trained_for_its_share_of_the_steps_and_then_stays_as_it_is(share: float, steps: int) -> None:
    recipe = recipe_with(optim__stem_until=share, optim__weight_decay=0.01)
    step, other = make_step(network(), recipe), make_step(network(), recipe_with(optim__weight_decay=0.01))
    trained = []
    for number in range(10):
        before = step.network.stem.conv.weight.detach().clone()
        step(batch_of(recipe, number))
        trained.append(not torch.equal(step.network.stem.conv.weight, before))
        assert all(p.grad is not None for part in (step.network.stages, step.network.head) for p in part.parameters())
        if number < steps:
            other(batch_of(recipe, number))
    assert trained == [True] * steps + [False] * (10 - steps)
    for a, b in zip(step.network.stem.parameters(), other.network.stem.parameters()):
        assert torch.equal(a, b), "until then it is trained as ever"


def test_the_head_comes_first_and_the_stem_goes_early() -> None:
    step = make_step(network(), recipe_with(optim__head_first=0.3, optim__stem_until=0.5))
    trained = []
    for number in range(10):
        step(batch_of(step.recipe, number))
        found = {name.partition(".")[0] for name, parameter in step.network.named_parameters() if parameter.grad is not None}
        trained.append(found)
    assert trained == [{"head"}] * 3 + [{"stem", "stages", "head"}] * 2 + [{"stages", "head"}] * 5


def test_a_measurement_between_two_steps_does_not_bring_the_rest_into_training_mode() -> None:
    step = make_step(network(normalization="batch", dropout=0.5), recipe_with(optim__head_first=0.5))
    step(batch_of(step.recipe, 0))
    step.network.eval()
    step.train()
    modes = {name: module.training for name, module in step.network.named_modules()}
    assert modes["head.dropout"]
    assert not any(training for name, training in modes.items() if name.startswith(("stem", "stages")))
    step(batch_of(step.recipe, 7))
    assert all(module.training for module in step.network.modules())


def test_auxiliary_heads_count_as_the_head() -> None:
    body = network()
    inner = Auxiliary(Head(16, CLASSES), 0, 0, 0.3)
    model = Network(
        body.stem, body.stages, body.head, feature_channels=(16, 32, 64), feature_reductions=(1, 2, 4), auxiliaries=[inner]
    )
    step = make_step(model, recipe_with(optim__head_first=0.5))
    step(batch_of(step.recipe, 0))
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"{head}.classifier.{leaf}" for head in ("head", "auxiliaries.0.head") for leaf in ("weight", "bias")}


# ------------------------------------------------------------------------------------------------------------ the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_smoothed_mixed_cross_entropy_by_its_formula(smoothing: float) -> None:
    from residua.augment import Mix

    logits, labels = torch.randn(5, 3, dtype=torch.float64).float(), torch.tensor([0, 2, 1, 1, 0])
    mix = Mix(torch.tensor([1, 0, 3, 2, 4]), torch.tensor([0.7, 0.7, 0.1, 0.1, 1.0]))
    found = classify.loss(logits, labels, mix=mix, smoothing=smoothing)
    logs = logits.double().log_softmax(1)
    for i in range(5):
        target = torch.full((3,), smoothing / 3, dtype=torch.float64)
        target[labels[i]] += (1 - smoothing) * float(mix.weight[i])
        target[labels[mix.partner[i]]] += (1 - smoothing) * (1 - float(mix.weight[i]))
        assert float(found[i]) == pytest.approx(float(-(target * logs[i]).sum()), rel=1e-5)


def test_a_label_among_the_first_k_counts_as_right() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([1, 1])
    assert classify.correct(logits, labels).tolist() == [False, False]
    assert classify.correct(logits, labels, 2).tolist() == [True, True]
    assert classify.correct(logits, labels, 5).tolist() == [True, True]


@pytest.mark.parametrize(("number", "side"), [(0, 8), (2, 8), (3, 4), (4, 4), (5, 6), (9, 6)])
def test_small_images_first_are_the_batch_resized_by_the_number_of_the_step(number: int, side: int) -> None:
    recipe = recipe_with(augment__scales=((0.25, 0.5), (0.5, 0.75)))
    batch = batch_of(recipe, number)
    step, twin = make_step(network(), recipe), network()
    x, _ = transformed(batch.images, recipe.augment, STATS, Key(recipe.seed, batch.epoch), batch.draws)
    if side < 8:
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    F.cross_entropy(twin(x), batch.labels).backward()
    step(batch)
    for found, expected in zip(gradients(step.network), gradients(twin)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
