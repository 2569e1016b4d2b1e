"""What a run is to match: every epoch of the reference's own runs, and the paper's figures.

`reference.json` holds the logs of dichotomies/proxy-nca: percent, seconds on a Titan X-class GPU, epoch -1 before
training. Of its two SOP runs it is the one whose figures its README quotes. The paper is arXiv 1703.07464, Tables 2-4.
"""

import json
import pathlib
from typing import Any, NamedTuple

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.runs.log import Record

# The settings on which the figures depend, by the start of their names.
PIXELS = ("data.image_size", "data.resize_size", "data.crop_", "data.horizontal_flip")
COMPARED = (*PIXELS, "model.embedding_dim", "model.batch_norm", "loss.", "optim.")


class Reference(NamedTuple):
    """One data set's figures to match."""

    name: str
    log: str  # the reference's log file that they come from
    settings: dict[str, Any]  # the fields, by dotted name, in which it differs from `TrainConfig()`
    quoted_epoch: int  # the epoch that its README quotes as the best
    paper: Record
    records: list[Record]


def _read() -> dict[str, Reference]:
    content = json.loads(pathlib.Path(__file__).with_name("reference.json").read_text())
    return {name: Reference(name, **fields) for name, fields in content.items()}


REFERENCES = _read()


def find_reference(name: str) -> Reference:
    """Looks a reference up.

    Args:
        name: a data set, one of `REFERENCES`.

    Raises:
        UserError: if there is none of that name.
    """
    if name not in REFERENCES:
        raise UserError(f"there is no reference {name!r}: {nearest(name, REFERENCES)}")
    return REFERENCES[name]


def other_settings(config: TrainConfig, reference: Reference) -> list[str]:
    """Says where a configuration departs from the reference's, one field each: `optim.epochs 30 (reference 20)`."""
    theirs = flatten(TrainConfig()) | reference.settings
    return [
        f"{name} {value} (reference {theirs[name]})"
        for name, value in flatten(config).items()
        if name.startswith(COMPARED) and value != theirs[name]
    ]
