"""Every knob of a training run, with its unit and default.

The defaults are the reference's settings for CUB-200-2011; files in `configs/` return a `TrainConfig` that differs from
them where it must. Any field is overridden on the command line by its dotted name:

    python -m proxynca_jax.train --config configs/cars.py --config.data.root=/data/cars196
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from proxynca_jax.errors import UserError, nearest

ERROR, SKIP = ON_BAD_IMAGE = ("error", "skip")  # what to do about image files that cannot be read
PLACEMENTS = ("host", "device")  # where training images are cropped: as they are read, or in device memory
NMI_AVERAGES = ("arithmetic", "geometric")
COMPUTE_DTYPES = ("float32", "tensorfloat32", "bfloat16")
KMEANS = ("scikit-learn", "device")
# "reference" scores every epoch on the test classes, as the field does, so its best epoch was chosen on them.
# "validation" scores every epoch on training classes held out for it, and the best epoch once on the test classes.
PROTOCOLS = ("reference", "validation")
SCHEDULES = ("exponential", "cosine")
# Valid values of each text field that has only a few, except data.dataset: data.datasets.DATASETS has those.
CHOICES: dict[str, tuple[str, ...]] = {
    "data.on_bad_image": ON_BAD_IMAGE,
    "data.placement": PLACEMENTS,
    "model.compute_dtype": COMPUTE_DTYPES,
    "optim.schedule": SCHEDULES,
    "evaluation.nmi_average": NMI_AVERAGES,
    "evaluation.kmeans": KMEANS,
    "evaluation.protocol": PROTOCOLS,
}

SEEDS = (0, 2**32 - 1)
COUNT = (1, math.inf)
PAIR = (2, math.inf)  # BatchNorm needs two
TINY = 1e-30  # stands for "above 0"
RANGES: dict[str, tuple[float, float]] = {  # lowest and highest value of each numeric field, both allowed
    "seed": SEEDS,
    "log_every_steps": COUNT,
    "data.eval_fraction": (TINY, 1),
    "data.split_seed": SEEDS,
    "data.image_size": COUNT,
    "data.crop_aspect_max": (1, math.inf),
    "data.max_side": (0, math.inf),
    "data.threads": (0, 1024),
    "model.embedding_dim": COUNT,
    "model.batch_norm_momentum": (0, 1),
    "loss.embedding_scale": (TINY, math.inf),
    "loss.proxy_scale": (TINY, math.inf),
    "loss.label_smoothing": (0, 1),
    "optim.epochs": (0, math.inf),
    "optim.frozen_epochs": (0, math.inf),
    "optim.warmup_epochs": (0, math.inf),
    "optim.batch_size": PAIR,
    "optim.learning_rate": (0, math.inf),
    "optim.embedding_learning_rate": (0, math.inf),
    "optim.proxy_learning_rate": (0, math.inf),
    "optim.decay_per_epoch": (TINY, 1),
    "optim.weight_decay": (0, math.inf),
    "optim.beta1": (0, 0.999999),
    "optim.beta2": (0, 0.999999),
    "optim.epsilon": (TINY, math.inf),
    "evaluation.batch_size": COUNT,
    "checkpoint.every_minutes": (0, math.inf),
    "evaluation.kmeans_restarts": COUNT,
    "evaluation.validation_fraction": (TINY, 1),
}


def recall_name(k: int) -> str:
    """The name of Recall@K in a record."""
    return f"recall_at_{k}"


@dataclasses.dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they become pixels."""

    dataset: str = "cub"  # one of data.datasets.DATASETS
    root: str = ""  # the data set's directory, or the table's file; glyphs needs none
    eval_fraction: float = 0.5  # folder, table, glyphs: fraction of the classes to evaluate on
    split_seed: int = 0  # folder, table, glyphs: chooses these classes
    eval_classes_file: str = ""  # folder, table: lists the evaluation classes, one a line; replaces fraction and seed
    # One of ON_BAD_IMAGE. Every image file is read once before a run begins; "skip" leaves out those that are damaged.
    on_bad_image: str = "error"
    image_size: int = 227  # pixels, side of the square that the network sees
    resize_size: int = 256  # pixels, shorter side before the evaluation's centre crop
    # Resize images to a square, whatever their aspect ratio, so that the evaluation's crop keeps both ends of a wide
    # one. The aspect ratios of training crops are then relative to the image's own.
    squash: bool = False
    crop_area_min: float = 0.08  # smallest area of a training crop, as a fraction of the image's
    crop_area_max: float = 1.0  # largest area of a training crop, as a fraction of the image's
    crop_aspect_max: float = 4 / 3  # widest aspect ratio of a training crop; the narrowest is its inverse
    horizontal_flip: bool = True  # mirror half of the training images
    placement: str = "host"  # one of PLACEMENTS; "device" keeps all training images in device memory
    max_side: int = 0  # pixels; training images with a longer side are shrunk to it before cropping; 0: never
    cache: str = ""  # a folder for decoded training images and evaluation crops; empty: none. Pixels stay the same
    threads: int = 0  # decoding threads; 0: one per core. Pixels stay the same


