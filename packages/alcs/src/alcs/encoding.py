"""The plan's dataclasses as JSON, and back with every type checked.

What `decode` returns has the types that the annotations promise, whatever the JSON held; whether it
makes sense is for `alcs.validation` to say. JSON has no infinity: it is written as a string.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from effcv.errors import DataError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Returns what JSON can hold of a dataclass, tuple, mapping, number or string."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value


def decode(kind: type[T], data: Any, *, what: str = "the plan") -> T:
    """Builds a ``kind`` from what `encode` made of one.

    Args:
        kind: A dataclass, or any annotation that its fields use.
        data: From `json.loads`.
        what: The whole, for messages: ``"the plan.layers[0].stride is ..."``.

    Raises:
        DataError: Something has another type, or a field is missing or unknown.
    """
    decoded: T = _decode(kind, data, what)
    return decoded


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, data, where)
    if origin is tuple:
        return _decode_tuple(arguments, data, where)
    if origin is Literal:
        return data if data in arguments else _refuse(data, where, kind)
    if origin is not None and issubclass(origin, Mapping):
        return {
            _decode(arguments[0], key, where): _decode(arguments[1], item, f"{where}.{key}")
            for key, item in _decode_plain(dict, data, where).items()
        }
    return _decode_plain(kind, data, where)


def _decode_fields(kind: Any, data: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    if not isinstance(data, dict):
        _refuse(data, where, f"the fields {', '.join(hints)}")
    for name in (name for name in hints if name not in data):
        raise DataError(f"{where} lacks the field {name!r}")
    for name in (name for name in data if name not in hints):
        raise DataError(f"{where} has the field {name!r}, expected {', '.join(hints)} alone")
    return kind(**{name: _decode(hints[name], data[name], f"{where}.{name}") for name in hints})


def _decode_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    items = _decode_plain(list, data, where)
    if arguments[-1] is Ellipsis:
        arguments = arguments[:1] * len(items)
    if len(items) != len(arguments):
        _refuse(data, where, f"{len(arguments)} entries")
    pairs = zip(arguments, items, strict=True)
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(pairs))


def _decode_plain(kind: Any, data: Any, where: str) -> Any:
    """Takes bool, int, float, str, list or dict as it is; a float may be an int or infinite."""
    if kind is float and (data in ("inf", "-inf") or type(data) is int):
        return float(data)
    return data if type(data) is kind else _refuse(data, where, kind)


def _refuse(data: Any, where: str, expected: Any) -> Any:
    name = expected.__name__ if isinstance(expected, type) else expected
    raise DataError(f"{where} is {str(data)[:40]!r}, expected {name}")
