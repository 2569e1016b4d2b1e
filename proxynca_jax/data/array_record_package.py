"""Checks for the package array-record, which has no wheel for Windows."""

import importlib

from proxynca_jax.errors import UserError


def require_array_record(setting: str) -> None:
    """Checks that array-record can be imported.

    Args:
        setting: What needs it, as the beginning of the error: "data.cache is 'cache'".

    Raises:
        UserError: If it cannot be imported.
    """
    try:
        importlib.import_module("array_record")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{setting}, which needs the package array-record; it is not installed. On Linux and macOS install it: "
            "pip install array-record. It has no wheel for Windows: leave this setting out there."
        ) from error
