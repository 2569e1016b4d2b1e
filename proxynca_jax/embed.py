"""Writes the embeddings of a run's data set, or of any folder of images, to a file.

    python -m proxynca_jax.embed --run runs/cars --split test --output cars.parquet
    python -m proxynca_jax.embed --run runs/cars --images /data/photographs --output photographs.npz
    python -m proxynca_jax.embed --run efficientnet_lite0 --images /data/photographs --output photographs.npz

With `--images`, `--run` may also be weights: a converted file, an exported network's folder, or the name of a package's
weights. A run's data set has the splits train, test (the evaluation's queries) and, if the queries search one, gallery.

`--runtime onnxruntime` computes on the CPU, faster than JAX does there; see docs/export.md.

`--images` turns photographs upright, as their EXIF orientation says. Images that cannot be read are left out and listed
in a file next to the output; with `--strict`, the first of them ends the command.

With `--distributed`, each of many processes takes a share of the images, by their paths, and writes a file of its own,
such as photographs-00000-of-00002.parquet. They do not wait for each other. Started again, a process with such a file
does nothing.

The file contains embeddings, paths and, of a split, labels, as `embedding_files` describes. It replaces a file of the
same name once it is complete, so an error or Ctrl-C leaves nothing half-written. Memory does not grow with its length.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import contextlib
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

from proxynca_jax.config import TrainConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.photographs import find_photographs, readable
from proxynca_jax.data.split import GALLERY, QUERY, TRAIN, DataSet, Split
from proxynca_jax.embedder import (
    RUNTIMES,
    TrainedNetwork,
    embed_batches,
    embedding_width,
    in_runtime,
    load_network,
    load_weights,
    preprocessing_of,
)
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import NO_GRAPHS, add_share, path, share_of
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.interrupt import Interrupted, stop_on_signal
from proxynca_jax.machine.output import print_line, printable
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.onednn.way import way
from proxynca_jax.report.metric_card import versions
from proxynca_jax.runs.checkpoint import KINDS
from proxynca_jax.runs.embedding_files import Contents, check_output, read_about, write_embeddings
from proxynca_jax.runs.image_list import inspect_as_trained
from proxynca_jax.weights.pretrained import are_weights

RUNTIME = "onnxruntime is faster on CPUs and needs pip install 'proxynca_jax[onnx]' (default: jax)"
SPLITS = {
    "train": TRAIN,
    "test": QUERY,
    "gallery": GALLERY,
}  # train contains the classes of the validation protocol, too


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m proxynca_jax.embed", description="Writes the embeddings of images to a file."
    )
    parser.add_argument("--run", type=path, required=True, help="the folder of a training run, or weights")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="which of its states (default: best)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--split", choices=tuple(SPLITS), help="embed these images of the run's data set")
    source.add_argument("--images", type=path, metavar="FOLDER", help="embed all images in it, however deep")
    parser.add_argument("--strict", action="store_true", help="with --images: stop at one that cannot be read")
    parser.add_argument("--output", type=path, required=True, metavar="FILE", help=".npz or .parquet")
    parser.add_argument("--runtime", choices=RUNTIMES, default=RUNTIMES[0], help=RUNTIME)
    add_share(parser)
    parser.add_argument("--no_graphs", action="store_true", help=NO_GRAPHS)
    options = parser.parse_args(arguments)
    if (options.strict or options.distributed) and not options.images:
        parser.error("--strict and --distributed go with --images")
    with exit_on_user_error(), stop_on_signal() as check:
        try:
            _embed(options, check)
        except Interrupted:
            print(printable(f"stopped; nothing was written to {options.output}"), file=sys.stderr)
            raise


def _embed(options: argparse.Namespace, check: Callable[[], None]) -> None:
    share = number, count = share_of(options)
    if count > 1:
        options.output = options.output.with_stem(f"{options.output.stem}-{number:05d}-of-{count:05d}")
    check_output(options.output)
    network, config, origin = _load(options)
    dataset = photographs = None
    if options.images:
        split, photographs = find_photographs(options.images, share)
        names, labels = list[str](), None
    else:
        dataset = load_dataset(config.data)
        split = _choose_split(options, dataset, config, check)
        names, labels = list(split.names), split.labels
    contents = Contents(
        paths=names,
        labels=labels,
        dim=embedding_width(config),
        about={
            **origin,
            "images": str(options.images or f"{options.split} classes of {config.data.dataset}"),
            "class_names": split.class_names,
            "dimensions": embedding_width(config),
            "compute_dtype": computed_in(config.model.compute_dtype),
            "convolutions": way().name if options.runtime == RUNTIMES[0] else options.runtime,
            "backbone": config.model.backbone,
            "preprocessing": preprocessing_of(config),
            "versions": versions(),
        },
    )
    if count > 1 and (reason := _nothing_to_do(options.output, contents, images=len(split.names))):
        print_line(f"{options.output}: {reason}")
        return
    with contextlib.closing(embed_batches(network, split, config, check)) as batches:
        rows = batches if photographs is None else readable(batches, photographs, names, strict=options.strict)
        write_embeddings(options.output, rows, contents)
    print_line(f"{options.output}: {len(names):,} embeddings of {contents.dim} dimensions")
    if photographs is not None and photographs.faults:
        _list_left_out(options.output, photographs.faults)
    if dataset is not None:
        print_line(_describe_scoring(options, config, with_gallery=dataset.evaluation.gallery is not None))


def _nothing_to_do(output: pathlib.Path, contents: Contents, *, images: int) -> str:
    """Says why this process of many need not embed its share. Empty: it has to."""
    if not images:
        return "no image is in the share of this process, so there is no such file"
    done = output.exists() and read_about(output) == json.loads(json.dumps(contents.about))
    return "is there already, from the same network and folder. Delete it to embed its share again." if done else ""


def _list_left_out(output: pathlib.Path, faults: Mapping[int, str]) -> None:
    """Lists the photographs that are not in the output, in a file next to it."""
    path = output.with_name(f"{output.name}.left_out.txt")
    replace_file(path, "".join(f"{faults[row]}\n" for row in sorted(faults)).encode())
    print(printable(f"{len(faults):,} images cannot be read and are left out: {path}"), file=sys.stderr)


def _load(options: argparse.Namespace) -> tuple[TrainedNetwork, TrainConfig, dict[str, Any]]:
    """Reads the network of a run or of weights, its configuration, and where it comes from."""
    graphs = not options.no_graphs
    if are_weights(options.run):
        if options.split:
            raise UserError(f"{options.run} are weights, which have no data set. Name a folder with --images.")
        network, config = load_weights(options.run, graphs=graphs)
        origin = {"weights": str(options.run)}
    else:
        network, config, step = load_network(options.run, options.checkpoint, graphs=graphs)
        origin = {"run": str(options.run.absolute()), "checkpoint": options.checkpoint, "step": step}
    return *in_runtime(options.runtime, network, config), origin | {"runtime": options.runtime}


def _choose_split(
    options: argparse.Namespace, dataset: DataSet, config: TrainConfig, check: Callable[[], None]
) -> Split:
    """Returns one of SPLITS.

    Raises:
        UserError: If it is the gallery and there is none, or if its images are not those of the run.
    """
    side = SPLITS[options.split]
    if side not in dataset.sides():
        fault = f"the data set {config.data.dataset!r} has no gallery: its test images search each other"
        raise UserError(f"{fault}. Use --split test.")
    return inspect_as_trained(options.run, dataset, [side], config.data, check)[side]


def _describe_scoring(options: argparse.Namespace, config: TrainConfig, *, with_gallery: bool) -> str:
    """Says how to score the file that was written in the same way as the run is scored."""
    command = _scoring_command(options.output, config)
    if not with_gallery or options.split == "train":
        return f"to score them as the run does: {command}"
    if options.split == "gallery":
        return f"to search it with the queries of --split test, score them with --gallery {_quoted(options.output)}"
    gallery = options.output.with_stem(f"{options.output.stem}-gallery")
    embed = f"python -m proxynca_jax.embed --run {_quoted(options.run)} --checkpoint {options.checkpoint}"
    return (
        f"to score them as the run does, embed the gallery: {embed} --split gallery --output {_quoted(gallery)}\n"
        f"and then: {command} --gallery {_quoted(gallery)}"
    )


def _quoted(path: pathlib.Path) -> str:
    return shlex.quote(str(path))


def _scoring_command(output: pathlib.Path, config: TrainConfig) -> str:
    evaluation = config.evaluation
    nmi = f"--nmi_average {evaluation.nmi_average} --kmeans {evaluation.kmeans} "
    nmi += f"--kmeans_restarts {evaluation.kmeans_restarts} --seed {config.seed}"
    recall_at = " ".join(map(str, evaluation.recall_at))
    settings = f"--recall_at {recall_at} {nmi if evaluation.nmi else '--no-nmi'}"
    return f"python -m proxynca_jax.evaluate --embeddings {_quoted(output)} {settings}"


if __name__ == "__main__":
    prepare_process()
    main()
