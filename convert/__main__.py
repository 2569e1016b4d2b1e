"""Converts the weights of BN-Inception between PyTorch and this project, in three forms.

to this project, by default into weights/bn_inception.safetensors:
    python -m convert bn_inception_weights_pt04.pt [--output weights/bn_inception.safetensors]
back to a state dict for PyTorch:
    python -m convert --to-torch weights/bn_inception.safetensors out.pt
    python -m convert --to-torch runs/cars out.pt
both networks on the same images, compared layer by layer:
    python -m convert verify bn_inception_weights_pt04.pt weights/bn_inception.safetensors
"""

import argparse
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from convert import rules, torch_files
from proxynca_jax import steps, weights
from proxynca_jax.errors import UserError
from proxynca_jax.machine.command import exit_on_user_error
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import read_config

DEFAULT_OUTPUT = pathlib.Path("weights/bn_inception.safetensors")
# `net/bn_inception_weights_pt04.pt` of the reference repository.
REFERENCE_BLOB_ID = "368e1ea536e18064a9a084dbcf9fc4ac98b62fcf"


def to_flax(source: pathlib.Path, output: pathlib.Path) -> None:
    """Converts a PyTorch file and says what it was and what became of it.

    Args:
        source: holds a state dict.
        output: the converted file.

    Raises:
        UserError: if `source` is not BN-Inception, whole and well formed, or `output` cannot be written.
    """
    state = torch_files.read_state_dict(source)
    rules.check_state_dict(state, source)
    _keep_apart(source, output)
    blob_id = torch_files.git_blob_id(source)
    tensors = dict(rules.to_flax(key, value) for key, value in state.items())
    weights.write(output, tensors, source={"file": source.name, "git_blob_id": blob_id})

    if blob_id == REFERENCE_BLOB_ID:
        print(f"{source}: the reference's file, recognised by its git blob id {blob_id}.")
    else:
        print(f"{source}: a well-formed BN-Inception, but unrecognised: its git blob id is {blob_id}.")
        print(f"  If it should be the reference's file ({REFERENCE_BLOB_ID}), download it again.")
    print(f"wrote {output}: {_describe(tensors)}")
    print(f"check it:  {shlex.join(['python', '-m', 'convert', 'verify', str(source), str(output)])}")
    print(f"train:     python -m proxynca_jax.train --config configs/cars.py --config.model.weights={output}")


def to_torch(source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes a state dict that the PyTorch network loads with `strict=True`.

    Args:
        source: a converted file, or a run's folder, whose best state is taken.
        output: the PyTorch file.

    Raises:
        UserError: if `source` is no converted file of a whole BN-Inception, or `output` cannot be written.
    """
    state = dict(rules.to_torch(path, value) for path, value in load_network(source).items())
    rules.check_state_dict(state, source)
    _keep_apart(source, output)
    torch_files.write_state_dict(output, state)
    print(f"wrote {output}: a state dict of {len(state)} tensors. Load it with")
    print(f"  network.load_state_dict(torch.load({str(output)!r}, weights_only=True), strict=True)")


def load_network(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The leaves of a converted network, or of the best state of a run, by path: `params/...` and `batch_stats/...`."""
    if not path.is_dir():
        return weights.read(path)
    _, network, batch_stats = steps.init_network(read_config(path).model, np.random.default_rng(0))
    with Checkpoints(path) as checkpoints:
        network, batch_stats = checkpoints.restore_network("best", network, batch_stats)
    leaves = weights.flatten({"params": network, "batch_stats": batch_stats})
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _keep_apart(source: pathlib.Path, output: pathlib.Path) -> None:
    if output.exists() and output.samefile(source):
        raise UserError(f"the output would overwrite {source}. Name another file.")


def _describe(tensors: dict[str, Shaped[np.ndarray, "..."]]) -> str:
    sizes = {name: tensor.size for name, tensor in tensors.items()}
    parameters = sum(size for name, size in sizes.items() if name.startswith("params/"))
    lines = [f"{parameters:,} parameters with their running statistics and preprocessing constants."]
    if "params/embedding_layer/bias" in sizes:
        lines.append(f"  embedding layer of {sizes['params/embedding_layer/bias']} dimensions: converted too.")
    if "torch/last_linear/bias" in sizes:
        lines.append("  last_linear, the classifier of ImageNet: unused in training, kept for --to-torch.")
    if counters := sum(name.endswith("/num_batches_tracked") for name in sizes):
        lines.append(f"  num_batches_tracked of {counters} layers: unused in training, kept for --to-torch.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module's docstring.

    Args:
        argv: the arguments, by default those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="FILE", help="files, as above")
    parser.add_argument("--output", help=f"the converted file (default: {DEFAULT_OUTPUT})")
    parser.add_argument("--to-torch", action="store_true", help="convert the first file to PyTorch, into the second")
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        match arguments.words, arguments.to_torch, arguments.output:
            case [source], False, output:
                to_flax(pathlib.Path(source), pathlib.Path(output or DEFAULT_OUTPUT))
            case [source, output], True, None:
                to_torch(pathlib.Path(source), pathlib.Path(output))
            case ["verify", source, converted], False, None:
                torch_files.import_torch()
                from convert.verify import verify

                verify(pathlib.Path(source), pathlib.Path(converted))
            case _:
                parser.error("these arguments do not go together; --help shows the three forms")


if __name__ == "__main__":
    main()
