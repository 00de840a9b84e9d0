"""Runs a `Graph` in torch: as a module, or any part of it with tensors edited on the way.

BatchNormalization nodes are real `nn.BatchNorm2d` children, so that whatever watches the inputs of
BN layers of a torch model does so here. Everything is frozen and in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effcv.errors import ArgumentError, DataError
from zeroq_gen.graph import Graph, Node
from zeroq_gen.ops import OPERATORS, hosted

Edit = Callable[[str, Tensor], Tensor]


class Network(nn.Module):
    """A graph as a torch module.

    Args:
        graph: The graph; its constants are copied.

    Attributes:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._integers: dict[str, Any] = {}
        self._places: dict[str, str] = {}  # ONNX name -> buffer name, which may hold no dots
        self._norms: dict[str, str] = {}
        for name, value in graph.constants.items():
            if np.issubdtype(value.dtype, np.floating):
                self._places[name] = f"constant_{len(self._places)}"
                tensor = torch.from_numpy(np.array(value, dtype=np.float32))
                if tensor.ndim == 4:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self.register_buffer(self._places[name], tensor, persistent=True)
            else:
                self._integers[name] = value
        for node in graph.nodes:
            if node.op == "BatchNormalization":
                self._norms[node.output] = f"norm_{len(self._norms)}"
                self.add_module(self._norms[node.output], _batch_norm(graph, node))
        self.eval().requires_grad_(requires_grad=False)

    def constant(self, name: str) -> Tensor:
        """Returns a weight by its ONNX name.

        Raises:
            ArgumentError: There is no floating-point constant of that name.
        """
        if name not in self._places:
            raise ArgumentError(f"the network has no weight {name!r}")
        return self.get_buffer(self._places[name])

    def norm_tensor(self, module: str) -> str:
        """Returns the tensor that a BN child makes, by the child's name: what messages call it."""
        return {child: tensor for tensor, child in self._norms.items()}[module]

    def forward(self, x: Tensor) -> Any:
        """Maps images (B, C, H, W) to the output, or to a tuple of them."""
        found = self.run({self.graph.input: x}, self.graph.outputs)
        results = tuple(found[name] for name in self.graph.outputs)
        return results[0] if len(results) == 1 else results

    def run(
        self,
        feeds: Mapping[str, Tensor],
        targets: Sequence[str],
        *,
        edit: Edit | None = None,
        constants: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Computes tensors from others, running only the nodes between.

        Args:
            feeds: Tensors by name; what lies before them is not run.
            targets: Names of the tensors wanted.
            edit: Called with the name and value of the image and of every tensor made; what it
                returns takes the tensor's place. Feeds other than the image are taken as they are.
            constants: Weights by name that take the place of the graph's.

        Raises:
            ArgumentError: A target does not follow from the feeds.
        """
        values: dict[str, Any] = dict(feeds)
        if edit is not None and self.graph.input in values:
            values[self.graph.input] = edit(self.graph.input, values[self.graph.input])
        nodes = self._between(values, targets)
        last_use = _last_uses(nodes, targets)
        for step, node in enumerate(nodes):
            inputs = [self._value(name, values, constants) for name in node.inputs]
            try:
                made = self._operate(node, inputs)
            except (RuntimeError, IndexError, ValueError, TypeError, KeyError) as error:
                if isinstance(error, DataError | ArgumentError):
                    raise
                reason = str(error).strip().splitlines()[0]
                raise DataError(f"{node.op} (makes {node.output!r}) failed: {reason}") from error
            for name, value in zip(node.outputs, made if isinstance(made, tuple) else (made,),
                                   strict=False):  # fmt: skip
                edited = edit is not None and torch.is_tensor(value) and value.is_floating_point()
                values[name] = edit(name, value) if edited and edit else value
            for name in last_use.get(step, ()):
                values.pop(name, None)
        return {name: values[name] for name in targets}

    def _between(self, feeds: Mapping[str, Any], targets: Sequence[str]) -> list[Node]:
        """Returns the nodes that the targets need and the feeds do not replace."""
        needed = {name for name in targets if name not in feeds}
        nodes: list[Node] = []
        for node in reversed(self.graph.nodes):
            if needed.intersection(node.outputs):
                nodes.append(node)
                needed.difference_update(node.outputs)
                needed.update(
                    name for name in node.inputs
                    if name and name not in feeds and name not in self.graph.constants
                )  # fmt: skip
        if needed:
            raise ArgumentError(f"{sorted(needed)[0]!r} cannot be computed from {sorted(feeds)}")
        return nodes[::-1]

    def _value(
        self, name: str, values: Mapping[str, Any], constants: Mapping[str, Tensor] | None
    ) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        if constants is not None and name in constants:
            return constants[name]
        return self._integers[name] if name in self._integers else self.constant(name)

    def _operate(self, node: Node, inputs: list[Any]) -> Any:
        if node.op == "BatchNormalization":
            return self.get_submodule(self._norms[node.output])(inputs[0])
        operator = OPERATORS.get(node.op) if not node.domain else None
        if operator is None or _is_shape_arithmetic(node, inputs):
            return hosted(node, *inputs)
        return operator(node, *inputs)


def _is_shape_arithmetic(node: Node, inputs: Sequence[Any]) -> bool:
    """Tells whether a node computes with integers, as shapes are: torch has other rules there."""
    data = inputs if node.op in ("Concat", "Add", "Sub", "Mul", "Div") else inputs[:1]
    return any(
        isinstance(x, np.ndarray) or (torch.is_tensor(x) and not x.is_floating_point())
        for x in data
    )


class _Norm(nn.BatchNorm2d):
    """The one BatchNormalization of ONNX, for inputs (B, C) and (B, C, ...) alike."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass


def _batch_norm(graph: Graph, node: Node) -> _Norm:
    """Builds the module of a BatchNormalization node, whose parameters must be constants."""
    found = [graph.constant(name) for name in node.inputs[1:5]]
    if any(value is None for value in found):
        raise DataError(f"BatchNormalization (makes {node.output!r}) has computed parameters")
    weight, bias, mean, var = (torch.from_numpy(np.array(v, dtype=np.float32)) for v in found)
    norm = _Norm(len(mean), eps=node.attributes.get("epsilon", 1e-5))
    norm.load_state_dict(
        {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var,
         "num_batches_tracked": torch.tensor(1)}
    )  # fmt: skip
    return norm


def _last_uses(nodes: Sequence[Node], targets: Sequence[str]) -> dict[int, list[str]]:
    """Returns, by step, the tensors that nothing reads afterwards."""
    last: dict[str, int] = {}
    for step, node in enumerate(nodes):
        for name in filter(None, (*node.inputs, *node.outputs)):
            last[name] = step
    found: dict[int, list[str]] = {}
    for name, step in last.items():
        if name not in targets:
            found.setdefault(step, []).append(name)
    return found
