"""Trains an embedding network with proxies and scores it on unseen classes.

    python -m proxynca_jax.train --config configs/glyphs.py
    python -m proxynca_jax.train --config configs/cars.py --config.data.root=/data/cars196 --run runs/cars

A run's folder contains config.json, images.parquet (the list of its images), log.txt, metrics.jsonl, and the latest and
the best checkpoint. It also contains config.py, which `--config` takes to repeat the run. Ctrl-C saves a run. The same
command with the same `--run` continues it.
"""

import contextlib
import dataclasses
import datetime
import functools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from proxynca_jax import steps
from proxynca_jax.compile_ahead import CompileClock, compile_embed_step, compile_train_step
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.cache import cached, cached_crops, require_cache
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.evaluation_images import DeviceBatch, Source, choose_place, evaluation_source
from proxynca_jax.data.inspection import inspect_dataset
from proxynca_jax.data.order import steps_per_epoch
from proxynca_jax.data.pipeline import crop_batches, prefetch_to_device, training_batches
from proxynca_jax.data.resident import ResidentImages, crops, upload
from proxynca_jax.data.split import Evaluation, Split, divide, random_classes
from proxynca_jax.embedder import TrainedNetwork, embed
from proxynca_jax.errors import UserError, look_up
from proxynca_jax.losses import LOSSES
from proxynca_jax.machine import processes
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.interrupt import Interrupted, stop_on_signal
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.machine.progress import Progress, Stalls
from proxynca_jax.metrics.retrieval import LabelledVectors
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import Variables
from proxynca_jax.optim import make_optimizer
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.image_list import LEFT_OUT, list_images
from proxynca_jax.runs.log import MetricLog, Record
from proxynca_jax.scores import describe_epoch, describe_scores, score
from proxynca_jax.sharding import Layout
from proxynca_jax.training_options import parse
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


def train(config: TrainConfig, run: pathlib.Path, *, graphs: bool = True) -> None:
    """Trains from the start, or continues a run.

    Args:
        config: of the run.
        run: the run's folder. It is created if it does not exist.
        graphs: as for `steps.compiler_options`.

    Raises:
        UserError: for anything that the user can correct. Everything computed before is kept.
        Interrupted: if the user stops the run. Its state is saved first.
    """
    job, state = _prepare(config, run, graphs)
    log, epoch_steps = job.log, job.epoch_steps
    every_minutes = config.checkpoint.every_minutes
    with Checkpoints(run, every_minutes=every_minutes) as checkpoints, stop_on_signal() as check:
        # Restore
        restored, step, damages = checkpoints.restore_newest(state)
        for damage in damages:
            log.line(f"{damage} It was put aside.")
        if step:
            log.line(f"continuing from step {step}, in epoch {step // epoch_steps}")
        log.keep_records_until(step)
        _keep_best(job, restored, step, checkpoints)

        # Programs and images
        job = _make_ready(job, state, step, check)  # for fresh arrays, as when the run began: nothing compiles again
        state = restored

        # Loop
        try:
            if step % epoch_steps == 0 and all(record["step"] != step for record in job.evaluation_records()):
                _finish_epoch(job, state, step, {}, checkpoints, check)
            while step < config.optim.epochs * epoch_steps:
                if step % epoch_steps == 0:
                    state = dataclasses.replace(state, loss_sum=job.layout.place(jnp.float32(0)))
                train_step = job.train_steps[job.is_frozen(step)]
                with _open_epoch(job, step) as (batches, progress, stalls):
                    for batch in stalls.waiting(batches):
                        state, loss = train_step(state, batch)
                        stalls.computing(loss)
                        step += 1
                        progress.advance(config.optim.batch_size)
                        if step % config.log_every_steps == 0:
                            waited = stalls.seconds / progress.seconds()
                            progress.show(f"loss {_finite(loss, step, config):.4f}  data wait {waited:.0%}")
                            checkpoints.save_if_due(step, state)
                        check()
                    _finite(state.loss_sum, step, config)  # waits for the device
                    pace = _pace(progress, stalls)
                _finish_epoch(job, state, step, pace, checkpoints, check)
        except Interrupted:
            _finite(state.loss_sum, step, config)
            checkpoints.save("latest", step, state)
            log.line(f"stopped at step {step}, in epoch {step // epoch_steps}; with --run {run} it continues from here")
            raise

        # Report
        best, metric = job.best(), config.checkpoint.best_metric
        log.line(f"best epoch {best['epoch']}, by {metric}  {describe_scores(best)}  in {run}")
        if config.evaluation.protocol == "validation" and job.tested() != best["step"]:
            _test_best(job, state, checkpoints, check)


