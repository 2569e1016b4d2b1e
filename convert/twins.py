"""The PyTorch networks that `verify` compares ours with."""

from collections.abc import Callable
from typing import Any

from convert import bn_inception

# From a state dict to the PyTorch network, an nn.Module. The keys are those of `models.BACKBONES`. The network's method
# `stages(images)` takes RGB bytes (NHWC) and yields the name and the output of each stage, named as the backbone's
# stages, and then "embedding" if it has that layer.
TWINS: dict[str, Callable[..., Any]] = {
    "bn_inception": bn_inception.from_state_dict,
}
