"""Every knob of a training run, with its unit and default.

The defaults are the reference's settings for CUB-200-2011; files in `configs/` return a `TrainConfig` that differs from
them where it must. Any field is overridden on the command line by its dotted name:

    python -m proxynca_jax.train --config configs/cars.py --config.data.root=/data/cars196
"""

import dataclasses

DATASETS = ("cub", "cars", "sop", "folder", "tfds", "glyphs")
NMI_AVERAGES = ("arithmetic", "geometric")


class ConfigError(ValueError):
    """A configuration that cannot be run. The message lists every fault found."""


@dataclasses.dataclass(kw_only=True, slots=True)
class DataConfig:
    """Which images, and how they become pixels."""

    dataset: str = "cub"  # one of DATASETS
    root: str = ""  # the data set's directory; glyphs needs none
    eval_fraction: float = 0.5  # folder: the share of classes held for evaluation
    split_seed: int = 0  # folder: which classes those are
    eval_classes_file: str = ""  # folder: names the evaluation classes, one a line, instead of fraction and seed
    image_size: int = 227  # pixels, side of the square that the network sees
    resize_size: int = 256  # pixels, shorter side before the evaluation's centre crop
    crop_area_min: float = 0.08  # smallest share of the image's area in a training crop
    crop_area_max: float = 1.0  # largest share of the image's area in a training crop
    crop_aspect_max: float = 4 / 3  # widest aspect ratio of a training crop; the narrowest is its inverse
    horizontal_flip: bool = True  # mirror half of the training images
    threads: int = 16  # decoding threads of the input pipeline; the images do not depend on it


@dataclasses.dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The embedding network."""

    embedding_dim: int = 64  # D, width of an embedding and of a proxy
    batch_norm_momentum: float = 0.1  # share of the old running statistics kept at each step (Flax's convention)


@dataclasses.dataclass(kw_only=True, slots=True)
class LossConfig:
    """ProxyNCA."""

    embedding_scale: float = 3.0  # length of an embedding inside the loss, s_x
    proxy_scale: float = 3.0  # length of a proxy inside the loss, s_p
    label_smoothing: float = 0.1  # probability mass spread over the other classes
    exclude_positive: bool = False  # the paper's form: the denominator sums over other classes only, no smoothing


@dataclasses.dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Adam per parameter group, and the length of training."""

    epochs: int = 20  # passes over the training images
    batch_size: int = 32  # images per step; an epoch's last partial batch is dropped
    learning_rate: float = 0.045  # backbone and embedding layer
    proxy_learning_rate: float = 1.0  # proxies
    decay_per_epoch: float = 0.94  # both rates are multiplied by this after each epoch
    beta1: float = 0.9  # Adam's decay of the first moment
    beta2: float = 0.999  # Adam's decay of the second moment
    epsilon: float = 1.0  # Adam's epsilon, outside the root; 1.0 is the reference's and assumes pretrained weights


@dataclasses.dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Scores on the evaluation classes, before training and after each epoch."""

    batch_size: int = 64  # images per embedding step
    recall_at: tuple[int, ...] = (1, 2, 4, 8)  # the K of Recall@K
    nmi: bool = True  # cluster the embeddings and report normalised mutual information
    nmi_average: str = "arithmetic"  # one of NMI_AVERAGES: the mean of the two entropies that NMI divides by
    kmeans_restarts: int = 10  # k-means runs, of which the one of lowest inertia counts


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """What a run keeps. The latest state is always kept; a run continues from it."""

    every_epochs: int = 1  # epochs between two saves
    best_metric: str = "recall_at_1"  # the evaluation metric whose highest value marks the best state


@dataclasses.dataclass(kw_only=True, slots=True)
class TrainConfig:
    """A whole training run."""

    seed: int = 0  # initial weights, order of images, crops, k-means
    log_every_steps: int = 20  # steps between two looks at the loss; each waits for the device
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
