"""Multi-process training (`jax.distributed`) on one or several hosts.

Each process has its own devices and loads its share of the images. All processes execute the same program in lockstep.
The first process decides what all must agree on. Only the first process prints and writes files. Checkpoints are the
exception: Orbax writes them from all processes.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from proxynca_jax.errors import UserError

RECORD_BYTES = 2**16  # of a record as JSON, padded, because a broadcast needs the same size in all processes
FAULT_LETTERS = 5000  # of an error that all processes print; as JSON, one takes up to 12 bytes
# When a process has failed, it waits this long for the others; then all are ended.
SHUTDOWN_SECONDS = 60


def start(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes. Call it before anything that asks JAX for its devices.

    Args:
        coordinator_address: host and port of the first process. None: from Slurm, Open MPI or Kubernetes.
        num_processes: number of processes on all hosts. None: as above.
        process_id: number of this process, from 0. None: as above.

    Raises:
        UserError: this process cannot join the others.
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
    """Returns whether this is the first process, the one that prints and writes files."""
    return jax.process_index() == 0


def share() -> tuple[int, int]:
    """Returns the index of this process and the number of processes: which rows of every batch it loads."""
    return jax.process_index(), jax.process_count()


def wait_for_all(what: str) -> None:
    """Waits at a barrier, named `what`, until all processes have reached it."""
    multihost_utils.sync_global_devices(what)


def decision_of_first(decision: bool) -> bool:
    """Returns the first process's decision in all processes. Their clocks may differ."""
    if jax.process_count() == 1:
        return decision
    return bool(multihost_utils.broadcast_one_to_all(np.array(decision)))


def record_of_first(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the first process's record in all processes.

    Each process measures other times, and on other hardware the last digit of a score may differ too.
    """
    if jax.process_count() == 1:
        return record
    text = json.dumps(record).encode().ljust(RECORD_BYTES)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))))


def sum_of_all(parts: np.ndarray) -> np.ndarray:
    """Adds up an array of each process. All have the same shape and dtype, and so has the sum."""
    if jax.process_count() == 1:
        return parts
    return multihost_utils.process_allgather(parts).sum(0, dtype=parts.dtype)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The first process runs the block before the others do. If it fails, all fail: none waits for ever.

    Raises:
        UserError: in all processes, if the block raises it in the first one.
    """
    if not is_first():
        if fault := record_of_first({})["fault"]:
            raise UserError(fault)
        yield
        return
    fault = "the first process has failed."
    try:
        yield
        fault = ""
    except UserError as error:
        fault = str(error)
        raise
    finally:
        record_of_first({"fault": fault[:FAULT_LETTERS]})
