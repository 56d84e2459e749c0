"""Any module as a graph of functional operations: by torch.export, else by a trace of what it does. Layer 3.

The graph holds operations of torch.ops.aten without side effects, in evaluation mode, for inputs of the shapes of the examples.
`residua.functional` and `residua.merging` bring it into the form that `residua.census` reads. The model itself is not changed.
"""

from __future__ import annotations

import io
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx

from residua.errors import RequestError
from residua.functional import decline, inline_regions, remove_side_effects, sharing, without_checks
from residua.merging import fold_merges

__all__ = ["Captured", "capture", "module_path", "shape_of"]

_ONE_WAY = "Control flow that depends on the data could not be excluded: the graph is the one way that the example inputs take."
_NOT_EXPORTED = "torch.export refused the module ({reason}); torch.fx showed that its control flow does not depend on the data."


@dataclass(frozen=True)
class Captured:
    """A module as a graph.

    `module` is a `torch.fx.GraphModule` of functional aten operations that is called as the model is; its parameters and buffers
    are those of the model itself. Every merge in it has two operands: concatenations of more, and stacks, are folded from
    the left, equal folds being one node. `example_inputs` are the inputs it was captured with. `how` is "export" (torch.export),
    "fx" (a trace, after torch.fx had shown that control flow does not depend on the data) or "dispatch" (a trace of the one way
    that these inputs take), and `unseen` says in sentences what that could not see. `recurrent` are the paths of recurrent
    modules, each call of which counts as one weight layer.
    """

    module: fx.GraphModule
    example_inputs: tuple[Any, ...]
    how: str
    unseen: tuple[str, ...] = ()
    recurrent: frozenset[str] = frozenset()


def module_path(node: fx.Node) -> str:
    """The path of the module in whose forward pass the node stands; "" for the model itself, or where it is not known."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of what the node gives; () where that is no tensor or not known."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def capture(model: nn.Module, example_inputs: tuple[Any, ...] | Tensor) -> Captured:
    """The graph of `model` in evaluation mode for inputs of the shapes and types of `example_inputs`.

    `example_inputs` are the positional arguments of a call (tensors; None where an argument is left out). Raises `RequestError`
    where the model does not run on them, or cannot be captured in any of the three ways; the reason is in the message.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    _check(model, inputs)
    unseen: tuple[str, ...] = ()
    with _quiet(), _evaluating(model):
        try:
            module, how = _exported(model, inputs), "export"
        except Exception as error:
            reason = _first_line(error)
            try:
                module = _traced(model, inputs)
            except Exception as failure:
                raise RequestError(
                    f"{type(model).__name__} cannot be captured. torch.export: {reason} Tracing: {_first_line(failure)}"
                ) from failure
            how, unseen = ("fx", (_NOT_EXPORTED.format(reason=reason),)) if _is_static(model) else ("dispatch", (_ONE_WAY,))
        fold_merges(module.graph)
        module.graph.eliminate_dead_code()
        plain = fx.GraphModule(sharing(module, module.graph), module.graph, type(model).__name__)
        _note_stored(plain)
    recurrent = frozenset(path for path, part in model.named_modules() if isinstance(part, (nn.RNNBase, nn.RNNCellBase)))
    return Captured(plain.eval(), inputs, how, unseen, recurrent)


def _check(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    if not isinstance(model, nn.Module):
        raise RequestError(f"A model to take apart is a torch.nn.Module, not {type(model).__name__}.")
    if not any(isinstance(value, Tensor) for value in inputs):
        raise RequestError("Example inputs are needed: the tensors that the model is called with, as a tuple.")
    try:
        with torch.no_grad(), _quiet(), _evaluating(model):
            model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(value.shape)) if isinstance(value, Tensor) else repr(value) for value in inputs)
        raise RequestError(
            f"{type(model).__name__} does not run on the example inputs, of shape {shapes}: {_first_line(error)} "
            "Give inputs of the shapes and types that it takes."
        ) from error


