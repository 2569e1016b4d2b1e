"""Zero-shot image retrieval with proxies (ProxyNCA) in JAX and Flax.

    from proxynca_jax import Embedder

Importing the package is cheap: JAX starts when `Embedder` is first used.
"""

from typing import TYPE_CHECKING, Any

from proxynca_jax.version import __version__

if TYPE_CHECKING:
    from proxynca_jax.embedder import Embedder

__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Embedder":
        from proxynca_jax.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
