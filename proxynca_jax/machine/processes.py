"""Many processes that run one training: on one or several hosts, each with its own devices and its share of the images.

All of them execute the same program in step. What they have to agree on comes from the first one, which is also the
only one that prints and that writes files, apart from checkpoints, which Orbax writes together.
"""

import json
import os
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from proxynca_jax.errors import UserError

RECORD_BYTES = 2**16  # room for a record as JSON, which all processes have to expect in the same size
# How long a process that failed waits for the others, who wait for it, before all are ended.
SHUTDOWN_SECONDS = 60


def start(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes. Comes before anything that asks JAX for its devices.

    Args:
        coordinator_address: host and port of the first process; None: as Slurm, Open MPI or Kubernetes say.
        num_processes: of all hosts together; None: as they say.
        process_id: of this one, from 0; None: as they say.

    Raises:
        UserError: if the others cannot be found.
    """
    try:
        jax.distributed.initialize(
            coordinator_address, num_processes, process_id, shutdown_timeout_seconds=SHUTDOWN_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed cannot join the other processes: {error} Under Slurm, Open MPI or Kubernetes the processes "
            "find each other; elsewhere give --coordinator_address, --num_processes and --process_id."
        ) from error
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # open until this process ends


def is_first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def share() -> tuple[int, int]:
    """This process's number and that of all: it loads such a share of the rows of every batch."""
    return jax.process_index(), jax.process_count()


def wait_for_all(what: str) -> None:
    """Returns once all processes have come to this point, which `what` names."""
    multihost_utils.sync_global_devices(what)


def record_of_first(record: dict[str, Any]) -> dict[str, Any]:
    """The first process's record. The others' clocks differ, and on other hardware the last digit of a score may."""
    if jax.process_count() == 1:
        return record
    text = json.dumps(record).encode().ljust(RECORD_BYTES)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))))
