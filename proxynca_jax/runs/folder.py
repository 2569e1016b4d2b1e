"""The folder of a run and its configuration."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.errors import UserError
from proxynca_jax.machine import processes
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.runs.image_list import ListedImage, require_same_images, write_list
from proxynca_jax.runs.lock import LOCK, only_writer
from proxynca_jax.weights.hub_folder import is_hub_folder

# These fields may change when a run resumes, because they do not change its steps. With schedule "cosine", optim.epochs
# changes the learning rate of every step.
FREE_TO_CHANGE = frozenset(
    {
        "optim.epochs",
        "data.root",
        "data.cache",
        "data.threads",
        "log_every_steps",
        "report",
        "checkpoint.every_minutes",
        "tracking.tensorboard",
        "tracking.wandb",
    }
)

CONFIG_PY = '''"""The configuration of this run. To repeat it: python -m proxynca_jax.train --config <this file>"""

import pathlib

from proxynca_jax.runs.folder import read_config


def get_config():
    return read_config(pathlib.Path(__file__).parent)
'''


def open_run(
    run: pathlib.Path,
    config: TrainConfig,
    images: Sequence[ListedImage] | None = None,
    left_out: Mapping[str, str] | None = None,
    locks: contextlib.ExitStack | None = None,
) -> None:
    """Creates the folder of a new run, or checks that an existing one has the same configuration and images.

    With several processes, all of them must call this.

    Args:
        run: the folder.
        config: of the run.
        images: of its data set. None: they are neither checked nor listed.
        left_out: the fault of each image that is left out, by name.
        locks: closes when this process stops writing; see `only_writer`. None: the folder is not locked.

    Raises:
        UserError: the folder contains a run of another configuration or other images, or something other than a run,
            or another process trains this run.
    """
    if (run / "config.json").exists():
        before, now = flatten(read_config(run)), flatten(config)
        free = FREE_TO_CHANGE - ({"optim.epochs"} if config.optim.schedule == "cosine" else set())
        changed = [name for name in now if now[name] != before[name] and name not in free]
        if changed:
            rows = "\n".join(f"  {name}: {before[name]!r} there, {now[name]!r} now" for name in changed)
            raise UserError(
                f"{run} contains a run of another configuration:\n{rows}\nChoose another --run or undo these changes."
            )
        if images is not None:
            require_same_images(run, images, config.data.root)
    elif run.exists() and (not run.is_dir() or any(path.name != LOCK for path in run.iterdir())):
        raise UserError(f"{run} exists and is not the folder of a run. Choose another --run.")
    processes.wait_for_all("checked the run's folder")  # the first process must not change it before that
    with processes.first_before_others():
        if locks is not None:
            locks.enter_context(only_writer(run))
        if processes.is_first():
            _write_config(run, config)
            if images is not None:
                write_list(run, images, left_out or {})


def _write_config(run: pathlib.Path, config: TrainConfig) -> None:
    replace_file(run / "config.json", (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())
    replace_file(run / "config.py", CONFIG_PY.encode())


def _in_this_version(fields: dict[str, Any]) -> dict[str, Any]:
    """Renames what the first runs called otherwise: `loss.exclude_positive` chose the paper's loss."""
    loss = dict(fields.get("loss", {}))
    if "exclude_positive" in loss:
        loss["name"] = "proxy_nca_paper" if loss.pop("exclude_positive") else "proxy_nca"
    return fields | {"loss": loss}


def read_config(run: pathlib.Path) -> TrainConfig:
    """Reads the configuration of a run.

    Args:
        run: the run's folder.

    Raises:
        UserError: there is no configuration, or this version cannot read it.
    """
    path = run / "config.json"
    if is_hub_folder(run):
        raise UserError(
            f"{run} is an exported network: it has no data set, log and checkpoints. Name the folder of the run that "
            "it was exported from."
        )
    try:
        config = TrainConfig()
        for name, value in _in_this_version(json.loads(path.read_text())).items():
            group = getattr(config, name)
            if dataclasses.is_dataclass(group):  # JSON has lists where the configuration has tuples
                fields = {key: tuple(x) if isinstance(getattr(group, key), tuple) else x for key, x in value.items()}
                value = type(group)(**fields)
            setattr(config, name, value)
    except OSError as error:
        raise UserError(f"{run} is not the folder of a run: {path}: {error.strerror}.") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a configuration that this version can read: {error}") from error
    return config
