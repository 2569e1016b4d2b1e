"""The networks that turn pixels into features. `model.backbone` chooses one of `BACKBONES`."""

from proxynca_jax.models.backbone import Backbone
from proxynca_jax.models.bn_inception import BN_INCEPTION
from proxynca_jax.models.efficientnet_lite import EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2

BACKBONES: dict[str, Backbone] = {
    "bn_inception": BN_INCEPTION,
    "efficientnet_lite0": EFFICIENTNET_LITE0,
    "efficientnet_lite1": EFFICIENTNET_LITE1,
    "efficientnet_lite2": EFFICIENTNET_LITE2,
}
