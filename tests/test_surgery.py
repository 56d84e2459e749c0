"""Surgery: plain twins against networks written without skips, skips put in against networks written with them; both train."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from residua.census import census
from residua.errors import RequestError
from residua.graph import capture
from residua.layers import sequence
from residua.models import create_model
from residua.surgery import plain_twin, with_skips
from residua.unit import Concat, Unit


def images(side: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def prepared(name: str, **options: object) -> nn.Module:
    """A network in float64 whose normalisations have scales, offsets and statistics of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = create_model(name, **options).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.running_mean, std=0.2)
    return model.eval()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "plain", "side"),
    [("resnet20", "plain20", 32), ("resnet18", "plain18", 32), pytest.param("resnet50", "plain50", 32, marks=pytest.mark.slow)],
)
def test_the_plain_twin_of_our_resnets_is_the_plain_network_with_the_same_weights(name: str, plain: str, side: int) -> None:
    model = prepared(name)
    done = plain_twin(model, images(side))
    twin = create_model(plain).double().eval()
    twin.load_state_dict(done.model.state_dict())  # strict: the names are those of the plain network, none is idle
    x = images(side, 3, seed=1)
    close(done.model(x), twin(x))
    assert not torch.allclose(done.model(x), model(x))
    assert len(done.changes) == len(census(capture(model, images(side)), proof=False).skips)
    shortcuts = {name for name, _ in model.named_parameters() if ".shortcut." in name}
    assert set(done.idle) == shortcuts
    assert not done.refusals
    assert not census(capture(done.model, images(side)), proof=False).skips


