"""Zero-shot image retrieval with proxies (ProxyNCA) in JAX and Flax.

    from proxynca_jax import Embedder, Index

Importing the package is cheap: JAX starts when one of them is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from proxynca_jax.version import __version__

if TYPE_CHECKING:
    from proxynca_jax.embedder import Embedder
    from proxynca_jax.vector_index.index import Index

__all__ = ["Embedder", "Index", "__version__"]

MODULES = {"Embedder": "embedder", "Index": "vector_index.index"}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
