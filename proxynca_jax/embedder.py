"""Embeds images with a trained network: splits for the commands, and any images from Python."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32
from tqdm import tqdm

from proxynca_jax import steps
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.evaluation_images import DeviceBatch, Source, evaluation_source
from proxynca_jax.data.given_images import GivenImage, given_split
from proxynca_jax.data.split import Split
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.exported_files.onnx_file import onnxruntime_step
from proxynca_jax.machine import arguments
from proxynca_jax.machine.interrupt import never
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.machine.progress import Progress
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import Variables, abstract_network, init_network
from proxynca_jax.runs.checkpoint import KINDS, Checkpoints
from proxynca_jax.runs.digests import digest
from proxynca_jax.runs.folder import read_config
from proxynca_jax.sharding import Layout
from proxynca_jax.weights import hub_download, hub_folder
from proxynca_jax.weights.converted_file import Converted
from proxynca_jax.weights.pretrained import are_weights, fill, is_exported, read_weights

RUNTIMES = ("jax", "onnxruntime")  # what computes embeddings


class TrainedNetwork(NamedTuple):
    """A network's arrays and the programs that embed images with them."""

    embed_step: steps.EmbedStep
    variables: Variables


def load_network(run: pathlib.Path, kind: str, *, graphs: bool = True) -> tuple[TrainedNetwork, TrainConfig, int]:
    """Reads a run's network.

    Args:
        run: the run's folder.
        kind: which of its states, one of `checkpoint.KINDS`.
        graphs: as for `steps.compiler_options`.

    Returns:
        The network, the run's configuration and the step of the state.

    Raises:
        UserError: if the folder is not that of a run, or has no such state.
    """
    config = read_config(run)
    layout = Layout()
    graph, shapes = abstract_network(config.model)
    with Checkpoints(run, writes=False) as checkpoints:
        variables = checkpoints.restore_network(kind, layout.describe(shapes))
        step = checkpoints.latest_step(kind)
    assert step is not None  # or there would have been nothing to restore
    options = steps.embedding_options(jax.default_backend(), graphs=graphs)
    embed_step = steps.make_embed_step(graph, layout, options=options)
    return TrainedNetwork(embed_step, variables), config, step


def before_training(network: TrainedNetwork, config: TrainConfig) -> TrainedNetwork:
    """Returns a run's network with the arrays of step 0, which the run's first record scores.

    Args:
        network: of the run, at any step. Its programs are used, so nothing compiles again.
        config: of the run: its seed and, if it did not start from random weights, its weights.

    Raises:
        UserError: if the weights are not there any more, or do not fit.
    """
    # As `steps.init_state` does: the network takes the generator's first numbers, the proxies the next.
    _, variables = init_network(config.model, np.random.default_rng(config.seed))
    if config.model.weights:
        variables = fill(variables, read_weights(config.model.weights), config.model.backbone)
    return network._replace(variables=Layout().place(variables))


def load_weights(path: str | os.PathLike[str], *, graphs: bool = True) -> tuple[TrainedNetwork, TrainConfig]:
    """Reads weights as a network.

    Args:
        path: as for `read_weights`. Without an embedding layer, as with weights from ImageNet, the network's vectors
            are the backbone's features.
        graphs: as for `steps.compiler_options`.

    Returns:
        The network, and a configuration with the sizes of an exported network, or else of the backbone.

    Raises:
        UserError: as for `read_weights`.
    """
    if is_exported(path):
        weights, config = hub_folder.read(arguments.path(os.fspath(path)))
    else:
        weights = read_weights(path)
        config = _settings_of(weights)
    config.model.weights = os.fspath(path)
    graph, shapes = abstract_network(config.model)
    layout = Layout()
    variables = layout.place(fill(shapes, weights, weights.backbone))
    options = steps.embedding_options(jax.default_backend(), graphs=graphs)
    return TrainedNetwork(steps.make_embed_step(graph, layout, options=options), variables), config


def _settings_of(weights: Converted) -> TrainConfig:
    """A configuration with the backbone and the width of weights, and with the images that the backbone expects."""
    config = TrainConfig()
    kernel = weights.tensors.get("params/embedding_layer/kernel")
    config.model.backbone, config.model.embedding_dim = weights.backbone, 0 if kernel is None else kernel.shape[1]
    preprocessing = BACKBONES[weights.backbone].preprocessing
    config.data.image_size, config.data.resize_size = preprocessing.image_size, preprocessing.resize_size
    return config


