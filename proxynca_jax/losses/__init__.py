"""The losses of a training run. `loss.name` chooses one of `LOSSES`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32, Int

from proxynca_jax.config import LossConfig
from proxynca_jax.losses import proxy_nca


class Loss(NamedTuple):
    """What a training run has to know of a loss."""

    # Embeddings, proxies and labels to the mean over the batch.
    of_batch: Callable[
        [Float[Array, "batch dim"], Float[Array, "classes dim"], Int[Array, " batch"], LossConfig], Float[Array, ""]
    ]
    # The proxies of step 0, from a source of random numbers, the number of classes and that of dimensions.
    initial_proxies: Callable[[np.random.Generator, int, int], Float32[np.ndarray, "classes dim"]]


LOSSES = {
    "proxy_nca": Loss(proxy_nca.reference_loss, proxy_nca.initial_proxies),  # as the PyTorch reference computes it
    "proxy_nca_paper": Loss(proxy_nca.paper_loss, proxy_nca.initial_proxies),  # equation 4 of the paper
}
