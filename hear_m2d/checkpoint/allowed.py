"""What a pickle may name, and the plain value that each name gives. Nothing named is imported or called.

Tensors (as places in the file), ordered dicts, argparse namespaces, paths, numpy scalars: what the authors'
training code stores. Any other name is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hear_m2d.utils.errors import InputError

# What may be named without being called: element types, of storages, of torch and of numpy.
TYPES = re.compile(
    r"torch\.(\w+Storage|b?float\d+|u?int\d+|complex\d+|bool)"
    r"|numpy\.(dtypes\.\w+DType|bool_?|(u?int|float|complex)\d+|str_|bytes_)"
)
NUMPY_CODES = re.compile(r"b1|\?|[iu][1248]|f[248]|c8|c16|[US]\d{1,4}")  # those that Python has values for


class RefusedTypeError(ValueError):
    """A pickle names a type or function that no checkpoint holds.

    Args:
        name: Its dotted name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(ascii(name[:100])[1:-1])


@dataclass(frozen=True)
class Name:
    """A global that a pickle names."""

    dotted: str


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that was not read yet: a view of a storage in the file.

    Attributes:
        storage: What the file's persistent id says of the storage.
        offset: First element.
        shape: Sizes.
        stride: Elements between neighbours along each axis.
    """

    storage: Any
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(eq=False)
class Attributes:
    """An ``argparse.Namespace``: its attributes, and nothing that could be called."""

    values: dict[str, Any] = field(default_factory=dict, init=False)


@dataclass(eq=False)
class NumpyType:
    """A numpy element type: its code, such as ``f8``, and its byte order."""

    code: str
    order: str = "<"


def _hashable(key: Any) -> Any:
    # Nested tuples of one another would take for ever to hash.
    if key is not None and type(key) not in {str, int, float, bool, bytes}:
        raise InputError(f"a {type(key).__name__} as a key")
    return key


def dict_of(values: list[Any]) -> dict[Any, Any]:
    """Return a dict of alternating keys and values; keys are plain."""
    return {_hashable(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def set_of(values: Any = ()) -> set[Any]:
    """Return a set of plain values."""
    return {_hashable(value) for value in values}


def named(module: Any, name: Any) -> Name:
    """Return what stands for a global.

    Raises:
        RefusedTypeError: It is not on the list.
    """
    if type(module) is not str or type(name) is not str:
        raise InputError("a global whose name is no text")
    dotted = f"{module}.{name}"
    if dotted not in CALLED and not TYPES.fullmatch(dotted):
        raise RefusedTypeError(dotted)
    return Name(dotted)


def call(name: Any, arguments: Any) -> Any:
    """Return the plain value that stands for a call of a global.

    Raises:
        RefusedTypeError: It may be named, but not called.
    """
    if type(name) is not Name or type(arguments) is not tuple:
        raise InputError(f"a call of a {type(name).__name__}")
    if name.dotted not in CALLED:
        raise RefusedTypeError(name.dotted)
    return CALLED[name.dotted](*arguments)


def _sizes(value: Any) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > 64:
        raise InputError("a tensor whose shape or stride is not one")
    if not all(type(n) is int and 0 <= n < 2**48 for n in value):
        raise InputError("a tensor whose shape or stride is not one")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    sizes, steps = _sizes(shape), _sizes(stride)
    if type(offset) is not int or offset < 0 or len(sizes) != len(steps):
        raise InputError("a tensor that is no view of a storage")
    return StoredTensor(storage=storage, offset=offset, shape=sizes, stride=steps)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _mapping(pairs: Any = ()) -> dict[Any, Any]:
    if type(pairs) is dict:
        return dict(pairs)
    return dict_of([value for pair in pairs for value in (pair[0], pair[1])])


def _path(*parts: Any) -> str:
    if not all(type(part) is str for part in parts):
        raise InputError("a path of something else than texts")
    return "/".join(part.rstrip("/\\") or part for part in parts).replace("//", "/")


def _device(*parts: Any) -> str:
    if not all(type(part) in {str, int} for part in parts):
        raise InputError("a device that is no text")
    return ":".join(map(str, parts))


def _numpy_type(code: Any, *_: Any) -> NumpyType:
    if type(code) is not str or not NUMPY_CODES.fullmatch(code):
        raise RefusedTypeError(f"numpy.dtype {code if type(code) is str else type(code).__name__}")
    return NumpyType(code)


def _numpy_scalar(kind: Any, data: Any) -> Any:
    import numpy as np

    if type(kind) is not NumpyType or type(data) is not bytes:
        raise InputError("a numpy scalar without a type or bytes")
    order = kind.order if kind.order in {"<", ">"} else ""
    (value,) = np.frombuffer(data, dtype=np.dtype(order + kind.code))
    return value.item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in {"latin1", "latin-1", "ascii", "utf-8"}:
        raise InputError("bytes that are no text")
    return text.encode(encoding)


CALLED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": tuple,
    "torch.device": _device,
    "argparse.Namespace": Attributes,
    "numpy.dtype": _numpy_type,
    "_codecs.encode": _encoded,
    **{f"{module}.{kind}": set_of for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    # Texts, whichever system wrote them: Windows cannot make a PosixPath. Python 3.13 says pathlib._local.
    **{
        f"{module}.{kind}": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    },
}