def in_runtime(runtime: str, network: TrainedNetwork, config: TrainConfig) -> tuple[TrainedNetwork, TrainConfig]:
    """Returns a network whose embeddings a runtime computes, and its configuration.

    Args:
        runtime: one of `RUNTIMES`. onnxruntime computes in float32.
        network: from `load_network` or `load_weights`.
        config: of the network.

    Raises:
        UserError: if the runtime is not installed.
    """
    if runtime == "jax":
        return network, config
    step = onnxruntime_step(config.model, network.variables, config.data.image_size)
    model = dataclasses.replace(config.model, compute_dtype="float32")
    return network._replace(embed_step=step), dataclasses.replace(config, model=model)


def embedding_width(config: TrainConfig) -> int:
    """Returns D, the width of a network's vectors: without an embedding layer, that of its features."""
    return config.model.embedding_dim or BACKBONES[config.model.backbone].features


def preprocessing_of(config: TrainConfig) -> dict[str, Any]:
    """Describes how images become a network's input: as its weights expect, at the run's sizes."""
    sizes = {"image_size": config.data.image_size, "resize_size": config.data.resize_size, "squash": config.data.squash}
    return dataclasses.asdict(BACKBONES[config.model.backbone].preprocessing) | sizes


def embed_batches(
    network: TrainedNetwork,
    split: Split,
    config: TrainConfig,
    check: Callable[[], None] = never,
    source: Source[DeviceBatch] | None = None,
    *,
    progress: bool = True,
) -> Generator[Float[np.ndarray, "batch dim"], None, None]:
    """Embeds a split on all devices, batch by batch. Memory does not grow with the number of images.

    Args:
        network: embeds the images.
        split: at least one image.
        config: of the images and the batch size.
        check: called before each batch; raises to stop.
        source: the split's batches, from `evaluation_source`; by default the images are decoded for this call.
        progress: show a bar on a terminal.

    Returns:
        A generator of embeddings, `evaluation.batch_size` images at a time, rounded up to a multiple of the number of
        devices. The last batch may be smaller. Every process receives all embeddings. Close it to stop early.

    Raises:
        UserError: while iterating, if an image cannot be decoded.
    """
    images = len(split.labels)
    batches = (source or evaluation_source(split, config))()
    embed_step = network.embed_step
    folded, computed = embed_step.fold(network.variables), None
    with contextlib.closing(batches), Progress("embedding", images=images, shown=progress) as bar:
        for batch in batches:
            check()
            ahead = embed_step.embed(folded, batch["image"])
            if computed is not None:  # the host receives a batch while the device computes the next
                yield np.asarray(computed)
            computed = ahead
            bar.advance(len(batch["image"]))
        last = np.asarray(computed)
        yield last[: (images - 1) % len(last) + 1]


def embed(
    network: TrainedNetwork,
    split: Split,
    config: TrainConfig,
    check: Callable[[], None] = never,
    source: Source[DeviceBatch] | None = None,
) -> Float[np.ndarray, "images dim"]:
    """Embeds a split into one array. The arguments are those of `embed_batches`."""
    with contextlib.closing(embed_batches(network, split, config, check, source)) as batches:
        return np.concatenate(list(batches))


