"""A run before its first step: configuration, data and network checked, programs compiled, images brought in."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from proxynca_jax import steps
from proxynca_jax.checks import OK
from proxynca_jax.checks.images import check_single_images
from proxynca_jax.checks.machine import check_disk
from proxynca_jax.compile_ahead import compile_embed_step, compile_train_step
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.cache import cached, cached_crops, require_cache
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.evaluation_images import DeviceBatch, Source, choose_place, evaluation_source
from proxynca_jax.data.inspection import inspect_dataset
from proxynca_jax.data.order import steps_per_epoch
from proxynca_jax.data.resident import ResidentImages, crops, upload
from proxynca_jax.data.split import Evaluation, Split, hold_out
from proxynca_jax.errors import look_up
from proxynca_jax.losses import LOSSES
from proxynca_jax.machine import processes
from proxynca_jax.machine.devices import describe_devices
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.models import BACKBONES
from proxynca_jax.onednn.way import way
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.image_list import LEFT_OUT, list_images
from proxynca_jax.runs.log import MetricLog, Record
from proxynca_jax.sharding import Layout
from proxynca_jax.weights.pretrained import fill, read_weights

EVALUATED_SPLIT = {"reference": "test", "validation": "validation"}  # by protocol, after each epoch
REFERENCE_DATASETS = ("cub", "cars", "sop")
RANDOM_START = (
    "starting from random weights, which is not the reference's setting: run `python -m convert "
    "bn_inception_weights_pt04.pt` once and add --config.model.weights=weights/bn_inception.safetensors"
)


class Job(NamedTuple):
    """What does not change during a run."""

    config: TrainConfig
    log: MetricLog
    train_split: Split
    evaluation: Evaluation  # scored after each epoch
    test: Evaluation  # scored once, at the end, if it is not the one above
    left_out: int  # images that cannot be read
    epoch_steps: int
    layout: Layout
    train_steps: dict[bool, steps.TrainStep]  # by whether the backbone is frozen
    embed_step: steps.EmbedStep
    resident: ResidentImages | None = None  # the training images, if they are in device memory
    sources: Sequence[Source[DeviceBatch]] = ()  # the images of `evaluation.splits()`, decoded once

    def is_frozen(self, step: int) -> bool:
        """Whether this step, counted from 0, leaves the backbone as it is."""
        return step < self.config.optim.frozen_epochs * self.epoch_steps

    def evaluation_records(self) -> list[Record]:
        """Returns the records of the evaluations before training and after each epoch."""
        name = EVALUATED_SPLIT[self.config.evaluation.protocol]
        return [record for record in self.log.records() if record["split"] == name]

    def tested(self) -> int | None:
        """Returns the step that the validation protocol scored on the test classes, or None."""
        return next((record["step"] for record in reversed(self.log.records()) if record["split"] == "test"), None)

    def best(self) -> Record:
        """Returns the record of the best evaluation. Of equal ones it is the earliest."""
        return max(self.evaluation_records(), key=lambda record: record[self.config.checkpoint.best_metric])


def prepare(
    config: TrainConfig, run: pathlib.Path, graphs: bool = True, locks: contextlib.ExitStack | None = None
) -> tuple[Job, steps.TrainState]:
    """Checks configuration, data and devices before anything expensive starts, and makes the run's folder.

    The run stays locked until `locks` closes.
    """
    # Data
    config.validate()
    look_up(LOSSES, config.loss.name, "loss.name")
    look_up(BACKBONES, config.model.backbone, "model.backbone").check_image_size(config.data.image_size)
    require_cache(config.data)
    dataset, left_out = inspect_dataset(load_dataset(config.data), config.data)
    findings = list(check_single_images(dataset))
    train_split, evaluation = dataset.train, dataset.evaluation
    if config.evaluation.protocol == "validation":
        train_split, validation_split = hold_out(train_split, config.evaluation, config.seed)
        evaluation = Evaluation(validation_split)
    epoch_steps = steps_per_epoch(len(train_split.labels), config.optim.batch_size)

    # Devices
    classes = len(train_split.class_names)
    layout = Layout(sharded_classes=classes if config.optim.shard_proxies else None)
    layout.check_batch_size(config.optim.batch_size)

    # Model
    optimizer = make_optimizer(config.optim, steps_per_epoch=epoch_steps)
    graph, state = steps.init_state(
        config.model, optimizer, classes=classes, seed=config.seed, loss=config.loss.name, layout=layout
    )
    start = None
    if config.model.weights:
        weights = read_weights(config.model.weights)
        state = state.with_network(layout.place(fill(state.network(), weights, config.model.backbone)))
        start = f"starting from {weights.origin}"
    elif config.data.dataset in REFERENCE_DATASETS:
        start = RANDOM_START
    programs = _programs(config, graph, optimizer, layout, graphs)

    # Folder
    open_run(run, config, list_images(dataset.sides(), dataset), left_out, locks)
    log = MetricLog(run, writes=processes.is_first())
    log.line(_describe(config, run, train_split, evaluation))
    findings += check_disk(run, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    for finding in findings:
        if finding.level != OK:
            log.line(f"{finding.level}: {finding.text}")
    if left_out:
        log.line(f"{len(left_out):,} images cannot be read and are left out: {run / LEFT_OUT}")
    if start:
        log.line(start)
    if (named := config.model.compute_dtype) != (precision := computed_in(named)):
        log.line(f"model.compute_dtype is {named}, which this device does not have: it computes in {precision}")
    if hint := way().hint:
        log.line(hint)
    test = dataset.evaluation
    images = train_split, evaluation, test, len(left_out)
    return Job(config, log, *images, epoch_steps, layout, *programs), state


def _programs(
    config: TrainConfig, graph: nnx.GraphDef, optimizer: optax.GradientTransformation, layout: Layout, graphs: bool
) -> tuple[dict[bool, steps.TrainStep], steps.EmbedStep]:
    """The run's programs, which are not compiled yet: `train_steps` and `embed_step` of a job."""
    platform = jax.default_backend()
    embed_step = steps.make_embed_step(graph, layout, options=steps.embedding_options(platform, graphs=graphs))
    options: dict[str, Any] = {"options": steps.compiler_options(platform, graphs=graphs)}
    if config.data.placement == "device":
        options["images_of"] = functools.partial(crops, size=config.data.image_size)
    options |= {"layout": layout, "fixed_batch_norm": config.model.fixed_batch_norm}
    train_steps = {
        frozen: steps.make_train_step(graph, config.loss, optimizer, frozen=frozen, **options)
        for frozen in (False, True)
    }
    return train_steps, embed_step


