"""A copy of a captured graph that can be changed and then trained. Layer 3.

A graph is captured in evaluation mode. For training, batch normalisations become the model's own modules again, and dropouts
modules of their own; what else depends on the mode (stochastic depth, a model's own `if self.training`) is told, not guessed.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from residua.functional import operation, sharing
from residua.graph import Captured
from residua.network import Network

__all__ = ["Rewired"]

_BATCH_NORMS = {"batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm"}
_DROPOUTS = {
    "dropout": nn.Dropout,
    "feature_dropout": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}


class Rewired:
    """A copy of a captured graph in the making: `nodes` maps the nodes of the captured graph to those of `graph`."""

    def __init__(self, model: nn.Module, captured: Captured) -> None:
        self.model, self.captured = model, captured
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.graph.output(self.graph.graph_copy(captured.module.graph, self.nodes))
        self.graph.set_codegen(captured.module.graph._codegen)
        self.notes = [*captured.unseen, *_modes(model)]

    def module(self) -> fx.GraphModule:
        """The changed graph as a module in the model's mode; it has the model's parameters under their names, as far as it reads
        them."""
        self.graph.eliminate_dead_code()
        norms = dict(self._restore_norms())
        dropouts = self._restore_dropouts()
        for node in [node for node in self.graph.nodes if node.op == "get_attr" and not node.users]:
            self.graph.erase_node(node)
        root = sharing(self.captured.module, self.graph)
        for path, module in {**norms, **dropouts}.items():
            parent, _, name = path.rpartition(".")
            place = root
            for part in parent.split(".") if parent else ():
                if not hasattr(place, part):
                    place.add_module(part, nn.Module())
                place = getattr(place, part)
            place.add_module(name, module)
        built = fx.GraphModule(root, self.graph, type(self.model).__name__)
        self.notes += _batch_size(built.eval(), self.captured.example_inputs)
        return built.train(self.model.training)

    def idle(self, built: nn.Module) -> tuple[str, ...]:
        """The names of the model's parameters that `built` does not have."""
        kept = {id(parameter) for parameter in built.parameters()}
        return tuple(name for name, parameter in self.model.named_parameters() if id(parameter) not in kept)

    def _restore_norms(self) -> Iterator[tuple[str, nn.Module]]:
        for node in [node for node in self.graph.nodes if operation(node) in _BATCH_NORMS]:
            mean = next((n for n in node.all_input_nodes if n.op == "get_attr" and str(n.target).endswith("running_mean")), None)
            path = str(mean.target).rpartition(".")[0] if mean is not None else ""
            owner = _submodule(self.model, path)
            if not isinstance(owner, _BatchNorm):
                self.notes.append(f"The batch normalisation {node.name!r} belongs to no module: it stays in evaluation mode.")
                continue
            with self.graph.inserting_before(node):
                call = self.graph.create_node("call_module", path, (node.args[0],))
            call.meta.update(node.meta)
            readers = list(node.users)
            taken = all(reader.target is operator.getitem and reader.args[1] == 0 for reader in readers)
            for replaced in readers if taken and operation(node) not in ("batch_norm", "cudnn_batch_norm") else [node]:
                replaced.replace_all_uses_with(call)
                self.graph.erase_node(replaced)
            if not node.users and node in self.graph.nodes:
                self.graph.erase_node(node)
            yield path, owner

    def _restore_dropouts(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        for node in [node for node in self.graph.nodes if operation(node) in _DROPOUTS]:
            share = node.args[1]
            if not share:
                continue
            path = f"dropouts.{len(found)}"
            found[path] = _DROPOUTS[operation(node)](share)
            with self.graph.inserting_before(node):
                call = self.graph.create_node("call_module", path, (node.args[0],))
            call.meta.update(node.meta)
            node.replace_all_uses_with(call)
            self.graph.erase_node(node)
        return found


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path) if path else None
    except AttributeError:
        return None


def _modes(model: nn.Module) -> list[str]:
    """Which modules may compute otherwise in training than the graph does, as their sources show."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        own = isinstance(module, (_BatchNorm, _DropoutNd))
        attends = isinstance(module, nn.MultiheadAttention)
        if own or (attends and not module.dropout) or (isinstance(module, nn.RNNBase) and not module.dropout):
            continue
        if isinstance(module, Network) and not len(module.auxiliaries):
            continue  # only its auxiliary heads are for training
        if attends or _asks_mode(type(module)):
            found.setdefault(type(module).__name__, path)
    return [
        f"{kind} (at {path or 'the top'!r}) asks whether it is trained; it computes as in evaluation, also in training mode."
        for kind, path in found.items()
    ]


def _asks_mode(kind: type) -> bool:
    try:
        return "self.training" in inspect.getsource(kind)
    except (OSError, TypeError):
        return False


def _batch_size(built: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    """Whether the module takes twice as many samples and gives the same for each."""
    try:
        with torch.no_grad():
            once, twice = built(*inputs), built(*(torch.cat((x, x)) if isinstance(x, Tensor) else x for x in inputs))
        one = once if isinstance(once, Tensor) else next(iter(once))
        two = twice if isinstance(twice, Tensor) else next(iter(twice))
        same = two.shape[0] == 2 * one.shape[0] and torch.allclose(two[: len(one)], one, rtol=1e-3, atol=1e-4)
    except Exception:
        same = False
    return [] if same else ["It takes inputs of the shapes of the example inputs only: their batch size is written in the graph."]
