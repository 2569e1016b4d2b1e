"""Zero-shot image retrieval with proxies (ProxyNCA) in JAX and Flax.

    from proxynca_jax import Embedder, ImageEmbedder

Importing the package is cheap: JAX and scikit-learn start when one of these classes is first used.
"""

from typing import TYPE_CHECKING, Any

from proxynca_jax.version import __version__

if TYPE_CHECKING:
    from proxynca_jax.embedder import Embedder
    from proxynca_jax.image_embedder import ImageEmbedder

__all__ = ["Embedder", "ImageEmbedder", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Embedder":
        from proxynca_jax.embedder import Embedder

        return Embedder
    if name == "ImageEmbedder":
        from proxynca_jax.image_embedder import ImageEmbedder

        return ImageEmbedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