def test_in_training_mode_the_twin_normalises_by_the_batch_and_updates_its_statistics_as_the_plain_network_does() -> None:
    done = plain_twin(prepared("resnet20").train(), images(32))
    assert done.model.training
    twin = create_model("plain20").double()
    twin.load_state_dict(done.model.state_dict())
    x, target = images(32, 4, seed=1), torch.tensor([1, 0, 3, 2])
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in (done.model, twin)]
    for _ in range(2):
        for model, optimizer in zip((done.model, twin), optimizers):
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
            optimizer.step()
    for name, ours in done.model.state_dict().items():
        torch.testing.assert_close(
            ours, twin.state_dict()[name], rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert dict(done.model.named_buffers())["stem.norm.num_batches_tracked"] == 2


def without_additions(model: torchvision.models.ResNet, x: Tensor) -> Tensor:
    """torchvision's ResNet-18 as a plain network, by hand."""
    x = model.maxpool(torch.relu(model.bn1(model.conv1(x))))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            x = torch.relu(block.bn1(block.conv1(x)))
            x = torch.relu(block.bn2(block.conv2(x)))
    return model.fc(model.avgpool(x).flatten(1))


def test_the_plain_twin_of_torchvisions_resnet18_is_its_forward_without_the_additions() -> None:
    model = torchvision.models.resnet18(weights=None).double().eval()
    done = plain_twin(model, images(32))
    x = images(32, 3, seed=1)
    close(done.model(x), without_additions(model, x))
    assert len(done.changes) == 8
    assert sorted({name.rsplit(".", 2)[0] for name in done.idle}) == [
        "layer2.0.downsample",
        "layer3.0.downsample",
        "layer4.0.downsample",
    ]


def test_parameters_are_copies_or_the_same_by_choice() -> None:
    model = prepared("resnet20")
    own = {id(parameter) for parameter in model.parameters()}
    assert not own & {id(parameter) for parameter in plain_twin(model, images(32)).model.parameters()}
    shared = plain_twin(model, images(32), share=True).model
    assert {id(parameter) for parameter in shared.parameters()} == own
    before = copy.deepcopy(model.state_dict())
    shared.train()(images(32))
    assert not torch.equal(before["stem.norm.running_mean"], model.state_dict()["stem.norm.running_mean"])


def test_nested_additive_skips_are_all_cut() -> None:
    def convolution() -> nn.Conv2d:
        return nn.Conv2d(4, 4, 3, padding=1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second, third = convolution(), convolution(), convolution()
    inner = Unit(sequence(a=second), nn.Identity())
    model = Unit(sequence(a=first, inner=inner), Unit(sequence(a=third), nn.Identity())).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    done = plain_twin(model, x)
    close(done.model(x), second(first(x)))
    assert len(done.changes) == 3
    assert done.idle == ("shortcut.branch.a.weight", "shortcut.branch.a.bias")


def test_what_cannot_be_cut_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"no additive skip that can be cut.*a concatenation.*and 3 more"):
        plain_twin(_dense(6), torch.randn(2, 4, 8, 8))
    with pytest.raises(RequestError, match="a gate, whose two ways share their weight"):
        plain_twin(create_model("highway_10"), torch.randn(2, 1, 28, 28))
    with pytest.raises(RequestError, match="It is plain already"):
        plain_twin(create_model("plain20"), images(32).float())


def _dense(layers: int) -> nn.Module:
    return nn.Sequential(*(Unit(nn.Conv2d(4 + 2 * k, 2, 3, padding=1), nn.Identity(), Concat()) for k in range(layers)))


def test_where_both_kinds_are_the_additions_are_cut_and_the_concatenations_named() -> None:
    model = nn.Sequential(Unit(nn.Conv2d(4, 2, 3, padding=1), nn.Identity(), Concat()), Unit(nn.Conv2d(6, 6, 1), nn.Identity()))
    x = torch.randn(2, 4, 8, 8)
    done = plain_twin(model, x)
    torch.testing.assert_close(done.model(x), model[1].branch(model[0](x)))
    assert [refusal.reason for refusal in done.refusals] == [
        "a concatenation: without the bypass what follows would read the shape (2, 2, 8, 8) instead of (2, 6, 8, 8)"
    ]


def test_a_difference_and_a_repeated_branch_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x - self.first(x)
            return x + self.second(x)

    with pytest.raises(RequestError, match=r"another sign or scale.*repeated in the sum"):
        plain_twin(Odd(), torch.randn(2, 4))


def test_dropout_drops_in_training_and_other_modes_are_told() -> None:
    model = nn.Sequential(Unit(nn.Linear(64, 64), nn.Identity()), nn.Dropout(0.5))
    done = plain_twin(model, torch.randn(2, 64))
    torch.manual_seed(0)
    x = torch.randn(2, 64)
    share = (done.model.train()(x) == 0).double().mean()
    assert 0.3 < share < 0.7
    assert torch.equal(done.model.eval()(x), model[0].branch(x))
    assert not done.notes
    with_depth = create_model("resnet20", stochastic_depth=0.5)
    notes = plain_twin(with_depth, images(32).float()).notes
    assert any(note.startswith("SampledAdd") and "as in evaluation" in note for note in notes)


# ----------------------------------------------------------------------------------------------------------- putting skips in


def test_skips_put_into_plain20_with_zero_padding_give_resnet20() -> None:
    plain = prepared("plain20")
    done = with_skips(plain, images(32), padded=True)
    twin = create_model("resnet20").double().eval()
    twin.load_state_dict(done.model.state_dict())
    x = images(32, 3, seed=1)
    close(done.model(x), twin(x))
    assert len(done.changes) == 9
    assert [refusal.source for refusal in done.refusals] == ["stem.conv", "head.classifier"]
    found = census(capture(done.model, images(32)))
    assert [skip.kind for skip in found.skips] == ["add"] * 9
    assert all(skip.proven and skip.span == 2 for skip in found.skips)


def test_without_padding_skips_go_only_where_shapes_are_equal() -> None:
    done = with_skips(prepared("plain20"), images(32))
    assert len(done.changes) == 7
    reasons = {refusal.source: refusal.reason for refusal in done.refusals}
    assert len(reasons) == 6
    assert "(2, 16, 32, 32), and what the skip would be added to (2, 32, 16, 16)" in str(reasons)
    resnet = prepared("resnet20")  # the same weights, with skips where shapes are equal, by hand
    resnet.load_state_dict(prepared("plain20").state_dict())

    def written(x: Tensor) -> Tensor:
        x = resnet.stem(x)
        for stage in resnet.stages:
            for unit in stage:
                f = unit.branch(x)
                x = torch.relu(x + f if x.shape == f.shape else f)
        return resnet.head(x)

    x = images(32, 3, seed=1)
    close(done.model(x), written(x))


def test_a_vgg_gets_skips_inside_its_groups_and_trains() -> None:
    model = create_model("vgg11_bn", num_classes=5, head="linear")
    done = with_skips(model.train(), images(64).float(), every=1)
    assert done.model.training
    assert len(done.changes) == 4, "of eight layers those that keep their width: one of 256 and three of 512 channels"
    loss = F.cross_entropy(done.model(images(64, 4).float()), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(
        p.grad is not None and bool(p.grad.any())
        for name, p in done.model.named_parameters()
        if "classifier" in name or "conv" in name
    )
    assert set(done.model.state_dict()) == set(model.state_dict())
    assert not done.notes, "nothing computes otherwise than in the original, at any batch size"


def test_layers_with_skips_and_nets_where_nothing_fits_are_refused() -> None:
    with pytest.raises(RequestError, match=r"there is a skip round it already|has the shape"):
        with_skips(create_model("resnet20"), images(32).float())
    with pytest.raises(RequestError, match="takes no skip round 2 layers"):
        with_skips(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6)), torch.randn(2, 4))
    with pytest.raises(RequestError, match="one layer or more"):
        with_skips(nn.Linear(4, 4), torch.randn(2, 4), every=0)