class Embedder:
    """Embeds images from Python, with the same bits as the command `embed`.

    >>> import numpy as np
    >>> from proxynca_jax import Embedder
    >>> embedder = Embedder.load("efficientnet_lite0")
    >>> image = np.full((240, 320, 3), 128, np.uint8)  # height, width, RGB
    >>> vectors = embedder.embed([image], batch_size=1)  # for many images leave batch_size out
    >>> vectors.shape, vectors.dtype
    ((1, 1280), dtype('float32'))
    """

    def __init__(self, network: TrainedNetwork, config: TrainConfig, origin: Mapping[str, Any] | None = None):
        """Args:
        network: embeds the images.
        config: their sizes, the batch size and the number of threads.
        origin: where the network comes from, for `about`.
        """
        self.network, self.config, self._origin = network, config, dict(origin or {})

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, checkpoint: str = "best", runtime: str = RUNTIMES[0]) -> "Embedder":
        """Reads a network from this machine.

        >>> Embedder.load("runs/mine", checkpoint="latest").dim
        64

        Args:
            path: a run's folder, an exported network's folder, a converted weights file, or the name of a package's
                weights, such as "efficientnet_lite0". If weights have no embedding layer, as ImageNet's have not,
                vectors are the backbone's features.
            checkpoint: of a run: "best" or "latest".
            runtime: "jax", or "onnxruntime" for the CPU: faster there, and equal within rounding.
                It needs `pip install 'proxynca_jax[onnx]'`.

        Raises:
            UserError: if it is none of them, the run has no such checkpoint, or the runtime is not installed.
        """
        path = arguments.path(path)
        for name, value, valid in (("checkpoint", checkpoint, KINDS), ("runtime", runtime, RUNTIMES)):
            if value not in valid:
                raise UserError(f"{name} is {value!r}: {nearest(value, valid)}")
        if are_weights(path):
            origin = path.absolute() if path.exists() else path  # a package's name has no folder
            return cls(*in_runtime(runtime, *load_weights(path)), {"model": str(origin)})
        network, config, step = load_network(path, checkpoint)
        origin = {"model": str(path.absolute()), "checkpoint": checkpoint, "step": step}
        return cls(*in_runtime(runtime, network, config), origin)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> "Embedder":
        """Reads an exported network from a folder or, if there is none of this name, from the Hugging Face Hub.

        >>> embedder = Embedder.from_pretrained("owner/name")  # needs pip install 'proxynca_jax[hub]'
        >>> embedder.dim
        64

        Args:
            name: a folder that `proxynca export RUN --format hub` wrote, or the name of a repository.
            revision: of the repository: a branch, tag or commit. None: its main branch.
            cache_dir: the folder to download to. None: that of `huggingface_hub`.

        Raises:
            UserError: if there is neither, the download fails, or the files are not those of an exported network.
        """
        folder = hub_download.find(name, revision=revision, cache_dir=cache_dir)
        return cls(*load_weights(folder), {"model": str(folder)})

    def with_batch_size(self, images: int) -> "Embedder":
        """Returns this network with batches of another size. Batches are padded, so single images are faster by 1."""
        return Embedder(self.network, self._in_batches(images), self._origin)

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return embedding_width(self.config)

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What the vectors depend on, as JSON. It has the digest of the network's arrays, its sizes, and its origin."""
        return {
            **self._origin,
            "weights": digest(self.network.variables),
            "backbone": self.config.model.backbone,
            "dimensions": self.dim,
            "compute_dtype": computed_in(self.config.model.compute_dtype),
            "preprocessing": json.loads(json.dumps(preprocessing_of(self.config))),  # tuples become lists
        }

    def batches(
        self, split: Split, check: Callable[[], None] = never, *, batch_size: int | None = None
    ) -> Generator[Float[np.ndarray, "batch dim"], None, None]:
        """Embeds a split batch by batch, as `embed_batches` does, without a bar."""
        return embed_batches(self.network, split, self._in_batches(batch_size), check, progress=False)

    def embed(
        self, images: Iterable[GivenImage], *, batch_size: int | None = None, progress: bool = False
    ) -> Float32[np.ndarray, "N D"]:
        """Embeds images of any size.

        >>> red, blue = np.zeros((2, 64, 64, 3), np.uint8)
        >>> red[..., 0], blue[..., 2] = 255, 255
        >>> vectors = Embedder.load("runs/mine").embed([red, blue, "photographs/a.jpg"])
        >>> vectors.shape
        (3, 64)
        >>> similarity = vectors @ vectors.T  # cosines, because the vectors have length 1
        >>> bool(similarity[0, 0] > similarity[0, 1])
        True

        Args:
            images: N paths, PIL images of any mode, or uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), where
                three channels are RGB and the fourth of four is dropped. Images with an EXIF orientation are turned
                upright.
            batch_size: images per step, at least 1. None: as the network was evaluated, or 64. Another one may change
                the last digits.
            progress: show a bar with images/s.

        Returns:
            Vectors of length 1, in the order of the images.

        Raises:
            UserError: for what is not an image. It names the image's path or its number, from 0.
        """
        split = given_split(images)
        count = len(split.images)
        vectors = np.empty((count, self.dim), np.float32)
        if not count:
            return vectors
        done = 0
        bar = tqdm(total=count, unit="img", disable=not progress)
        with bar, contextlib.closing(self.batches(split, batch_size=batch_size)) as batches:
            for batch in batches:
                vectors[done : done + len(batch)] = batch
                done += len(batch)
                bar.update(len(batch))
        return vectors

    def _in_batches(self, batch_size: int | None) -> TrainConfig:
        """The configuration, with another batch size if one is given."""
        if batch_size is None:
            return self.config
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
        return dataclasses.replace(
            self.config, evaluation=dataclasses.replace(self.config.evaluation, batch_size=batch_size)
        )