def make_ready(job: Job, state: steps.TrainState, step: int, check: Callable[[], None]) -> Job:
    """Compiles the programs needed from `step` on, in threads while images are decoded. No record counts this time."""
    job.log.line("compiling the training and the embedding step")
    start, run = time.perf_counter(), (state, job.config, job.layout)

    def timed(compile_step: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        return compile_step(*arguments), time.perf_counter() - start

    last = max(job.config.optim.epochs * job.epoch_steps - 1, 0)
    needed = {job.is_frozen(min(step, last)), job.is_frozen(last)}  # frozen epochs come first
    with ThreadPoolExecutor(3, "compile") as pool:

        def compile_training(resident: ResidentImages | None) -> dict[bool, Future[tuple[Any, float]]]:
            arguments = *run, resident
            return {key: pool.submit(timed, compile_train_step, job.train_steps[key], *arguments) for key in needed}

        embedding = pool.submit(timed, compile_embed_step, job.embed_step, *run)
        training = compile_training(None) if job.config.data.placement == "host" else None
        job = _bring_images(job, check)
        # With images in device memory, the training step needs their shape, which is known now.
        training = training or compile_training(job.resident)
        compiled = {key: future.result() for key, future in training.items()}
        embed_step, seconds = embedding.result()
    train_steps = {key: train_step for key, (train_step, _) in compiled.items()}
    job.log.line(f"compiled in {max(seconds, *(seconds for _, seconds in compiled.values())):.1f} s")
    return job._replace(train_steps=train_steps, embed_step=embed_step)


def _bring_images(job: Job, check: Callable[[], None]) -> Job:
    """Fills the cache and the device memory if configured, and chooses where evaluation images are kept."""
    data = job.config.data
    if data.cache:
        job.log.line(f"decoded images are kept in {data.cache}")
        # All processes must call `check` equally often, but only the first one fills the cache.
        options = {"check": check} if jax.process_count() == 1 else {}
        with processes.first_before_others():
            train_split = cached(job.train_split, data, max_side=data.max_side, **options)
            crops_of = [cached_crops(split, data, **options) for split in job.evaluation.splits()]
        job = job._replace(train_split=train_split, evaluation=Evaluation(*crops_of))
    if data.placement == "device":
        resident = upload(job.train_split, data, job.layout, check)
        job.log.line(f"training images on the device: {resident.pixels.nbytes / 1e9:.2f} GB")
        job = job._replace(resident=resident)
    place, line = choose_place(job.evaluation, job.config)
    job.log.line(line)
    return job._replace(sources=[evaluation_source(split, job.config, place) for split in job.evaluation.splits()])


def _describe(config: TrainConfig, run: pathlib.Path, train_split: Split, evaluation: Evaluation) -> str:
    named = {"training": train_split, "evaluation": evaluation.queries}
    if evaluation.gallery is not None:
        named = {"training": train_split, "queries": evaluation.queries, "gallery": evaluation.gallery}
    parts = (
        f"{name} {len(split.labels):,} images of {len(np.unique(split.labels)):,} classes"
        for name, split in named.items()
    )
    devices = f"{describe_devices()}, {computed_in(config.model.compute_dtype)} by {way().name}"
    return f"{run}: {config.data.dataset}, {', '.join(parts)}; {devices}"
