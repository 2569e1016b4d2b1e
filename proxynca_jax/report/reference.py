"""Published scores: every epoch of the PyTorch reference's runs, and the paper's figures.

`reference.json` contains the logs of dichotomies/proxy-nca. Scores are in percent, times in seconds on a Titan X-class
GPU, and epoch -1 is before training. Of its two SOP runs, the file has the one that its README quotes. The paper is
arXiv 1703.07464, Tables 2-4.
"""

import json
import pathlib
from typing import Any, NamedTuple

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.runs.log import Record

# Prefixes of the settings that the figures depend on.
PIXELS = ("data.image_size", "data.resize_size", "data.squash", "data.crop_", "data.horizontal_flip")
COMPARED = (*PIXELS, "model.embedding_dim", "model.batch_norm", "model.fixed_batch_norm", "loss.", "optim.")


class Reference(NamedTuple):
    """Published scores of one data set."""

    name: str
    log: str  # the reference's log file
    settings: dict[str, Any]  # by dotted name: the fields in which its settings differ from `TrainConfig()`
    quoted_epoch: int  # the epoch that its README quotes as the best
    paper: Record
    records: list[Record]


def _read() -> dict[str, Reference]:
    content = json.loads(pathlib.Path(__file__).with_name("reference.json").read_text())
    return {name: Reference(name, **fields) for name, fields in content.items()}


REFERENCES = _read()


def find_reference(name: str) -> Reference:
    """Returns the reference of a data set.

    Args:
        name: a data set, one of `REFERENCES`.

    Raises:
        UserError: there is no reference of that name.
    """
    if name not in REFERENCES:
        raise UserError(f"there is no reference {name!r}: {nearest(name, REFERENCES)}")
    return REFERENCES[name]


def other_settings(config: TrainConfig, reference: Reference) -> list[str]:
    """Lists the fields that differ from the reference's settings, such as `optim.epochs 30 (reference 20)`."""
    theirs = flatten(TrainConfig()) | reference.settings
    return [
        f"{name} {value} (reference {theirs[name]})"
        for name, value in flatten(config).items()
        if name.startswith(COMPARED) and value != theirs[name]
    ]
