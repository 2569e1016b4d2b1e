"""Copies of what a run logs, for TensorBoard and for Weights & Biases. `metrics.jsonl` stays the record.

Both are extras and off by default. Neither logs in or uses the network.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from proxynca_jax.config import TrackingConfig, TrainConfig, flatten
from proxynca_jax.machine.extras import require_extra
from proxynca_jax.runs.log import Record

OF_TRAINING = ("train_loss", "train_seconds", "images_per_second", "data_wait_share")  # of a record


class Writer(Protocol):
    """Takes numbers by name."""

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, run: pathlib.Path, step: int):
        from tensorboardX import SummaryWriter

        # A run that continues writes the later points again. TensorBoard hides those from before.
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, run: pathlib.Path, config: TrainConfig):
        import wandb

        # Offline whatever the environment says: no login, no question, no network. It also would send the program's
        # code, its output and facts about the machine.
        quiet = wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True
        )
        name = run.absolute().name
        options: dict[str, Any] = {"mode": "offline", "dir": run, "name": name, "group": name, "settings": quiet}
        self._run = wandb.init(project="proxynca_jax", config=flatten(config), **options)

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def require_packages(config: TrackingConfig) -> None:
    """Checks that what a configuration asks for is installed.

    Raises:
        UserError: if it is not.
    """
    if config.tensorboard:
        require_extra("tensorboard", "tensorboardX")
    if config.wandb:
        require_extra("wandb", "wandb")


class Tracking:
    """Passes a run's numbers on to the programs that its configuration names. A context: its end writes all of them."""

    def __init__(self, run: pathlib.Path, config: TrainConfig, step: int, *, writes: bool = True):
        """Args:
        run: the run's folder.
        config: of the run.
        step: at which it starts or continues.
        writes: whether this process writes; only the first one does.
        """
        self._writers: list[Writer] = []
        if writes and config.tracking.tensorboard:
            self._writers.append(_TensorBoard(run, step))
        if writes and config.tracking.wandb:
            self._writers.append(_WandB(run, config))

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    def step(self, step: int, *, loss: float, images_per_second: float, data_wait_share: float) -> None:
        """Passes on how training goes. Shares are from 0 to 1."""
        values = {"loss": loss, "images_per_second": images_per_second, "data_wait_share": data_wait_share}
        self._write({f"train/{name}": value for name, value in values.items()}, step)

    def record(self, record: Record) -> None:
        """Passes on the numbers of a record of `metrics.jsonl`, such as `test/recall_at_1` and `epoch/train_loss`."""
        numbers = {name: value for name, value in record.items() if type(value) in (int, float)}
        step = numbers.pop("step")
        groups = {name: "epoch" if name in OF_TRAINING else record["split"] for name in numbers}
        self._write({f"{group}/{name}": numbers[name] for name, group in groups.items() if name != "epoch"}, step)

    def _write(self, values: Mapping[str, float], step: int) -> None:
        for writer in self._writers:
            writer.write(values, step)