def _keep_best(job: Job, state: steps.TrainState, step: int, checkpoints: Checkpoints) -> None:
    """Saves the best state again if it is lost and is the state that the run goes on from, or says that it is lost."""
    if not job.evaluation_records() or (best := job.best())["step"] == checkpoints.latest_step("best"):
        return
    if best["step"] == step:
        checkpoints.save("best", step, state)
    else:
        job.log.line(f"the best state, of epoch {best['epoch']}, is lost. A better epoch would be the next best one.")


def _prepare(config: TrainConfig, run: pathlib.Path, graphs: bool = True) -> tuple[Job, steps.TrainState]:
    """Checks configuration, data and devices before anything expensive starts, and makes the run's folder."""
    # Data
    config.validate()
    look_up(LOSSES, config.loss.name, "loss.name")
    look_up(BACKBONES, config.model.backbone, "model.backbone").check_image_size(config.data.image_size)
    require_cache(config.data)
    dataset, left_out = inspect_dataset(load_dataset(config.data), config.data)
    train_split, evaluation = dataset.train, dataset.evaluation
    if config.evaluation.protocol == "validation":
        held_out = random_classes(len(train_split.class_names), config.evaluation.validation_fraction, config.seed)
        remedy = "score each epoch on the test classes, with evaluation.protocol=reference"
        train_split, validation_split = divide(train_split, held_out, purpose="validation", remedy=remedy)
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
    on_device = {"images_of": functools.partial(crops, size=config.data.image_size)}
    options: dict[str, Any] = {"options": steps.compiler_options(jax.default_backend(), graphs=graphs)}
    embed_step = steps.make_embed_step(graph, layout, **options)
    if config.data.placement == "device":
        options |= on_device
    options |= {"layout": layout, "fixed_batch_norm": config.model.fixed_batch_norm}
    train_steps = {
        frozen: steps.make_train_step(graph, config.loss, optimizer, frozen=frozen, **options)
        for frozen in (False, True)
    }

    # Folder
    open_run(run, config, list_images(dataset.sides(), dataset), left_out)
    log = MetricLog(run, writes=processes.is_first())
    log.line(_describe(config, run, train_split, evaluation))
    if left_out:
        log.line(f"{len(left_out):,} images cannot be read and are left out: {run / LEFT_OUT}")
    if start:
        log.line(start)
    if (named := config.model.compute_dtype) != (precision := computed_in(named)):
        log.line(f"model.compute_dtype is {named}, which this device does not have: it computes in {precision}")
    test = dataset.evaluation
    images = train_split, evaluation, test, len(left_out)
    return Job(config, log, *images, epoch_steps, layout, train_steps, embed_step), state


def _make_ready(job: Job, state: steps.TrainState, step: int, check: Callable[[], None]) -> Job:
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
        if not processes.is_first():
            processes.wait_for_all("the cache")
        # All processes must call `check` equally often, but only the first one fills the cache.
        options = {"check": check} if jax.process_count() == 1 else {}
        train_split = cached(job.train_split, data, max_side=data.max_side, **options)
        crops_of = [cached_crops(split, data, **options) for split in job.evaluation.splits()]
        job = job._replace(train_split=train_split, evaluation=Evaluation(*crops_of))
        if processes.is_first():
            processes.wait_for_all("the cache")
    if data.placement == "device":
        resident = upload(job.train_split, data, job.layout, check)
        job.log.line(f"training images on the device: {resident.pixels.nbytes / 1e9:.2f} GB")
        job = job._replace(resident=resident)
    place, line = choose_place(job.evaluation, job.config)
    job.log.line(line)
    return job._replace(sources=[evaluation_source(split, job.config, place) for split in job.evaluation.splits()])


@contextlib.contextmanager
def _open_epoch(job: Job, step: int) -> Iterator[tuple[Iterator[steps.Batch], Progress, Stalls]]:
    """Opens the epoch of a step: its remaining batches on the device, its progress and its stalls."""
    epoch, done = divmod(step, job.epoch_steps)
    batch_size = job.config.optim.batch_size
    options = {"batch_size": batch_size, "seed": job.config.seed, "epoch": epoch, "start_step": done}
    share = processes.share()
    if job.resident is None:
        made, resident = training_batches(job.train_split, job.config.data, **options, share=share), {}
    else:
        made = crop_batches(job.train_split, job.resident.sizes, job.config.data, **options, share=share)
        resident = {"pixels": job.resident.pixels}
    images, seen = job.epoch_steps * batch_size, done * batch_size
    with (
        contextlib.closing(prefetch_to_device(made, sharding=job.layout.batches)) as batches,
        Progress(f"epoch {epoch}", images=images, done=seen) as progress,
        Stalls() as stalls,
    ):
        yield (batch | resident for batch in batches), progress, stalls


def _pace(progress: Progress, stalls: Stalls) -> Record:
    """How fast the epoch was, for its record. Call it when the device has finished."""
    seconds = progress.seconds()
    return {
        "train_seconds": seconds,
        "images_per_second": progress.images_per_second(),
        "data_wait_share": stalls.seconds / seconds,
    }


