"""Weights in files, PyTorch's and this project's own. `NAMES` has a row for each backbone that can be converted."""

from proxynca_jax.weights.bn_inception import BN_INCEPTION
from proxynca_jax.weights.efficientnet_lite import EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2
from proxynca_jax.weights.names import Names

NAMES: dict[str, Names] = {
    "bn_inception": BN_INCEPTION,
    "efficientnet_lite0": EFFICIENTNET_LITE0,
    "efficientnet_lite1": EFFICIENTNET_LITE1,
    "efficientnet_lite2": EFFICIENTNET_LITE2,
}
