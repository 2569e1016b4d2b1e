"""Converts weights between PyTorch and this project, in three forms. Only the last two need PyTorch.

To this project, by default into weights/<backbone>.safetensors:
    python -m convert bn_inception_weights_pt04.pt [--backbone bn_inception] [--output weights/bn_inception.safetensors]
    python -m convert checkpoint.pth --entry ema
Back to a state dict for PyTorch:
    python -m convert --to-torch weights/bn_inception.safetensors out.pt
    python -m convert --to-torch runs/cars out.pt
Both networks on the same images, compared layer by layer:
    python -m convert verify bn_inception_weights_pt04.pt weights/bn_inception.safetensors
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from convert import torch_files
from proxynca_jax.errors import UserError, look_up
from proxynca_jax.machine.arguments import path
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.machine.output import print_line
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import abstract_network
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import read_config
from proxynca_jax.sharding import Layout
from proxynca_jax.weights import NAMES, conversion, converted_file
from proxynca_jax.weights.converted_file import Converted
from proxynca_jax.weights.pretrained import read_weights
from proxynca_jax.weights.state_dict import read_state_dict

DEFAULT_BACKBONE = "bn_inception"


def to_flax(source: pathlib.Path, output: pathlib.Path, backbone: str, entry: str | None = None) -> None:
    """Converts a PyTorch file, and prints what it was and what was written.

    Args:
        source: a file with a state dict.
        output: the converted file.
        backbone: of the state dict, a key of `NAMES`.
        entry: of the file, as for `read_state_dict`.

    Raises:
        UserError: if `source` is not that backbone, complete and well formed, or `output` cannot be written.
    """
    names = look_up(NAMES, backbone, "--backbone")
    read = read_state_dict(source, entry)
    state, notes = conversion.accept(read.tensors, backbone, source)
    _keep_apart(source, output)
    tensors, blob_id = conversion.to_flax(state, backbone), read.git_blob_id
    converted_file.write(output, backbone, tensors, source={"file": source.name, "git_blob_id": blob_id})

    if blob_id == names.published_blob_id:
        print_line(f"{source}: the published file, recognised by its git blob id {blob_id}.")
    else:
        title = BACKBONES[backbone].title
        print_line(f"{source}: a well-formed {title}, but unrecognised: its git blob id is {blob_id}.")
        print_line(f"  If it should be the published file ({names.published_blob_id}), download it again.")
    for note in (*read.notes, *notes):
        print_line(f"  {note}")
    print_line(f"wrote {output}: {_describe(tensors, names.classifier)}")
    option = ["--entry", entry] if entry else []
    print_line(f"check it:  {shlex.join(['python', '-m', 'convert', 'verify', str(source), str(output), *option])}")
    named = "" if backbone == DEFAULT_BACKBONE else f" --config.model.backbone={backbone}"
    chosen = f"--config.model.weights={output}{named}"
    print_line(f"train:     python -m proxynca_jax.train --config configs/cars.py {chosen}")


def to_torch(source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes a state dict that the PyTorch network loads with `strict=True`.

    Args:
        source: a run's folder, whose best state is used, or weights as for `read_weights`.
        output: the PyTorch file.

    Raises:
        UserError: if `source` is not a converted file of a complete network, or `output` cannot be written.
    """
    torch_files.import_torch()
    found = load_network(source)
    state = conversion.to_torch(found.tensors, found.backbone)
    conversion.accept(state, found.backbone, source)
    _keep_apart(source, output)
    torch_files.write_state_dict(output, state)
    print_line(f"wrote {output}: a state dict of {len(state)} tensors. Load it with")
    print_line(f"  network.load_state_dict(torch.load({str(output)!r}, weights_only=True), strict=True)")


def load_network(path: pathlib.Path) -> Converted:
    """Reads weights, or the best state of a run as if it had been converted."""
    if not path.is_dir():
        return read_weights(path)
    model = read_config(path).model
    _, shapes = abstract_network(model)
    with Checkpoints(path, writes=False) as checkpoints:
        variables = checkpoints.restore_network("best", Layout().describe(shapes))
    leaves = converted_file.flatten(variables._asdict())
    tensors = {name: np.asarray(leaf) for name, leaf in leaves.items()}
    return Converted(model.backbone, tensors, {"run": str(path)}, f"the weights of the run {path}")


def _keep_apart(source: pathlib.Path, output: pathlib.Path) -> None:
    if output.exists() and output.samefile(source):
        raise UserError(f"the output would overwrite {source}. Name another file.")


def _describe(tensors: dict[str, Shaped[np.ndarray, "..."]], classifier: str) -> str:
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    parameters = sum(size for name, size in sizes.items() if name.startswith("params/"))
    lines = [f"{parameters:,} parameters with their running statistics and preprocessing constants."]
    if "params/embedding_layer/bias" in sizes:
        lines.append(f"  embedding layer of {sizes['params/embedding_layer/bias']} dimensions: converted too.")
    if f"torch/{classifier}/bias" in sizes:
        lines.append(f"  {classifier}, the classifier of ImageNet: unused in training, kept for --to-torch.")
    if counters := sum(name.endswith("/num_batches_tracked") for name in sizes):
        lines.append(f"  num_batches_tracked of {counters} layers: unused in training, kept for --to-torch.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        argv: the arguments, by default those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="FILE", help="files, as above")
    parser.add_argument("--backbone", help=f"the network of a PyTorch file (default: {DEFAULT_BACKBONE})")
    parser.add_argument("--entry", metavar="NAME", help="of a checkpoint: which of its entries is the state dict")
    parser.add_argument("--output", help="the converted file (default: weights/<backbone>.safetensors)")
    parser.add_argument("--to-torch", action="store_true", help="convert the first file to PyTorch, into the second")
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        match arguments.words, arguments.to_torch, arguments.output, arguments.backbone, arguments.entry:
            case [source], False, output, backbone, entry:
                backbone = backbone or DEFAULT_BACKBONE
                output = output or f"weights/{backbone}.safetensors"
                to_flax(path(source), path(output), backbone, entry)
            case [source, output], True, None, None, None:
                to_torch(path(source), path(output))
            case ["verify", source, converted], False, None, None, entry:
                torch_files.import_torch()
                from convert.verify import verify

                verify(path(source), path(converted), entry)
            case _:
                parser.error("these arguments do not go together; --help shows the three forms")


if __name__ == "__main__":
    main()
