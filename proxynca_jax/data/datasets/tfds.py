"""Data sets that TensorFlow Datasets prepared as ArrayRecord files. Reading them needs no TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from proxynca_jax.config import DataConfig
from proxynca_jax.data.array_record_package import require_array_record
from proxynca_jax.data.datasets import cars, cub, sop
from proxynca_jax.data.datasets.published import Counts, warn_if_counts_differ
from proxynca_jax.data.split import DataSet, Split, divide_by_class, second_half
from proxynca_jax.errors import UserError, nearest

LAYOUT = (
    "A tfds data set is a directory that TensorFlow Datasets prepared, where TensorFlow is installed, with "
    "`tfds build cars196 --file_format=array_record` (or caltech_birds2011, stanford_online_products): "
    "<data_dir>/cars196/<version>."
)


class _Prepared(NamedTuple):
    """What to know of a data set that TensorFlow Datasets can prepare."""

    label: str  # the feature that contains the class
    name: str  # this data set's own files are data.dataset=<name>
    counts: Counts
    split_by_class: bool  # whether its splits train and test share no class, and so are the published ones


PREPARED = {
    "cars196": _Prepared("label", "cars", cars.COUNTS, split_by_class=False),
    "caltech_birds2011": _Prepared("label", "cub", cub.COUNTS, split_by_class=False),
    "stanford_online_products": _Prepared("class_id", "sop", sop.COUNTS, split_by_class=True),
}


class _PreparedImages(Sequence[bytes]):
    """The encoded images of a tfds data source. An image is read when it is indexed."""

    def __init__(self, source: Any):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    # Images are always read one at a time, so there are no slices.
    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.source[index]["image"]


def read(root: Path, _: DataConfig) -> DataSet:
    """Divides the images of a prepared data set by class, in the same way as the data set's own files.

    Args:
        root: The directory of the data set's version, or its parent.

    Raises:
        UserError: If a package is not installed, or `root` is not one of `PREPARED` as ArrayRecord files.

    Warns:
        UserWarning: If the number of images differs from the published one.
    """
    require_array_record("data.dataset is 'tfds'")
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        message = f"data.dataset is 'tfds', which needs {error.name}; install it: pip install 'proxynca_jax[tfds]'"
        raise UserError(message) from error
    builder: Any = tensorflow_datasets.builder_from_directory(_version_directory(root))
    _require_readable(builder, root)
    prepared = PREPARED[builder.name]
    features = builder.info.features
    image_feature = tensorflow_datasets.features.Image
    undecoded = {
        key: tensorflow_datasets.decode.SkipDecoding()
        for key, feature in features.items()
        if isinstance(feature, image_feature)
    }
    # A record contains a label and its image, so this reads every image. Without decoding it reads 1 GB a second.
    source = builder.as_data_source(split="train+test", decoders=undecoded)
    labels = np.fromiter((example[prepared.label] for example in source), np.int32, len(source))
    class_feature = features[prepared.label]
    whole = Split(
        images=_PreparedImages(source),
        names=[f"{builder.name}[{row}]" for row in range(len(source))],
        labels=labels,
        class_names=tuple(map(class_feature.int2str, range(class_feature.num_classes))),
    )
    evaluation = second_half(len(whole.class_names))
    if prepared.split_by_class:
        evaluation = np.isin(np.arange(len(evaluation)), labels[builder.info.splits["train"].num_examples :])
    dataset = divide_by_class(whole, evaluation)
    warn_if_counts_differ(prepared.name, dataset, prepared.counts)
    return dataset


def _version_directory(root: Path) -> Path:
    candidates = [path for path in (root, *sorted(root.iterdir())) if (path / "dataset_info.json").is_file()]
    if not candidates:
        raise UserError(f"{root} and its folders contain no dataset_info.json. {LAYOUT}")
    if len(candidates) > 1:
        raise UserError(f"{root} contains several versions: set data.root to one of {', '.join(map(str, candidates))}.")
    return candidates[0]


def _require_readable(builder: Any, root: Path) -> None:
    if builder.name not in PREPARED:
        valid = nearest(builder.name, PREPARED)
        raise UserError(f"{root} contains the data set {builder.name!r}, which is not supported: {valid}")
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(f"{root} was prepared as {file_format}; required is array_record. {LAYOUT}")
    shards = [Path(path) for split in ("train", "test") for path in builder.info.splits[split].filepaths]
    missing = [path for path in shards if not path.exists()]
    if missing:
        raise UserError(f"{len(missing)} of {len(shards)} files are missing, the first is {missing[0]}. {LAYOUT}")