def _finish_epoch(
    job: Job,
    state: steps.TrainState,
    step: int,
    pace: Record,
    checkpoints: Checkpoints,
    check: Callable[[], None],
) -> None:
    """Scores a state, records the scores with the epoch's loss and pace, and saves the state."""
    start = time.perf_counter()
    with CompileClock() as compiling:  # metrics compile when they are first used
        scores = _score(job, job.evaluation, state.network(), check, job.sources)
    split = EVALUATED_SPLIT[job.config.evaluation.protocol]
    trained = {"train_loss": float(state.loss_sum) / job.epoch_steps, **pace} if step else {}
    if step and job.is_frozen(step - 1):
        trained["backbone_frozen"] = True
    record: Record = {"epoch": step // job.epoch_steps - 1, "step": step, "split": split, **trained, **scores}
    if job.left_out:
        record["images_left_out"] = job.left_out
    record["compute_dtype"] = computed_in(job.config.model.compute_dtype)
    record["evaluation_seconds"] = time.perf_counter() - start - compiling.seconds
    record = processes.record_of_first(record)
    job.log.record(record)
    job.log.line(describe_epoch(record))
    if job.best() == record:
        checkpoints.save("best", step, state)
    checkpoints.save("latest", step, state)


def _score(
    job: Job,
    evaluation: Evaluation,
    variables: Variables,
    check: Callable[[], None],
    sources: Sequence[Source[DeviceBatch]] = (),
) -> Record:
    """Embeds the queries and, if there is one, the gallery, and scores them.

    Args:
        job: The run.
        evaluation: The images.
        variables: The network's arrays.
        check: Called before each batch; raises to stop.
        sources: The batches of `evaluation.splits()`; without them, the images are decoded for this call.
    """
    network = TrainedNetwork(job.embed_step, variables)

    def embedded(split: Split, source: Source[DeviceBatch] | None) -> LabelledVectors:
        return embed(network, split, job.config, check, source), split.labels

    queries, *gallery = map(embedded, evaluation.splits(), sources or (None, None))
    return score(*queries, job.config, gallery=gallery[0] if gallery else None)


def _test_best(job: Job, state: steps.TrainState, checkpoints: Checkpoints, check: Callable[[], None]) -> None:
    """Scores the best checkpoint once on the test classes. `state` provides the shapes."""
    best = job.best()
    if checkpoints.latest_step("best") != best["step"]:
        raise UserError(
            f"the best state, of epoch {best['epoch']}, is lost, so it cannot be scored on the test classes. To score "
            f"the last one: python -m proxynca_jax.evaluate --run {job.log.folder} --checkpoint latest"
        )
    variables = checkpoints.restore_network("best", state.network())
    record: Record = {"epoch": best["epoch"], "step": best["step"], "split": "test"}
    record = processes.record_of_first(record | _score(job, job.test, variables, check))
    job.log.record(record)
    job.log.line(f"test classes, at that epoch  {describe_scores(record)}")


def _finite(loss: jax.Array, step: int, config: TrainConfig) -> float:
    """Waits for a loss and returns it.

    Raises:
        UserError: if it is not finite.
    """
    value = float(loss)
    if not math.isfinite(value):
        rates = f"{config.optim.learning_rate:g}, the proxies' {config.optim.proxy_learning_rate:g}"
        raise UserError(
            f"the loss is {value} at step {step}: training has diverged. Earlier checkpoints are kept. Start a new "
            f"run with lower learning rates (now {rates}) or a larger optim.epsilon (now {config.optim.epsilon:g})."
        )
    return value


def _describe(config: TrainConfig, run: pathlib.Path, train_split: Split, evaluation: Evaluation) -> str:
    device = jax.devices()[0]
    named = {"training": train_split, "evaluation": evaluation.queries}
    if evaluation.gallery is not None:
        named = {"training": train_split, "queries": evaluation.queries, "gallery": evaluation.gallery}
    parts = (
        f"{name} {len(split.labels):,} images of {len(np.unique(split.labels)):,} classes"
        for name, split in named.items()
    )
    devices = f"{jax.device_count()} × {device.device_kind}, {computed_in(config.model.compute_dtype)}"
    return f"{run}: {config.data.dataset}, {', '.join(parts)}; {devices}"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    with exit_on_user_error():
        options = parse(sys.argv[1:] if arguments is None else arguments, about=str(__doc__))
        config: TrainConfig = options.config
        if options.distributed:
            if not options.run:
                raise UserError("--distributed needs --run, a folder that all processes share.")
            processes.start(options.coordinator_address, options.num_processes, options.process_id)
        default = f"runs/{config.data.dataset}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
        train(config, pathlib.Path(options.run or default), graphs=not options.no_graphs)


if __name__ == "__main__":
    prepare_process()
    main()
