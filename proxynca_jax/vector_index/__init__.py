"""An index of images: their vectors in a database, kept up to date with folders, and searched by example."""

import importlib

from proxynca_jax.errors import UserError
from proxynca_jax.vector_index.address import masked
from proxynca_jax.vector_index.engine import Engine

POSTGRES = ("postgresql://", "postgres://")


def open_engine(address: str) -> Engine:
    """Opens the database of an index, or prepares a new one.

    Args:
        address: `postgresql://…`, or a folder or URI of object storage, which LanceDB opens.

    Raises:
        UserError: if it cannot be opened, or the extra that it needs is not installed.
    """
    module, name, extra = ("lance", "LanceEngine", "search")
    if address.startswith(POSTGRES):
        module, name, extra = ("postgres", "PostgresEngine", "postgres")
    try:
        engine = getattr(importlib.import_module(f"proxynca_jax.vector_index.{module}"), name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the index {masked(address)} needs the package {error.name}: pip install 'proxynca_jax[{extra}]'."
        ) from error
    return engine(address)


def is_folder(address: str) -> bool:
    """Tells a folder on this machine from databases elsewhere."""
    return "://" not in address
