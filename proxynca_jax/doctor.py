"""Looks at all that a training run needs, before its hours begin: images, network, memory, disk, versions.

    python -m proxynca_jax.doctor --config configs/photos.py --config.data.root=/data/mine
    python -m proxynca_jax.doctor --config cars --config.data.root=/data/cars196 --run runs/cars --sheet seen.png

The options are those of `train`. Each line is ok, a warning or an error, and says what to do. Nothing is written except
`--sheet FILE.png`, samples as the network sees them. If model.weights is set, all images are embedded, to find
evaluation images that look like training images. The exit status is 1 if there is an error.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import contextlib
import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator

import jax
import numpy as np

from proxynca_jax import steps
from proxynca_jax.checks import ERROR, OK, WARNING, Finding, worst
from proxynca_jax.checks.images import (
    check_counts,
    check_equal_contents,
    check_pixels,
    check_readable,
    check_single_images,
)
from proxynca_jax.checks.machine import check_cache, check_disk, check_memory, check_versions
from proxynca_jax.checks.near_duplicates import check_near_duplicates
from proxynca_jax.checks.sheet import Row, draw_sheet
from proxynca_jax.config import SKIP, TrainConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.inspection import inspect_splits
from proxynca_jax.data.order import steps_per_epoch
from proxynca_jax.data.pipeline import evaluation_crops, training_batches
from proxynca_jax.data.split import DataSet, Evaluation, Split, sample, take
from proxynca_jax.embedder import Embedder, embed, load_weights
from proxynca_jax.errors import UserError, look_up
from proxynca_jax.losses import LOSSES
from proxynca_jax.machine.arguments import path
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.interrupt import stop_on_signal
from proxynca_jax.machine.output import print_line
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import init_network
from proxynca_jax.optim import make_optimizer
from proxynca_jax.training_options import parse
from proxynca_jax.weights.pretrained import fill, read_weights

LOOKED_AT = 512  # images whose pixels are looked at
SHOWN = 8  # images in a row of the sheet
SIMILAR = 0.97  # cosine similarity of ImageNet's features; see docs/data.md


def examine(
    config: TrainConfig, run: pathlib.Path, sheet: pathlib.Path | None, check: Callable[[], None]
) -> Iterator[Finding]:
    """Yields the findings of all checks. Those that need what an error has made impossible are left out.

    Args:
        config: Of the run.
        run: Its folder, which need not exist.
        sheet: Where to draw samples. None: nowhere.
        check: Called often; raises to stop.
    """
    yield from check_versions()
    yield from _attempt(lambda: _check_config(config))
    dataset = yield from _load(config, check)
    if dataset is None:
        return
    yield from check_counts(dataset, config.data)
    yield from check_single_images(dataset)
    yield from check_equal_contents(dataset, config.data)
    yield from _attempt(lambda: _check_steps(dataset, config))
    yield from _attempt(lambda: _look(dataset, config, sheet))
    yield from check_memory(dataset, config, width=config.model.embedding_dim)
    state_bytes, weights_fit = yield from _check_network(dataset, config)
    yield from check_disk(run, state_bytes)
    yield from check_cache(dataset, config)
    if weights_fit:
        yield from _attempt(lambda: _compare(dataset, config, check))


def _attempt(check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Runs a check. What it raises or warns of is a finding."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            findings = list(check())
        except (UserError, MemoryError) as error:
            findings = [Finding(ERROR, str(error))]
    yield from (Finding(WARNING, str(warning.message)) for warning in caught)
    yield from findings


def _check_config(config: TrainConfig) -> Iterator[Finding]:
    config.validate()
    look_up(LOSSES, config.loss.name, "loss.name")
    look_up(BACKBONES, config.model.backbone, "model.backbone").check_image_size(config.data.image_size)
    yield Finding(
        OK, f"the configuration: {config.model.backbone}, {config.data.image_size} pixels, {config.loss.name}"
    )


def _load(config: TrainConfig, check: Callable[[], None]) -> Generator[Finding, None, DataSet | None]:
    """Finds and reads all images, and returns those that can be used."""
    found: list[DataSet] = []

    def load() -> Iterator[Finding]:
        dataset = load_dataset(config.data)
        skipping = dataclasses.replace(config.data, on_bad_image=SKIP)
        try:
            sides, faults = inspect_splits(dataset.sides(), skipping, check)
        except UserError:  # a class has no other images
            strict = dataclasses.replace(config.data, on_bad_image="error")
            inspect_splits(dataset.sides(), strict, check)  # an error, which lists them
            return
        yield from check_readable(faults, config.data)
        train, *evaluation = sides.values()
        found.append(DataSet(train, Evaluation(*evaluation)))

    yield from _attempt(load)
    return found[0] if found else None


def _check_steps(dataset: DataSet, config: TrainConfig) -> Iterator[Finding]:
    steps_of_epoch = steps_per_epoch(len(dataset.train.labels), config.optim.batch_size)
    yield Finding(OK, f"{steps_of_epoch:,} steps an epoch, {config.optim.epochs} epochs")


def _look(dataset: DataSet, config: TrainConfig, sheet: pathlib.Path | None) -> Iterator[Finding]:
    """Looks at the pixels of samples, and draws some."""
    splits = dataset.sides()
    crops = {}
    for side, split in splits.items():
        rows = sample(split, LOOKED_AT)
        with contextlib.closing(evaluation_crops(_take(split, rows), config.data)) as made:
            crops[side] = np.stack(list(made))
        yield from (Finding(level, f"{side}: {text}") for level, text in check_pixels(crops[side], split, rows))
    if sheet is not None:
        drawn = [_training_row(dataset.train, config)]
        for side, split in splits.items():
            shown = np.linspace(0, len(crops[side]) - 1, SHOWN).astype(int)
            labels = split.labels[np.array(sample(split, LOOKED_AT))[shown]]
            names = [split.class_names[label] for label in labels.tolist()]
            drawn.append((f"{side}, as evaluated", crops[side][shown], names))
        replace_file(sheet, draw_sheet(drawn, BACKBONES[config.model.backbone].preprocessing))
        yield Finding(OK, f"{sheet}: samples as the network sees them. Look at their colours and at what is cut off.")


def _take(split: Split, rows: list[int]) -> Split:
    chosen = np.zeros(len(split.labels), bool)
    chosen[rows] = True
    return take(split, chosen)


def _training_row(split: Split, config: TrainConfig) -> Row:
    size = min(SHOWN, len(split.labels))
    with contextlib.closing(training_batches(split, config.data, batch_size=size, seed=config.seed, epoch=0)) as made:
        batch = next(iter(made))
    names = [split.class_names[label] for label in np.asarray(batch["label"]).tolist()]
    return "training crops", np.asarray(batch["image"]), names


def _check_network(dataset: DataSet, config: TrainConfig) -> Generator[Finding, None, tuple[int, bool]]:
    """Makes the state of step 0 and fills it with the weights. Returns its bytes, and whether there are weights."""
    state_bytes, weights_fit = 0, False

    def make() -> Iterator[Finding]:
        nonlocal state_bytes, weights_fit
        optimizer = make_optimizer(config.optim, steps_per_epoch=1)
        classes = len(dataset.train.class_names)
        _, state = steps.init_state(config.model, optimizer, classes=classes, seed=config.seed, loss=config.loss.name)
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if not config.model.weights:
            yield Finding(OK, "the network starts from random weights")
            return
        weights = read_weights(config.model.weights)
        fill(init_network(config.model, None)[1], weights, config.model.backbone)
        digest = Embedder.load(config.model.weights).about["weights"]
        weights_fit = True
        yield Finding(OK, f"{weights.origin} fit {config.model.backbone}; digest {digest}")

    yield from _attempt(make)
    return state_bytes, weights_fit


def _compare(dataset: DataSet, config: TrainConfig, check: Callable[[], None]) -> Iterator[Finding]:
    """Embeds all images with the weights that training starts from, and compares both sides."""
    network, own = load_weights(config.model.weights)
    own = dataclasses.replace(own, data=config.data, evaluation=config.evaluation)
    trained = embed(network, dataset.train, own, check)
    for split in dataset.evaluation.splits():
        evaluated = embed(network, split, own, check)
        yield from check_near_duplicates(dataset.train, trained, split, evaluated, least=SIMILAR)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    with exit_on_user_error(), stop_on_signal() as check:
        options = parse(list(sys.argv[1:] if arguments is None else arguments), about=str(__doc__), sheet=True)
        sheet = options.sheet and path(options.sheet)
        if sheet and sheet.suffix.lower() != ".png":
            raise UserError(f"--sheet is {options.sheet!r}; it must end in .png.")
        findings = []
        for finding in examine(options.config, path(options.run or "runs"), sheet, check):
            print_line(f"{finding.level:<8}{finding.text}")
            findings.append(finding)
        counts = {level: sum(finding.level == level for finding in findings) for level in (ERROR, WARNING, OK)}
        print_line(", ".join(f"{count} {level}" for level, count in counts.items()))
    if worst(findings) == ERROR:
        sys.exit(1)


if __name__ == "__main__":
    prepare_process()
    main()
