"""A model as one file for other runtimes: ONNX, or PyTorch's own exported program.

A file takes a waveform and gives the scene embedding and the columns, for any batch and length, front end
included. It is compared with the eager model before it is written.
"""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hear_m2d.export.graph import ExportableModel
from hear_m2d.export.verify import TOLERANCE, Agreement, Runtime, compare
from hear_m2d.model.hear_model import HearModel
from hear_m2d.utils.errors import InputError, WorkFailedError
from hear_m2d.utils.files import atomic_write
from hear_m2d.utils.version import installed_version

INPUT, OUTPUTS = "audio", ("scene", "columns")
OPSET = 20
LARGEST_ONNX = 2**31 - 1  # bytes: the limit of one protocol buffer


def export_onnx(model: HearModel, path: str | os.PathLike[str], *, force: bool = False) -> Agreement:
    """Write one ONNX file, if onnxruntime computes from it what the eager model computes.

    Args:
        model: From :func:`hear_m2d.load_model`, on any device.
        path: The file to write.
        force: Replace the file if it exists.

    Returns:
        The difference between the file and the eager model.

    Raises:
        InputError: Options that no file can have.
        OSError: The file exists.
        WorkFailedError: The check failed; nothing was written.
    """
    return _export(model, path, force=force, serialize=onnx_bytes, run=run_onnx)


def export_torch(model: HearModel, path: str | os.PathLike[str], *, force: bool = False) -> Agreement:
    """Write one file for ``torch.export.load`` (.pt2); otherwise as :func:`export_onnx`."""
    return _export(model, path, force=force, serialize=torch_bytes, run=run_torch)


def _export(
    model: HearModel,
    path: str | os.PathLike[str],
    *,
    force: bool,
    serialize: Callable[[HearModel], bytes],
    run: Callable[[bytes], Runtime],
) -> Agreement:
    path = Path(path)
    check_exportable(model)
    check_target(path, force=force)
    data = serialize(model)
    agreement = compare(run(data), model)
    if not agreement.holds:
        raise WorkFailedError(
            f"the exported graph differs from the eager model by {agreement.scene:.2g} (scene) and "
            f"{agreement.columns:.2g} (columns), more than {TOLERANCE:g}: {path} was not written"
        )
    with atomic_write(path) as file:
        file.write(data)
    return agreement


def check_target(path: Path, *, force: bool) -> None:
    """Raise an OSError for a folder, and for a file that exists, without ``force``."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists: give another name, or --force (force=True)")


def check_exportable(model: HearModel) -> None:
    """Raise an InputError for options that a file cannot have."""
    for name, only, reason in (
        ("windows", "whole", "a file cuts long audio without losing frames"),
        ("normalization", "fixed", "a clip's embedding must not depend on its batch"),
        ("timestamps", "interpolate", "a file gives columns, not timestamps"),
        ("dtype", "float32", "a file computes in float32"),
    ):
        if (given := getattr(model.options, name)) != only:
            raise InputError(f"{name}={given!r} cannot be exported: {reason}. Use {name}={only!r}")


def metadata(model: HearModel) -> dict[str, str]:
    """Return the metadata of a file, as texts."""
    encoder, frontend = model.config.encoder, model.config.frontend
    return {
        "producer": f"hear-m2d {installed_version()}",
        "sample_rate": str(frontend.sample_rate),
        "hop_ms": f"{frontend.hop_ms:g}",
        "column_ms": f"{encoder.patch_size[1] * frontend.hop_ms:g}",
        "window_columns": str(encoder.grid[1]),
        "scene_embedding_size": str(model.scene_embedding_size),
        "column_size": str(encoder.column_width),
        "licence": model.config.licence,
        "config": json.dumps(model.config.to_json()),
        "options": json.dumps(asdict(model.options)),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's messages about its internals, which do not help users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def exported_program(model: HearModel) -> torch.export.ExportedProgram:
    """Trace the model once, for every batch and length."""
    dynamic = {INPUT: {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("samples", min=1)}}
    example = torch.zeros(2, 2 * model.sample_rate)
    with torch.no_grad(), _quiet():
        return torch.export.export(
            ExportableModel(model).eval(), (example,), dynamic_shapes=dynamic, strict=False
        )


def onnx_bytes(model: HearModel) -> bytes:
    """Return the model as the bytes of one ONNX file, its metadata in ``metadata_props``."""
    import onnx

    with _quiet():
        program: Any = torch.onnx.export(
            exported_program(model),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    if program.model_proto.ByteSize() > LARGEST_ONNX:
        raise InputError("the network is larger than the 2 GB of one ONNX file. Use --format torch")
    proto = program.model_proto
    del proto.graph.value_info[:]  # the exporter's names of inner sizes have no meaning
    dimensions = {INPUT: ["batch", "samples"], "scene": ["batch"], "columns": ["batch", "columns"]}
    for value in (*proto.graph.input, *proto.graph.output):
        for name, dimension in zip(dimensions[value.name], value.type.tensor_type.shape.dim, strict=False):
            dimension.dim_param = name
    onnx.helper.set_model_props(proto, metadata(model))
    proto.doc_string = "Audio in [-1, 1] at sample_rate, (batch, samples), to a scene embedding and columns."
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return data


def torch_bytes(model: HearModel) -> bytes:
    """Return the model as the bytes of a .pt2 file, its metadata in the extra file ``hear_m2d.json``."""
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(
            exported_program(model), buffer, extra_files={"hear_m2d.json": json.dumps(metadata(model))}
        )
    return buffer.getvalue()


def run_onnx(data: bytes) -> Runtime:
    """Return a function that runs an ONNX file with onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scene, columns = session.run(list(OUTPUTS), {INPUT: audio.numpy()})
        return torch.from_numpy(scene), torch.from_numpy(columns)

    return run


def run_torch(data: bytes) -> Runtime:
    """Return a function that runs a .pt2 file."""
    with _quiet():
        program = torch.export.load(io.BytesIO(data))
    runtime: Runtime = program.module()
    return runtime