@dataclasses.dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The embedding network."""

    backbone: str = "bn_inception"  # one of models.BACKBONES; it decides which data.image_size fits
    # To start from: a converted file, an exported network's folder or a key of weights.packages.PACKAGES; empty: random
    weights: str = ""
    embedding_dim: int = 64  # D, width of an embedding and of a proxy
    batch_norm_momentum: float = 0.1  # share of the old running statistics kept at each step (Flax's convention)
    # Normalise by the running statistics in training too; scale and bias are still trained. The statistics of ImageNet
    # are more exact than those of a small batch of a few classes, which also change what the pretrained kernels see.
    fixed_batch_norm: bool = False
    compute_dtype: str = "float32"  # one of COMPUTE_DTYPES, the arithmetic of convolutions: see machine/precision.py


@dataclasses.dataclass(kw_only=True, slots=True)
class LossConfig:
    """The loss, and what it depends on."""

    name: str = "proxy_nca"  # one of losses.LOSSES
    embedding_scale: float = 3.0  # length of an embedding inside the loss, s_x
    proxy_scale: float = 3.0  # length of a proxy inside the loss, s_p
    label_smoothing: float = 0.1  # probability mass that the other classes share; the paper's form does not smooth


@dataclasses.dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Adam per parameter group, and the length of training."""

    epochs: int = 20  # passes over the training images
    # Epochs at the start that train only the embedding layer and the proxies. These start random, so the gradients that
    # they send back would harm a pretrained backbone.
    frozen_epochs: int = 0
    # Epochs after those in which the backbone's rate rises evenly to its full value. Adam's first steps have the size
    # of the rate whatever the gradients are, so a high rate would soon undo what the backbone has learnt.
    warmup_epochs: int = 0
    batch_size: int = 32  # images per step; an epoch's last partial batch is dropped
    learning_rate: float = 0.045  # backbone and embedding layer
    # 0: learning_rate. The embedding layer starts random, so it can take larger steps than pretrained weights can.
    embedding_learning_rate: float = 0.0
    proxy_learning_rate: float = 1.0  # proxies
    # One of SCHEDULES. "exponential" multiplies all rates by decay_per_epoch after each epoch. "cosine" lowers them at
    # each step, to 0 at the end of the run: high rates last longer, and the last epochs still settle.
    schedule: str = "exponential"
    decay_per_epoch: float = 0.94  # not used by "cosine"
    # Each step multiplies kernels by 1 - learning rate * weight_decay (AdamW). This keeps them small where few images
    # say what they should be. Biases, BatchNorm and proxies do not decay: the loss ignores the length of a proxy.
    weight_decay: float = 0.0
    beta1: float = 0.9  # Adam's decay of the first moment
    beta2: float = 0.999  # Adam's decay of the second moment
    epsilon: float = 1.0  # Adam's epsilon, outside the root; 1.0 is the reference's and assumes pretrained weights
    shard_proxies: bool = False  # divide proxies and their optimiser state among the devices, for very many classes


