"""Writes the embeddings of a run's data set, or of any folder of images, to a file.

    python -m proxynca_jax.embed --run runs/cars --split test --output cars.parquet
    python -m proxynca_jax.embed --run runs/cars --images /data/photographs --output photographs.npz

The file holds embeddings, paths and, of a split, labels, as `embedding_files` describes. It appears when it is whole,
in place of one of the same name: an error or Ctrl-C leaves nothing half-written. Memory does not grow with its length.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from proxynca_jax.config import TrainConfig
from proxynca_jax.data.datasets import IMAGE_SUFFIXES, FileImages, load_splits
from proxynca_jax.data.pipeline import NO_LABEL
from proxynca_jax.data.split import Split
from proxynca_jax.embedder import embed_batches, load_network
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import NO_GRAPHS
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.interrupt import Interrupted, stop_on_signal
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.models import BACKBONES
from proxynca_jax.report.metric_card import versions
from proxynca_jax.runs.checkpoint import KINDS
from proxynca_jax.runs.embedding_files import Contents, check_output, write_embeddings

SPLITS = ("train", "test")  # in the order of `load_splits`; train holds a validation protocol's classes too


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m proxynca_jax.embed", description="Writes the embeddings of images to a file."
    )
    parser.add_argument("--run", type=pathlib.Path, required=True, help="the folder of a training run")
    parser.add_argument("--checkpoint", choices=KINDS, default="best", help="which of its states (default: best)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--split", choices=SPLITS, help="embed these images of the run's data set")
    source.add_argument("--images", type=pathlib.Path, metavar="FOLDER", help="embed all images in it, however deep")
    parser.add_argument("--output", type=pathlib.Path, required=True, metavar="FILE", help=".npz or .parquet")
    parser.add_argument("--no_graphs", action="store_true", help=NO_GRAPHS)
    options = parser.parse_args(arguments)
    with exit_on_user_error(), stop_on_signal() as check:
        try:
            _embed(options, check)
        except Interrupted:
            print(f"stopped; nothing was written to {options.output}", file=sys.stderr)
            raise


def _embed(options: argparse.Namespace, check: Callable[[], None]) -> None:
    check_output(options.output)
    network, config, step = load_network(options.run, options.checkpoint, graphs=not options.no_graphs)
    if options.images:
        split, labels = _find_images(options.images), None
    else:
        split = load_splits(config.data)[SPLITS.index(options.split)]
        labels = split.labels
    contents = Contents(
        paths=split.names,
        labels=labels,
        dim=config.model.embedding_dim,
        about={
            "run": str(options.run.absolute()),
            "checkpoint": options.checkpoint,
            "step": step,
            "images": str(options.images or f"{options.split} classes of {config.data.dataset}"),
            "class_names": split.class_names,
            "dimensions": config.model.embedding_dim,
            "compute_dtype": computed_in(config.model.compute_dtype),
            "backbone": config.model.backbone,
            "preprocessing": _preprocessing(config),
            "versions": versions(),
        },
    )
    with contextlib.closing(embed_batches(network, split, config, check)) as batches:
        write_embeddings(options.output, batches, contents)
    print(f"{options.output}: {len(split.names):,} embeddings of {contents.dim} dimensions")
    if options.split:
        print(f"to score them as the run does: {_scoring_command(options.output, config)}")


def _find_images(folder: pathlib.Path) -> Split:
    """Lists the images in a folder and in all folders below it, but not those whose name starts with a dot."""
    if not folder.is_dir():
        raise UserError(f"--images is {str(folder)!r}, which is not a folder.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        raise UserError(f"{folder} holds no images, that is files ending in {' '.join(sorted(IMAGE_SUFFIXES))}.")
    labels = np.full(len(paths), NO_LABEL, np.int32)
    return Split(images=FileImages(paths), names=[str(path) for path in paths], labels=labels, class_names=())


def _preprocessing(config: TrainConfig) -> dict[str, Any]:
    """Describes how the images became the network's input: as its weights expect, at the run's sizes."""
    sizes = {"image_size": config.data.image_size, "resize_size": config.data.resize_size}
    return dataclasses.asdict(BACKBONES[config.model.backbone].preprocessing) | sizes


def _scoring_command(output: pathlib.Path, config: TrainConfig) -> str:
    evaluation = config.evaluation
    nmi = f"--nmi_average {evaluation.nmi_average} --kmeans {evaluation.kmeans} "
    nmi += f"--kmeans_restarts {evaluation.kmeans_restarts} --seed {config.seed}"
    recall_at = " ".join(map(str, evaluation.recall_at))
    settings = f"--recall_at {recall_at} {nmi if evaluation.nmi else '--no-nmi'}"
    return f"python -m proxynca_jax.evaluate --embeddings {shlex.quote(str(output))} {settings}"


if __name__ == "__main__":
    prepare_process()
    main()
