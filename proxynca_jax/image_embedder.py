"""A scikit-learn transformer: images to unit vectors."""

import functools
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float32
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags

from proxynca_jax.data.given_images import GivenImage
from proxynca_jax.embedder import Embedder

NETWORKS_KEPT = 4  # in memory, with their compiled programs


class ImageEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embeds images, as the first step of a scikit-learn pipeline.

    It is stateless: `fit` learns nothing, and `transform` works without it. So vectors of all images may be computed
    once, and any estimator cross-validated on them. A pickle contains the parameters, and the network is read again
    where it is unpickled. A process reads each network once: start another to see a later checkpoint of a run.

    >>> import numpy as np
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from proxynca_jax import ImageEmbedder
    >>> dark, bright = np.full((32, 32, 3), (60, 0, 0), np.uint8), np.full((32, 32, 3), (0, 0, 200), np.uint8)
    >>> classifier = make_pipeline(ImageEmbedder("runs/mine"), KNeighborsClassifier(n_neighbors=1))
    >>> classifier.fit([dark, bright], ["dark", "bright"]).predict([bright]).tolist()
    ['bright']

    Args:
        model: what `Embedder.load` takes: the folder of a run or of an exported network, a converted weights file, or
            the name of a package's weights.
        checkpoint: of a run: "best" or "latest".
        batch_size: images per step; as for `Embedder.embed`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "efficientnet_lite0",
        *,
        checkpoint: str = "best",
        batch_size: int | None = None,
    ):
        self.model = model
        self.checkpoint = checkpoint
        self.batch_size = batch_size

    def fit(self, X: Any = None, y: Any = None) -> "ImageEmbedder":
        """Reads the network, so that a wrong `model` is noticed here. `X` and `y` are not looked at.

        Raises:
            UserError: as for `Embedder.load`.
        """
        self._embedder()
        return self

    def transform(self, X: Iterable[GivenImage]) -> Float32[np.ndarray, "N D"]:
        """Embeds images.

        >>> ImageEmbedder("runs/mine").transform(["photographs/a.jpg", "photographs/b.jpg"]).shape
        (2, 64)

        Args:
            X: N images, as for `Embedder.embed`: a list or an array of paths, a list of images, or a uint8 array
                (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4).

        Returns:
            Vectors of length 1, in the order of the images; a data frame after `set_output`.

        Raises:
            UserError: as for `Embedder.load` and `Embedder.embed`.
        """
        return self._embedder().embed(X, batch_size=self.batch_size)

    @property
    def _n_features_out(self) -> int:
        """D, from which scikit-learn makes the names of the features."""
        return self._embedder().dim

    def _embedder(self) -> Embedder:
        return _load(os.fspath(self.model), self.checkpoint)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.string = tags.input_tags.three_d_array = True
        tags.input_tags.two_d_array = False  # a row of numbers is no image
        tags.no_validation = True  # `Embedder.embed` checks each image, and numbers of columns mean nothing here
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []  # vectors are float32, whatever the images are
        return tags


@functools.lru_cache(NETWORKS_KEPT)
def _load(model: str, checkpoint: str) -> Embedder:
    """Reads a network once in a process. Clones share it, so that cross-validation compiles its programs once."""
    return Embedder.load(model, checkpoint=checkpoint)
