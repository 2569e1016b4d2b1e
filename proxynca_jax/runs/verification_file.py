"""The record of a verification, and `verification.json` in a run's folder, from which an index takes thresholds."""

import json
import pathlib
from typing import Any

from proxynca_jax.errors import UserError
from proxynca_jax.machine.atomic_file import replace_file
from proxynca_jax.metrics.identification import Identification
from proxynca_jax.metrics.verification import Verification

NAME = "verification.json"
Measured = dict[str, Any]  # as JSON


def record(verification: Verification, identification: Identification | None) -> Measured:
    """Returns what was measured as JSON: the fields of both, without the curve. Rates are from 0 to 1.

    Args:
        verification: of the images.
        identification: of the same images. None: their classes are too few for it.
    """
    fields = verification._asdict()
    del fields["curve"]
    fields["operating_points"] = [point._asdict() for point in verification.operating_points]
    fields["pairs"] = {"genuine": fields.pop("genuine_pairs"), "impostor": fields.pop("impostor_pairs")}
    fields["too_few"] = _needed(verification.too_few)
    if identification is None:
        return fields | {"identification": None}
    points = [point._asdict() for point in identification.points]
    open_set = identification._asdict() | {"points": points, "too_few": _needed(identification.too_few)}
    return fields | {"identification": open_set}


def _needed(too_few: dict[float, int]) -> list[dict[str, float]]:
    return [{"rate": rate, "needed": needed} for rate, needed in too_few.items()]


def write(path: pathlib.Path, measured: Measured) -> None:
    """Writes a record atomically.

    Raises:
        UserError: if the file cannot be written.
    """
    replace_file(path, (json.dumps(measured, indent=2, allow_nan=False) + "\n").encode())


def operating_points(run: pathlib.Path, weights: str) -> list[dict[str, Any]] | None:
    """Reads the operating points of a run's network. None: none were measured, or those of other weights.

    Args:
        run: the run's folder. Anything else has none.
        weights: the digest of the network, as in `Embedder.about`.

    Raises:
        UserError: if the file is damaged.
    """
    path = run / NAME
    try:
        measured = json.loads(path.read_text())
        return measured["operating_points"] if measured["weights"] == weights else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}. Make it again: proxynca evaluate --run {run} --verification"
        ) from error
