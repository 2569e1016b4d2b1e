"""The folder of a run: which configuration it belongs to."""

import dataclasses
import json
import pathlib

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.errors import UserError
from proxynca_jax.machine import processes
from proxynca_jax.machine.atomic_file import replace_file

# A run may go on for longer, elsewhere or with more threads: its steps stay the same.
FREE_TO_CHANGE = frozenset({"optim.epochs", "data.root", "data.cache", "data.threads", "log_every_steps"})

CONFIG_PY = '''"""The configuration of this run. To repeat it: python -m proxynca_jax.train --config <this file>"""

import pathlib

from proxynca_jax.runs.folder import read_config


def get_config():
    return read_config(pathlib.Path(__file__).parent)
'''


def open_run(run: pathlib.Path, config: TrainConfig) -> None:
    """Makes the folder of a new run, or checks that an existing one is of the same run. Many processes do so together.

    Args:
        run: the folder.
        config: what is to be run in it.

    Raises:
        UserError: if the folder holds a run of another configuration, or something else.
    """
    if (run / "config.json").exists():
        before, now = flatten(read_config(run)), flatten(config)
        changed = [name for name in now if now[name] != before[name] and name not in FREE_TO_CHANGE]
        if changed:
            rows = "\n".join(f"  {name}: {before[name]!r} there, {now[name]!r} now" for name in changed)
            raise UserError(
                f"{run} holds a run of another configuration:\n{rows}\nChoose another --run, or undo these."
            )
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} exists and is not the folder of a run. Choose another --run.")
    processes.wait_for_all("looked at the run's folder")  # which the first one is about to change
    if processes.is_first():
        _write_config(run, config)
    processes.wait_for_all("made the run's folder")


def _write_config(run: pathlib.Path, config: TrainConfig) -> None:
    replace_file(run / "config.json", (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())
    replace_file(run / "config.py", CONFIG_PY.encode())


def read_config(run: pathlib.Path) -> TrainConfig:
    """Reads the configuration of a run.

    Args:
        run: its folder.

    Raises:
        UserError: if there is none, or not one of this version.
    """
    path = run / "config.json"
    try:
        config = TrainConfig()
        for name, value in json.loads(path.read_text()).items():
            group = getattr(config, name)
            if dataclasses.is_dataclass(group):  # JSON knows lists only, a configuration tuples only
                fields = {key: tuple(x) if isinstance(getattr(group, key), tuple) else x for key, x in value.items()}
                value = type(group)(**fields)
            setattr(config, name, value)
    except OSError as error:
        raise UserError(f"{run} is not the folder of a run: {path}: {error.strerror}.") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a configuration that this version can read: {error}") from error
    return config