@dataclasses.dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Scores on the evaluation classes, before training and after each epoch."""

    batch_size: int = 64  # images per embedding step
    recall_at: tuple[int, ...] = (1, 2, 4, 8)  # the K of Recall@K
    nmi: bool = True  # cluster the queries' embeddings and report normalised mutual information
    nmi_average: str = "arithmetic"  # one of NMI_AVERAGES: the mean of the two entropies that NMI divides by
    kmeans: str = "scikit-learn"  # one of KMEANS, for NMI: the field's yardstick, or ours on the device
    kmeans_restarts: int = 10  # k-means runs, of which the one of lowest inertia counts
    protocol: str = "reference"  # one of PROTOCOLS
    validation_fraction: float = 0.2  # validation protocol: the share of the training classes held out for it

    def score_names(self) -> list[str]:
        """Names of the scores in a record, in the order in which they are shown."""
        return [*(recall_name(k) for k in self.recall_at), *(["nmi"] if self.nmi else [])]


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """What a run keeps beside its latest state, from which it continues."""

    best_metric: str = "recall_at_1"  # the evaluation metric whose highest value marks the best state
    # Inside an epoch, save the latest state when the last save was this long ago. 0: only after epochs. It happens when
    # the loss is looked at, every `log_every_steps`, and is written while training goes on.
    every_minutes: float = 10.0


@dataclasses.dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Copies of the log for programs that show it. metrics.jsonl stays the record."""

    tensorboard: bool = False  # event files in the run's folder; needs the extra `tensorboard`
    wandb: bool = False  # an offline run of Weights & Biases in the run's folder; needs the extra `wandb`


@dataclasses.dataclass(kw_only=True, slots=True)
class TrainConfig:
    """A whole training run."""

    seed: int = 0  # initial weights, order of images, crops, k-means
    log_every_steps: int = 20  # steps between two looks at the loss; each waits for the device
    report: bool = False  # write report.html, a page that explains the run, when it ends; needs the extra `report`
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)

    def validate(self) -> None:
        """Checks every field, and the fields against each other.

        Raises:
            UserError: with one line for each fault found.
        """
        faults = list(_faults(self))
        if faults:
            raise UserError("the configuration cannot be run:\n" + "\n".join(f"  {fault}" for fault in faults))


def _faults(config: TrainConfig) -> Iterator[str]:
    data, evaluation, fields = config.data, config.evaluation, flatten(config)
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name} is {value}; it must be a finite number."
    ks, choices_of = evaluation.recall_at, CHOICES
    # `type`, because True is an integer to Python, too.
    if isinstance(ks, (tuple, list)) and ks and all(type(k) is int and k >= 1 for k in ks):
        choices_of = CHOICES | {"checkpoint.best_metric": tuple(evaluation.score_names())}
    else:
        yield f"evaluation.recall_at is {ks!r}; it needs one K or more, each a whole number of at least 1, as in 1,2,4."
    for name, choices in choices_of.items():
        if fields[name] not in choices:
            yield f"{name} is {fields[name]!r}: {nearest(fields[name], choices)}"
    if config.optim.frozen_epochs > config.optim.epochs:
        frozen, epochs = config.optim.frozen_epochs, config.optim.epochs
        yield f"optim.frozen_epochs is {frozen}; it must be at most optim.epochs, {epochs}."
    if data.resize_size < data.image_size:
        yield f"data.resize_size is {data.resize_size}; it must be at least data.image_size, {data.image_size}."
    if not 0 < data.crop_area_min <= data.crop_area_max <= 1:
        limits = f"{data.crop_area_min} and {data.crop_area_max}"
        yield f"data.crop_area_min and crop_area_max are {limits}; they must be above 0, at most 1 and in order."
    for name, (lowest, highest) in RANGES.items():
        if not lowest <= fields[name] <= highest:
            least = "above 0" if lowest == TINY else f"at least {lowest:g}"
            most = f" and at most {highest:g}" if highest < math.inf else ""
            yield f"{name} is {fields[name]}; it must be {least}{most}."


def flatten(config: TrainConfig) -> dict[str, Any]:
    """Every field by its dotted name, as it is written on the command line."""
    flat = {}
    for name, value in dataclasses.asdict(config).items():
        flat.update(
            {f"{name}.{key}": leaf for key, leaf in value.items()} if isinstance(value, dict) else {name: value}
        )
    return flat
