"""torch's ``.pth`` files, read by torch's weights-only reader: nothing in them is executed.

Besides tensors and containers, a file may hold what the authors' training code stores: argparse namespaces,
paths and numpy scalars. They become namespaces, pure paths and Python numbers; any other type is refused.
"""

from __future__ import annotations

import argparse
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np
import torch

from hear_m2d.utils.errors import InputError

_LOCK = threading.Lock()  # torch's list of allowed types is global
NUMPY_CODES = re.compile(r"b1|\?|[iu][1248]|f[248]|c8|c16|[US]\d{1,4}")


class _NumpyType:
    """Replaces a numpy element type, whose state could be malicious."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not NUMPY_CODES.fullmatch(code):
            raise InputError(f"it holds numpy values of type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = state[1]


def _numpy_scalar(kind: _NumpyType, data: bytes) -> Any:
    return np.frombuffer(data, dtype=np.dtype(kind.order + kind.code))[0].item()


def _allowed() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the types that a file may name besides torch's own, by the names that a pickle has for them."""
    paths = {
        f"{module}.{prefix}{name}": PureWindowsPath if name == "WindowsPath" else PurePosixPath
        for module in ("pathlib", "pathlib._local")  # Python 3.13 says _local
        for prefix, name in (("", "Path"), ("Pure", "Path"), ("", "PosixPath"), ("", "WindowsPath"))
    } | {
        f"{module}.Pure{name}": kind
        for module in ("pathlib", "pathlib._local")
        for name, kind in (("PosixPath", PurePosixPath), ("WindowsPath", PureWindowsPath))
    }
    scalars = {f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")}
    names: dict[str, Callable[..., Any]] = {**paths, **scalars, "numpy.dtype": _NumpyType}
    return [argparse.Namespace, *((kind, name) for name, kind in names.items())]


def load_torch_file(file: str | IO[bytes]) -> Any:
    """Read a ``.pth``, of the zip layout or the older one.

    Args:
        file: A path, whose tensors are then memory-mapped where the layout allows it, or an open file.

    Returns:
        What was saved, with its tensors on the CPU.

    Raises:
        InputError: The file is damaged, not a ``.pth``, or holds a type that no checkpoint needs.
    """
    try:
        zipped = zipfile.is_zipfile(file)
        if zipped:
            _check_zip(file)
        # torch maps paths only, and reads those that end in .safetensors as what they say.
        mapped = zipped and isinstance(file, str) and not file.lower().endswith(".safetensors")
        if isinstance(file, str) and not mapped:
            with Path(file).open("rb") as opened:
                return _load(opened, mapped=False)
        return _load(file, mapped=mapped)
    except InputError:
        raise
    except Exception as error:  # any error of torch about a damaged file, AssertionError and OSError included
        # torch's own message advises to load with weights_only=False, which would run the file's code.
        if found := re.search(r"GLOBAL ([\w.]+)|class ([\w.]+) ", str(error)):
            name = found[1] or found[2]
            raise InputError(f"it holds {name}, which no checkpoint does; it was not run") from error
        raise InputError(f"it is damaged or not a .pth ({type(error).__name__})") from error


def _load(file: str | IO[bytes], *, mapped: bool) -> Any:
    if not isinstance(file, str):
        file.seek(0)
    with _LOCK, torch.serialization.safe_globals(_allowed()):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def _check_zip(file: str | IO[bytes]) -> None:
    """Check every member against its checksum: torch would load flipped bytes without an error."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise InputError(f"its member {info.filename[:200]!a} is compressed, which torch never does")
        if damaged := archive.testzip():
            raise InputError(f"its member {damaged[:200]!a} does not match its CRC")
