"""torch's ``.pth`` files, read by torch's weights-only reader: nothing in them is executed.

Besides tensors and containers, the authors' training files hold argparse namespaces, paths and numpy scalars.
They become namespaces, pure paths and Python numbers; any other type is refused.
"""

from __future__ import annotations

import argparse
import os
import re
import threading
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

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


def _allowed() -> list[Any]:
    """Return the types that a file may name besides torch's own, by the names that a pickle has for them."""
    types: dict[str, Any] = {"numpy.dtype": _NumpyType}
    types |= {f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")}
    for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"):
        for module in ("pathlib", "pathlib._local"):  # Python 3.13 says _local
            types[f"{module}.{name}"] = PureWindowsPath if "Windows" in name else PurePosixPath
    return [argparse.Namespace, *((kind, name) for name, kind in types.items())]


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """Read a ``.pth``, of the zip layout or the older one, with its tensors on the CPU.

    Tensors of the zip layout are memory-mapped.

    Raises:
        InputError: The file is damaged, not a ``.pth``, or holds a type that no checkpoint needs.
    """
    path = Path(path)
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_zip(path)
        with _LOCK, torch.serialization.safe_globals(_allowed()), path.open("rb") as file:
            # torch maps paths only, and takes one that ends in .safetensors for what it says.
            mapped = zipped and path.suffix.lower() != ".safetensors"
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except InputError:
        raise
    except Exception as error:  # any error of torch about a damaged file, AssertionError and OSError included
        # torch's own message advises to load with weights_only=False, which would run the file's code.
        if match := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise InputError(f"it holds {match[1]}, which no checkpoint does; it was not run") from error
        raise InputError(f"it is damaged or not a .pth ({type(error).__name__})") from error


def _check_zip(path: Path) -> None:
    """Check every member against its checksum: torch would load flipped bytes without an error."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise InputError(f"its member {info.filename[:200]!a} is compressed, which torch never does")
        if damaged := archive.testzip():
            raise InputError(f"its member {damaged[:200]!a} does not match its CRC")
