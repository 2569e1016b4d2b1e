"""The networks that turn pixels into features. `model.backbone` chooses one of `BACKBONES`."""

from proxynca_jax.models.backbone import Backbone
from proxynca_jax.models.bn_inception import BN_INCEPTION

BACKBONES: dict[str, Backbone] = {
    "bn_inception": BN_INCEPTION,
}