def test_a_linear_stack_becomes_a_chain_of_sums() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).double()
    done = with_skips(model, torch.randn(2, 4, dtype=torch.float64), every=1)
    x = torch.randn(5, 4, dtype=torch.float64)
    y = x
    for layer in model:
        y = y + layer(y)
    close(done.model(x), y)


class Between(nn.Module):
    """Three linear layers, joined by `run`."""

    def __init__(self, run: Callable[[Between, Tensor], Tensor]) -> None:
        super().__init__()
        self.run, self.a, self.b, self.c = run, nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda net, x: x - net.a(x), "the branch has another sign or scale in the sum"),
        (lambda net, x: net.a(x) - x, "the bypass has another sign or scale in the sum"),
        (lambda net, x: torch.add(net.a(x), x, alpha=2), "the bypass has another sign or scale in the sum"),
        (lambda net, x: torch.add(x, net.a(x), alpha=2), "the branch has another sign or scale in the sum"),
        (lambda net, x: torch.cat([x, net.a(x)]), r"a concatenation: .* shape \(2, 4\) instead of \(4, 4\)"),
    ],
    ids=["minus the branch", "minus the bypass", "bypass doubled", "branch doubled", "along the batch"],
)
def test_why_a_skip_cannot_be_cut_is_true_of_it(run: Callable[[Between, Tensor], Tensor], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        plain_twin(Between(run), torch.randn(2, 4))


@pytest.mark.parametrize(
    ("run", "reasons"),
    [
        (lambda net, x: net.a(x) * net.b(x), {"a": "b does not read what a gives"}),
        (lambda net, x: net.c(net.b(net.a(x) * torch.sigmoid(x * 2))), {"a": "another signal joins between a and b"}),
        (lambda net, x: (lambda h: h + net.c(net.b(h)))(net.a(x)), {"a": "there is a skip round b already",
                                                                    "b": "there is a skip round it already"}),
        (lambda net, x: net.a(x) + net.c(net.b(x).relu()), {"a": "a is on the shortcut of a skip already"}),
    ],
    ids=["side by side", "joined", "round the second", "on the shortcut"],
)  # fmt: skip
def test_why_no_skip_is_put_in_is_true_of_the_layers(run: Callable[[Between, Tensor], Tensor], reasons: dict[str, str]) -> None:
    model = Between(lambda net, x: net.run_last(run(net, x)))
    model.run_last = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    found = {refusal.source: refusal.reason for refusal in with_skips(model, torch.randn(2, 4)).refusals}
    assert reasons.items() <= found.items(), found


def test_weights_that_are_computed_are_no_signal_that_joins() -> None:
    layers = [nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(2)]
    done = with_skips(nn.Sequential(layers[0], nn.ReLU(), layers[1]), torch.randn(2, 4))
    assert len(done.changes) == 1
