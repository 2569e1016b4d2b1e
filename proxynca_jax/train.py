"""Trains an embedding network with proxies and scores it on unseen classes.

    python -m proxynca_jax.train --config configs/glyphs.py
    python -m proxynca_jax.train --config configs/cars.py --config.data.root=/data/cars196 --run runs/cars

A run's folder contains config.json, images.parquet (the list of its images), log.txt, metrics.jsonl, and the latest and
the best checkpoint. It also contains config.py, which `--config` takes to repeat the run. Ctrl-C saves a run. The same
command with the same `--run` continues it.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import contextlib
import dataclasses
import datetime
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp

from proxynca_jax import steps
from proxynca_jax.compile_ahead import CompileClock
from proxynca_jax.config import TrainConfig
from proxynca_jax.data.evaluation_images import DeviceBatch, Source
from proxynca_jax.data.pipeline import crop_batches, prefetch_to_device, training_batches
from proxynca_jax.data.split import Evaluation, Split
from proxynca_jax.embedder import TrainedNetwork, embed
from proxynca_jax.errors import UserError
from proxynca_jax.job import EVALUATED_SPLIT, Job, make_ready, prepare
from proxynca_jax.machine import processes
from proxynca_jax.machine.arguments import path
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.devices import describe_devices
from proxynca_jax.machine.interrupt import Interrupted, stop_on_signal
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.machine.progress import Progress, Stalls
from proxynca_jax.metrics.retrieval import LabelledVectors
from proxynca_jax.models.network import Variables
from proxynca_jax.onednn.way import way
from proxynca_jax.report.run_page import require_report
from proxynca_jax.runs.checkpoint import Checkpoints
from proxynca_jax.runs.log import Record
from proxynca_jax.runs.tracking import Tracking, require_packages
from proxynca_jax.scores import describe_record, describe_scores, score
from proxynca_jax.training_options import parse


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
    require_packages(config.tracking)
    if config.report:
        require_report()
    with contextlib.ExitStack() as locks:
        job, state = prepare(config, run, graphs, locks)
        _train(job, state, run)
        if config.report:
            _report(job, run)


def _train(job: Job, state: steps.TrainState, run: pathlib.Path) -> None:
    config = job.config
    log, epoch_steps = job.log, job.epoch_steps
    every_minutes = config.checkpoint.every_minutes
    with contextlib.ExitStack() as opened:
        check = opened.enter_context(stop_on_signal())
        checkpoints = opened.enter_context(Checkpoints(run, every_minutes=every_minutes))
        # Restore
        restored, step, damages = checkpoints.restore_newest(state)
        tracking = opened.enter_context(Tracking(run, config, step, writes=processes.is_first()))
        for damage in damages:
            log.line(f"{damage} It was put aside.")
        if step:
            log.line(f"continuing from step {step}, in epoch {step // epoch_steps}")
            _compare_ways(job)
        log.keep_records_until(step, describe_record)
        _keep_best(job, restored, step, checkpoints)

        # Programs and images
        job = make_ready(job, state, step, check)  # for fresh arrays, as when the run began: nothing compiles again
        state = restored

        # Loop
        try:
            if step % epoch_steps == 0 and all(record["step"] != step for record in job.evaluation_records()):
                tracking.record(_finish_epoch(job, state, step, {}, checkpoints, check))
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
                            seen = _finite(loss, step, config)
                            progress.show(f"loss {seen:.4f}  data wait {waited:.0%}")
                            pace = progress.images_per_second()
                            tracking.step(step, loss=seen, images_per_second=pace, data_wait_share=waited)
                            checkpoints.save_if_due(step, state)
                        check()
                    _finite(state.loss_sum, step, config)  # waits for the device
                    pace = _pace(progress, stalls)
                tracking.record(_finish_epoch(job, state, step, pace, checkpoints, check))
        except Interrupted:
            _finite(state.loss_sum, step, config)
            checkpoints.save("latest", step, state)
            checkpoints.finish()
            log.line(f"stopped at step {step}, in epoch {step // epoch_steps}; with --run {run} it continues from here")
            raise

        # Report
        best, metric = job.best(), config.checkpoint.best_metric
        log.line(f"best epoch {best['epoch']}, by {metric}  {describe_scores(best)}  in {run}")
        if config.evaluation.protocol == "validation" and job.tested() != best["step"]:
            tracking.record(_test_best(job, state, checkpoints, check))


def _report(job: Job, run: pathlib.Path) -> None:
    """Writes the page that explains the run."""
    if jax.process_count() > 1:
        job.log.line(f"several processes write no report. To write it: proxynca report {run}")
        return
    from proxynca_jax.report.run_page.one_run import one_run_page  # imports Bokeh, which is an extra

    path = run / "report.html"
    replace_file(path, one_run_page(run, "best").encode())
    job.log.line(f"what the run has learnt, and where it fails: {path}")


def _compare_ways(job: Job) -> None:
    """Says so if the run was computed by another library before."""
    before = {record["convolutions"] for record in job.log.records() if "convolutions" in record} - {way().name}
    if before:
        job.log.line(
            f"until now {', '.join(sorted(before))} computed the convolutions, from here on {way().name}: scores "
            "differ by rounding from those of a run by one of them"
        )


def _keep_best(job: Job, state: steps.TrainState, step: int, checkpoints: Checkpoints) -> None:
    """Saves the best state again if it is lost and is the state that the run goes on from, or says that it is lost."""
    if not job.evaluation_records() or (best := job.best())["step"] == checkpoints.latest_step("best"):
        return
    if best["step"] == step:
        checkpoints.save("best", step, state)
    else:
        job.log.line(f"the best state, of epoch {best['epoch']}, is lost. A better epoch would be the next best one.")


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
    later = (job.config.optim.epochs - epoch - 1) * images, _evaluations_left(job, epoch)
    with (
        contextlib.closing(prefetch_to_device(made, sharding=job.layout.batches)) as batches,
        Progress(f"epoch {epoch}", images=images, done=seen, later=later) as progress,
        Stalls() as stalls,
    ):
        yield (batch | resident for batch in batches), progress, stalls


def _evaluations_left(job: Job, epoch: int) -> float:
    """How long the evaluations after this epoch and the later ones take, in seconds, if each is like the last one."""
    return (job.config.optim.epochs - epoch) * job.evaluation_records()[-1]["evaluation_seconds"]


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
) -> Record:
    """Scores a state, records the scores with the epoch's loss and pace, and saves the state. Returns the record."""
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
    record |= {"compute_dtype": computed_in(job.config.model.compute_dtype), "convolutions": way().name}
    record["devices"] = describe_devices()
    record["evaluation_seconds"] = time.perf_counter() - start - compiling.seconds
    record = processes.record_of_first(record)
    job.log.record(record)
    job.log.line(describe_record(record))
    if job.best() == record:
        checkpoints.save("best", step, state)
    checkpoints.save("latest", step, state)
    checkpoints.finish()  # a process that is killed from here on keeps the epoch
    return record


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


def _test_best(job: Job, state: steps.TrainState, checkpoints: Checkpoints, check: Callable[[], None]) -> Record:
    """Scores the best checkpoint once on the test classes, and returns its record. `state` provides the shapes."""
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
    job.log.line(describe_record(record))
    return record


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
        train(config, path(options.run or default), graphs=not options.no_graphs)


if __name__ == "__main__":
    prepare_process()
    main()
