"""Exports the network of a run as a folder for the Hugging Face Hub."""

import pathlib

import numpy as np

from proxynca_jax.embedder import load_network
from proxynca_jax.machine.atomic_file import new_folder
from proxynca_jax.report.model_card import model_card
from proxynca_jax.runs.image_list import read_list
from proxynca_jax.runs.log import MetricLog, Record
from proxynca_jax.weights import hub_folder
from proxynca_jax.weights.converted_file import flatten


def write_hub_folder(run: pathlib.Path, folder: pathlib.Path, *, checkpoint: str = "best") -> None:
    """Writes a folder that `Embedder.from_pretrained` reads, with a model card. It is complete, or not there.

    Args:
        run: the run's folder.
        folder: must not exist.
        checkpoint: which of the run's states, one of `checkpoint.KINDS`.

    Raises:
        UserError: if the folder exists or cannot be written, or `run` is not the folder of a run with this state.
    """
    with new_folder(folder) as partial:
        network, config, step = load_network(run, checkpoint)
        tensors = {name: np.asarray(leaf) for name, leaf in flatten(network.variables._asdict()).items()}
        source = {"run": run.absolute().name, "checkpoint": checkpoint, "step": str(step)}
        hub_folder.write(partial, config, tensors, source=source)
        card = model_card(folder.name, config, _record(run, step), read_list(run), step)
        (partial / hub_folder.CARD).write_text(card)


def _record(run: pathlib.Path, step: int) -> Record | None:
    """The log's scores of a state on the test classes, or None."""
    records = [record for record in MetricLog(run, writes=False).records() if record["step"] == step]
    return next((record for record in reversed(records) if record["split"] == "test"), None)
