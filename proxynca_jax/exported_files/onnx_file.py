"""ONNX: a file for any runtime, and embedding with onnxruntime. Both need `pip install 'proxynca_jax[onnx]'`."""

import importlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.exported_files.inference import BATCH, images_of, inference_function
from proxynca_jax.models.network import Variables
from proxynca_jax.steps import EmbedStep
from proxynca_jax.version import __version__
from proxynca_jax.weights.converted_file import METADATA_KEY


def to_onnx(config: ModelConfig, variables: Variables, image_size: int, about: Mapping[str, Any]) -> bytes:
    """Returns the content of an ONNX file.

    Its input is `images`, uint8 RGB (batch, size, size, 3), and its output `embeddings`, float32 (batch, D).

    Args:
        config: of the network.
        variables: its arrays.
        image_size: pixels.
        about: the file's metadata, JSON-serialisable. It is one JSON string under `METADATA_KEY`.

    Raises:
        UserError: if the package onnx is not installed.
    """
    onnx = _import("onnx")
    onnx_graph = _import("proxynca_jax.exported_files.onnx_graph")
    graph = onnx_graph.to_graph(inference_function(config, variables), images_of(image_size), BATCH)
    opsets = [onnx.helper.make_opsetid("", onnx_graph.OPSET)]
    model = onnx.helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=onnx.helper.find_min_ir_version_for(opsets),  # the newest would exclude older runtimes
        producer_name="proxynca_jax",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(about)})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def onnxruntime_step(config: ModelConfig, variables: Variables, image_size: int) -> EmbedStep:
    """Makes an embedding step that onnxruntime computes, on this machine's CPU.

    Args:
        config: of the network.
        variables: its arrays. The step has these, and ignores those that it is given.
        image_size: pixels.

    Raises:
        UserError: if onnx or onnxruntime is not installed.
    """
    onnxruntime = _import("onnxruntime")
    content = to_onnx(config, variables, image_size, {})
    session: Any = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def embed(_: Any, images: Any) -> Any:
        (embeddings,) = session.run(None, {"images": np.asarray(images)})
        return embeddings

    return EmbedStep(fold=lambda _: session, embed=embed)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install 'proxynca_jax[onnx]'") from error
