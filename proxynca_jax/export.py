"""Exports a network for other programs.

    python -m proxynca_jax.export runs/cars --format hub -o cars-embedder
    python -m proxynca_jax.export runs/cars --format onnx -o cars.onnx
    python -m proxynca_jax.export efficientnet_lite0 --format stablehlo -o lite0.stablehlo

| format | output |
| --- | --- |
| `hub` | a folder for the Hugging Face Hub, with a model card; `Embedder.from_pretrained` reads it |
| `onnx` | a file for onnxruntime and others: uint8 RGB images to unit vectors |
| `stablehlo` | the same for JAX, on CPU, CUDA and TPU, and a file with `.json` added to its name that describes it |
| `torch` | a PyTorch state dict in a safetensors file: the weights alone |

The first three contain the network with its normalisation. `hub` exports runs. The others also take weights: a
converted file, an exported network's folder, or the name of a package's weights.

The output must not exist. It appears when it is complete, so an error or Ctrl-C leaves nothing half-written.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import json
import os
import pathlib
import shlex
from typing import Any

from proxynca_jax.embedder import Embedder
from proxynca_jax.errors import UserError
from proxynca_jax.exported_files import onnx_file, stablehlo_file, torch_file
from proxynca_jax.hub_export import write_hub_folder
from proxynca_jax.machine.arguments import path
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.output import print_line
from proxynca_jax.runs.checkpoint import KINDS
from proxynca_jax.version import __version__

HUB = "hub"
READERS = {  # by format: how the file is read
    "onnx": "onnxruntime.InferenceSession({!r}).run(None, {{'images': images}})",
    "stablehlo": "jax.export.deserialize(pathlib.Path({!r}).read_bytes()).call(images)",
    "torch": "network.load_state_dict(safetensors.torch.load_file({!r}), strict=True)",
}
FORMATS = (HUB, *READERS)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.export", description=summary)
    parser.add_argument("run", type=path, metavar="RUN", help="the folder of a training run, or weights")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="hub: a folder for the Hugging Face Hub; the others: a file"
    )
    parser.add_argument("-o", "--output", type=path, required=True, metavar="PATH", help="must not exist")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="which of its states (default: best)")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.format == HUB:
            _export_folder(options)
        else:
            _export_file(options)


def _export_folder(options: argparse.Namespace) -> None:
    write_hub_folder(options.run, options.output, checkpoint=options.checkpoint)
    print_line(
        f"{options.output}: the network with its model card, README.md. Read the card, and choose a licence in it."
    )
    print_line(f"use it:      Embedder.from_pretrained({str(options.output)!r})")
    print_line(f"publish it:  hf upload owner/name {shlex.quote(str(options.output))}")


def _export_file(options: argparse.Namespace) -> None:
    output: pathlib.Path = options.output
    description = output.with_name(f"{output.name}.json")
    written = [output, description] if options.format == "stablehlo" else [output]
    for file in written:
        if os.path.lexists(file):
            raise UserError(f"{file} exists. Name a file that does not exist yet, or delete this one first.")
    embedder = Embedder.load(options.run, checkpoint=options.checkpoint)
    about = describe(embedder)
    model, variables = embedder.config.model, embedder.network.variables
    image_size = embedder.config.data.image_size
    match options.format:
        case "onnx":
            content = onnx_file.to_onnx(model, variables, image_size, about)
        case "stablehlo":
            content = stablehlo_file.to_stablehlo(model, variables, image_size)
            replace_file(description, f"{json.dumps(about, indent=2)}\n".encode())
        case _:
            content = torch_file.to_torch(model.backbone, variables, about)
    replace_file(output, content)
    print_line(f"{' and '.join(map(str, written))}: {about['backbone']}, {about['dimensions']} dimensions")
    print_line(f"read it:  {READERS[options.format].format(str(output))}")


def describe(embedder: Embedder) -> dict[str, Any]:
    """Describes a network for the metadata of its file, as JSON: what it is, and the images that it expects.

    Of the path that it was read from, only the last name is told.
    """
    about = embedder.about
    size, dimensions = embedder.config.data.image_size, about["dimensions"]
    return {
        **about,
        "model": pathlib.PurePath(about["model"]).name,
        "compute_dtype": "float32",
        "input": f"images: uint8 RGB (batch, {size}, {size}, 3)",
        "output": f"embeddings: float32 (batch, {dimensions}), of length 1",
        "proxynca_jax": __version__,
    }


if __name__ == "__main__":
    prepare_process()
    main()
