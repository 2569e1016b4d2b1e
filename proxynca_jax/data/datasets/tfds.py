"""Data sets prepared by TensorFlow Datasets as ArrayRecord files, which are read without TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proxynca_jax.data.split import Split, divide, second_half, warn_about_counts
from proxynca_jax.errors import UserError, nearest

LAYOUT = (
    "A tfds data set is a directory that TensorFlow Datasets prepared, where TensorFlow is installed, with "
    "`tfds build cars196 --file_format=array_record` (or caltech_birds2011, stanford_online_products): "
    "<data_dir>/cars196/<version>."
)
LABELS_AND_ORIGINS = {  # the feature that holds the class, and the data set by our name
    "cars196": ("label", "cars"),
    "caltech_birds2011": ("label", "cub"),
    "stanford_online_products": ("class_id", "sop"),
}


class _TfdsImages(Sequence[bytes]):
    """The encoded images of a tfds data source, each read when it is indexed."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    # No slices, because images are always asked for one at a time.
    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.source[index]["image"]


def load_splits(root: Path) -> tuple[Split, Split]:
    """Divides the images of a prepared data set by class, as the same data set's own files are divided.

    Args:
        root: The directory of the data set's version, or its parent.

    Returns:
        The training split and the evaluation split. They share no class.

    Raises:
        UserError: If tensorflow_datasets is not installed, or `root` is not a supported data set as ArrayRecord.

    Warns:
        UserWarning: If the number of images differs from the published one.
    """
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        message = f"data.dataset is 'tfds', which needs {error.name}; install it: pip install 'proxynca_jax[tfds]'"
        raise UserError(message) from error
    builder: Any = tfds.builder_from_directory(_version_directory(root))
    _require_readable(builder, root)
    label_key, origin = LABELS_AND_ORIGINS[builder.name]
    features = builder.info.features
    undecoded = {
        key: tfds.decode.SkipDecoding() for key, feature in features.items() if isinstance(feature, tfds.features.Image)
    }
    # A label lies in one record with its image, so every record is read once; undecoded that is a gigabyte a second.
    source = builder.as_data_source(split="train+test", decoders=undecoded)
    labels = np.fromiter((example[label_key] for example in source), np.int32, len(source))
    whole = Split(
        images=_TfdsImages(source),
        names=[f"{builder.name}[{row}]" for row in range(len(source))],
        labels=labels,
        class_names=tuple(map(features[label_key].int2str, range(features[label_key].num_classes))),
    )
    evaluation = second_half(len(whole.class_names))
    if origin == "sop":  # its published splits are class-disjoint already, and not halves
        evaluation = np.isin(np.arange(len(evaluation)), labels[builder.info.splits["train"].num_examples :])
    splits = divide(whole, evaluation)
    warn_about_counts(origin, splits)
    return splits


def _version_directory(root: Path) -> Path:
    candidates = [path for path in (root, *sorted(root.iterdir())) if (path / "dataset_info.json").is_file()]
    if not candidates:
        raise UserError(f"{root} and its folders hold no dataset_info.json. {LAYOUT}")
    if len(candidates) > 1:
        raise UserError(f"{root} holds several versions: make data.root one of {', '.join(map(str, candidates))}.")
    return candidates[0]


def _require_readable(builder: Any, root: Path) -> None:
    if builder.name not in LABELS_AND_ORIGINS:
        valid = nearest(builder.name, LABELS_AND_ORIGINS)
        raise UserError(f"{root} holds the data set {builder.name!r}, which is not supported: {valid}")
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(f"{root} was prepared as {file_format}; required is array_record. {LAYOUT}")
    shards = [Path(path) for split in ("train", "test") for path in builder.info.splits[split].filepaths]
    missing = [path for path in shards if not path.exists()]
    if missing:
        raise UserError(f"{len(missing)} of {len(shards)} files are missing, the first is {missing[0]}. {LAYOUT}")
