"""The list of a run's images in its folder: a run goes on, and is scored, only with the images that it was made from.

`images.parquet` has one row per image, in order: what it is for (`side`), its class, its path and a digest of its
content and box. Paths start at the folder that contains all images. They serve the messages only, so a data set may
move. `left_out.txt` has the images that `data.on_bad_image=skip` left out, and why.
"""

import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.image_files import shared_folder
from proxynca_jax.data.inspection import inspect_splits
from proxynca_jax.data.split import TRAIN, DataSet, Evaluation, Split
from proxynca_jax.errors import UserError
from proxynca_jax.machine import processes
from proxynca_jax.machine.atomic_file import replace_file, replacing
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.output import printable

NAME, LEFT_OUT = "images.parquet", "left_out.txt"
EXAMPLES = 3


class ListedImage(NamedTuple):
    """A row of the list."""

    side: str
    class_name: str
    path: str
    digest: str


def list_images(sides: Mapping[str, Split], dataset: DataSet) -> list[ListedImage]:
    """Lists images.

    Args:
        sides: Splits of the data set by what they are for, with digests.
        dataset: All of its images. Paths start at the folder that contains them all.
    """
    names = [name for split in dataset.sides().values() if split.files for name in split.names]
    start = len(shared_folder(names)) if names else 0

    def listed(side: str, split: Split) -> Iterator[ListedImage]:
        if split.digests is None:
            raise ValueError(f"the split {side} has no digests")
        boxes = [""] * len(split.names) if split.boxes is None else [f" {box}" for box in split.boxes.tolist()]
        for name, label, box, digest in zip(split.names, split.labels.tolist(), boxes, split.digests, strict=True):
            path = name[start:].replace(os.sep, "/").lstrip("/") if split.files else name
            yield ListedImage(side, split.class_names[label], path + box, digest)

    return [image for side, split in sides.items() for image in listed(side, split)]


def write_list(run: pathlib.Path, images: Sequence[ListedImage], left_out: Mapping[str, str]) -> None:
    """Writes the list of a run that has none yet.

    Args:
        run: The run's folder.
        images: All images of the data set.
        left_out: The fault of each image that is left out, by name.

    Raises:
        UserError: If a file cannot be written.
    """
    if left_out:
        replace_file(run / LEFT_OUT, "".join(f"{fault}\n" for fault in left_out.values()).encode())
    if not (run / NAME).exists():
        columns = dict(zip(ListedImage._fields, zip(*images, strict=True), strict=True))
        with replacing(run / NAME) as partial:
            pq.write_table(pa.table(columns), partial, compression="zstd")


def read_list(run: pathlib.Path) -> list[ListedImage] | None:
    """Reads the list of a run. None: it has none, because an older version made it.

    Raises:
        UserError: If the list is damaged.
    """
    path = run / NAME
    try:
        columns = pq.read_table(path, columns=list(ListedImage._fields)).to_pydict()
        return [ListedImage(*row) for row in zip(*(columns[name] for name in ListedImage._fields), strict=True)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path}, the list of the run's images, cannot be read: {error}. Delete it to go on without: then nothing "
            "checks that the images are the same."
        ) from error


def require_same_images(run: pathlib.Path, now: Sequence[ListedImage], root: str) -> None:
    """Checks that images are those of a run. If the run has no list, prints that nothing is checked.

    Args:
        run: The run's folder.
        now: All images of one or more sides.
        root: Where they are, for the error.

    Raises:
        UserError: If contents, classes, sides or order differ. It says how.
    """
    before = read_list(run)
    if before is None:
        if processes.is_first():
            text = f"{run} has no list of its images (an older version made it): they are not checked"
            print(printable(text), file=sys.stderr)
        return
    sides = {image.side for image in now}
    then = [image for image in before if image.side in sides]
    if list(map(_identity, then)) != list(map(_identity, now)):
        changes = "\n".join(f"  {line}" for line in _changes(before, then, now))
        raise UserError(
            f"{run} was made from other images than those of {root or 'the data set'} now:\n{changes}\nRestore the "
            "images and their classes as they were, or train a new run: scores of classes or images that a run was "
            "trained on are not scores of unseen ones."
        )


def inspect_as_trained(
    run: pathlib.Path,
    dataset: DataSet,
    sides: Iterable[str],
    config: DataConfig,
    check: Callable[[], None] = never,
) -> dict[str, Split]:
    """Inspects some sides of a run's data set as `inspect_splits` does, and checks that they are what the run has.

    Raises:
        UserError: As for `inspect_splits` and `require_same_images`.
    """
    whole = dataset.sides()
    chosen, _ = inspect_splits({side: whole[side] for side in sides}, config, check)
    require_same_images(run, list_images(chosen, dataset), config.root)
    return chosen


def evaluation_of_run(run: pathlib.Path, config: DataConfig) -> Evaluation:
    """Loads the evaluation images of a run, and checks them as `inspect_as_trained` does."""
    dataset = load_dataset(config)
    sides = [side for side in dataset.sides() if side != TRAIN]
    return Evaluation(*inspect_as_trained(run, dataset, sides, config).values())


def _identity(image: ListedImage) -> tuple[str, str, str]:
    return image.side, image.class_name, image.digest


def _changes(before: Sequence[ListedImage], then: Sequence[ListedImage], now: Sequence[ListedImage]) -> Iterator[str]:
    """Says how images differ. `then` are those of `before` that are for the same as `now`."""
    trained = {image.class_name for image in before if image.side == TRAIN}
    evaluated = {image.class_name for image in before if image.side != TRAIN}
    to_train = {image.class_name for image in now if image.side == TRAIN}
    to_evaluate = {image.class_name for image in now if image.side != TRAIN}
    yield from _counted("classes that were trained on and are for evaluation now", trained & to_evaluate)
    yield from _counted("classes that were for evaluation and are for training now", evaluated & to_train)
    yield from _counted("new classes", (to_train | to_evaluate) - trained - evaluated)
    yield from _counted("classes that are gone", {image.class_name for image in then} - to_train - to_evaluate)
    old, new = ({image.path: image for image in images} for images in (then, now))
    shared = [(old[path], new[path]) for path in old.keys() & new.keys()]
    yield from _counted(
        "images with another content", {ours.path for ours, theirs in shared if ours.digest != theirs.digest}
    )
    yield from _counted(
        "images that are of another class",
        {ours.path for ours, theirs in shared if ours.class_name != theirs.class_name},
    )
    yield from _counted("new images", new.keys() - old.keys())
    yield from _counted("images that are gone", old.keys() - new.keys())
    if old.keys() == new.keys() and sorted(map(_identity, then)) == sorted(map(_identity, now)):
        yield "the images are the same, in another order"


def _counted(what: str, names: Iterable[str]) -> Iterator[str]:
    names = sorted(names)
    if names:
        more = ", ..." if len(names) > EXAMPLES else ""
        yield f"{what} ({len(names):,}): {', '.join(names[:EXAMPLES])}{more}"