def _exported(model: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    """By torch.export; the functionalisation of torch is asked only where ours, which is quicker, declines."""
    program = torch.export.export(model, inputs, strict=False)
    module = _unlifted(program)
    if not remove_side_effects(module.graph):
        module = _unlifted(program.run_decompositions({}))
        if not remove_side_effects(module.graph):
            raise ValueError(f"operations with side effects stay in its graph: {decline(module.graph)}")
    return module


def _unlifted(program: torch.export.ExportedProgram) -> fx.GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    inline_regions(module)
    without_checks(module.graph)
    return module


def _is_static(model: nn.Module) -> bool:
    """Whether torch.fx can trace it, which it cannot where control flow depends on the data."""
    try:
        fx.symbolic_trace(model)
    except Exception:
        return False
    return True


def _traced(model: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    """What the model does with these inputs, operation by operation, without side effects.

    The kernels of oneDNN and of fused attention are left aside: they know no float64, in which the census computes.
    """
    tensors = [value for value in inputs if isinstance(value, Tensor)]

    def run(*given: Tensor) -> Any:
        rest = iter(given)
        return model(*(next(rest) if isinstance(value, Tensor) else value for value in inputs))

    with ExitStack() as stack:
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        stack.enter_context(fx_traceback.preserve_node_meta())
        stack.enter_context(_noting_paths(model))
        functional = torch.func.functionalize(run, remove="mutations")
        traced = make_fx(functional, tracing_mode="real", _error_on_data_dependent_ops=False)(*tensors)
    _restore_placeholders(traced.graph, inputs)
    without_checks(traced.graph)
    remove_side_effects(traced.graph)  # those on buffers remain
    return _named(traced, model)


@contextmanager
def _noting_paths(model: nn.Module) -> Iterator[None]:
    """Within the block every node that is traced notes the module whose forward pass makes it."""
    stack: dict[str, tuple[str, Any]] = {}
    calls = itertools.count()
    handles = []

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: Any) -> None:
            stack[f"{path}@{next(calls)}"] = (path, type(module))
            fx_traceback.current_meta["nn_module_stack"] = dict(stack)

        return hook

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        stack.popitem()
        fx_traceback.current_meta["nn_module_stack"] = dict(stack)

    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        fx_traceback.current_meta.pop("nn_module_stack", None)


def _restore_placeholders(graph: fx.Graph, inputs: tuple[Any, ...]) -> None:
    """A placeholder again for each input that is no tensor, so that the graph is called as the model is."""
    existing = [node for node in graph.nodes if node.op == "placeholder"]
    for position, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            later = existing[position] if position < len(existing) else next(n for n in graph.nodes if n.op != "placeholder")
            with graph.inserting_before(later):
                added = graph.placeholder(f"input_{position + 1}")
            existing.insert(position, added)
        else:
            existing[position]._rename(f"input_{position + 1}")
            existing[position].target = existing[position].name


def _named(traced: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """The graph with the parameters and buffers of the model under their own names."""
    names = {id(tensor): name for name, tensor in model.named_parameters(remove_duplicate=False)}
    names |= {id(tensor): name for name, tensor in model.named_buffers(remove_duplicate=False)}
    attributes: dict[str, Any] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = getattr(traced, node.target)
            node.target = names.get(id(value), node.target)
            attributes[node.target] = value
    return fx.GraphModule(attributes, traced.graph)


def _note_stored(module: fx.GraphModule) -> None:
    """Notes at the nodes of parameters and buffers what they hold, as the other nodes have it."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            node.meta["val"] = value.detach() if isinstance(value, Tensor) else value


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block torch's own remarks on tracing are not shown, and no global generator of random numbers moves on."""
    logger = logging.getLogger("torch")
    level = logger.level
    # Data-dependent control flow makes torch.export print the whole graph before it refuses.
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
