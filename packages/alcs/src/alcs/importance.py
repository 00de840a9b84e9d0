"""What a group is worth, and the candidates that the allocation chooses from.

The projection of ADMM is defined on raw energies, ||V_g||^2. The others are ablations of the field:
energies by the mean of their layer, so that layers count alike; by what is left of their layer, so
that no layer is starved; and an estimate of what the loss gains by the group's absence. By that one
the projection is the nearest network, too, in the norm that Fisher's information gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from alcs.allocation import Candidate, Option
from alcs.groups import check_group, group_view
from alcs.latency import LatencyTable, LayerLatency
from effcv.errors import ArgumentError, DataError, choose

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", npt.NDArray[Any], "torch.Tensor")
Importance = Literal["raw", "normalised", "lamp", "taylor"]
Densities = float | Mapping[str, float]


def group_importance(
    weight: Array, group: int, kind: Importance = "raw", *, gradient: Array | None = None
) -> Array:
    """Returns what each group is worth, (N,), in the order of `alcs.groups.group_norms`.

    - ``"raw"``: the energy ||V_g||^2.
    - ``"normalised"``: the energy by the mean energy of one weight of the layer. For one G these
      are the field's e / mean e, but for a factor that all layers share; for several they compare.
    - ``"lamp"``: the energy by the sum of the layer's energies that are no lower: layer-adaptive
      magnitude (Lee et al., arXiv 2010.07611) with groups in place of single weights. The highest
      group of a layer has 1 whatever its norm, so no layer is starved.
    - ``"taylor"``: the sum over the group of (gradient times weight)^2, with the root mean square
      of the gradient over batches: what the loss gains by the group's absence, to second order with
      Fisher's diagonal for the curvature (in the manner of Molchanov et al., arXiv 1906.10771).

    Args:
        weight: (O, I, KH, KW) or (O, I).
        group: G.
        kind: Which of the four.
        gradient: Of the loss, root mean square over batches, of the weight's shape; for
            ``"taylor"`` alone.

    Raises:
        ArgumentError: The kind is unknown, or the gradient is missing or of another shape.
    """
    choose(kind, get_args(Importance), "importance")
    if kind == "taylor":
        if gradient is None or tuple(gradient.shape) != tuple(weight.shape):
            found = "none" if gradient is None else tuple(gradient.shape)
            raise ArgumentError(
                f"importance 'taylor' needs the gradient of a weight {tuple(weight.shape)}, "
                f"found {found}"
            )
        weight = weight * gradient
    view = group_view(weight, group)  # (O / G, G, I * KH * KW)
    energies: Array = _summed(view * view)
    if kind == "lamp":
        return _lamp(energies)
    if kind != "normalised":
        return energies
    mean = float(energies.sum()) / math.prod(weight.shape)
    return energies / mean if mean > 0 else energies


def candidates_from(
    table: LatencyTable,
    weights: Mapping[str, Array],
    *,
    groups: Sequence[int] = (4,),
    importance: Importance = "raw",
    gradients: Mapping[str, Array] | None = None,
    min_density: Densities = 0.02,
    max_density: Densities = 1.0,
) -> list[Candidate]:
    """Returns a candidate for every layer of the latency table.

    Args:
        table: Of the network; names every layer in ``weights`` and no other.
        weights: By the layer's name, numpy or torch, in the order in which groups are formed.
        groups: Group sizes to choose from, all of them in the table.
        importance: Of the groups, see `group_importance`.
        gradients: By the layer's name, for ``"taylor"``.
        min_density: Least share of the groups to keep, for all layers or by layer (0.02 for those
            not named); 1 keeps a layer dense.
        max_density: Largest share, for all layers or by layer (1 for those not named).

    Raises:
        ArgumentError: A group size, importance or density is none, a density is given for an
            unknown layer, or ``"taylor"`` has no gradients.
        DataError: The table and the weights do not name the same layers, or the table was not
            measured with one of the group sizes.
    """
    if not groups:
        raise ArgumentError("there is no group size, expected one or more")
    _same_layers(table, weights)
    least = _by_layer(min_density, 0.02, table)
    largest = _by_layer(max_density, 1.0, table)

    def option(layer: LayerLatency, group: int) -> Option:
        _check_measured(table, layer, group)
        gradient = gradients.get(layer.name) if gradients else None
        energies = group_importance(
            _numpy(weights[layer.name]),
            group,
            importance,
            gradient=None if gradient is None else _numpy(gradient),
        )
        return Option(group, energies.astype(np.float32, copy=False), layer.curves[group])

    return [
        Candidate(
            name=name,
            options=tuple(option(layer, group) for group in groups),
            dense_ms=layer.dense_ms,
            min_density=least[name],
            max_density=largest[name],
            pixels=_pixels(layer),
        )
        for name, layer in table.layers.items()
    ]


def _check_measured(table: LatencyTable, layer: LayerLatency, group: int) -> None:
    check_group(group)
    if group not in layer.curves:
        raise DataError(
            f"the latency table of {table.model!r} has no times of layer {layer.name!r} with "
            f"groups of {group}, only of {sorted(layer.curves)}; profile with this group size"
        )


def layer_adaptive(ascending: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Returns e / (sum of the energies that are no lower) of ascending energies; 0 where e is."""
    energies = ascending.astype(np.float64)
    no_lower = np.cumsum(energies[::-1])[::-1]
    return np.divide(energies, no_lower, out=np.zeros_like(energies), where=no_lower > 0)


def _lamp(energies: Array) -> Array:
    found = _numpy(energies)
    order = np.argsort(found)
    scores = np.empty_like(found)
    scores[order] = layer_adaptive(found[order])
    returned: Array = scores if isinstance(energies, np.ndarray) else energies.new_tensor(scores)
    return returned


def _summed(view: Array) -> Array:
    """Returns the sums over the groups, (ceil(O / G), G, columns) -> (N,)."""
    summed: Array = view.sum(1).reshape(-1)
    return summed


def _same_layers(table: LatencyTable, weights: Mapping[str, Any]) -> None:
    for names, others, words in (
        (weights, table.layers, "the latency table lacks the layer"),
        (table.layers, weights, "there is no weight for the latency table's layer"),
    ):
        if missing := [name for name in names if name not in others]:
            raise DataError(
                f"{words} {missing[0]!r} ({len(missing)} in all); "
                f"profile the network that is to be pruned, {table.model!r} was measured"
            )


def _pixels(layer: LayerLatency) -> int:
    """Returns height times width of the output, from ``"... on 56x56"``; 1 of a linear layer."""
    _, on, size = layer.shape.rpartition(" on ")
    return math.prod(map(int, size.split("x"))) if on else 1


def _by_layer(given: Densities, default: float, table: LatencyTable) -> dict[str, float]:
    """Returns one density for every layer."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(table.layers, float(given))
    for name in given:
        choose(name, table.layers.keys(), "layer")
    return {name: float(given.get(name, default)) for name in table.layers}


def _numpy(array: Any) -> npt.NDArray[Any]:
    """Returns an array of either kind as numpy's, without a copy where it lies in memory."""
    found: npt.NDArray[Any] = (
        array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
    )
    return found
