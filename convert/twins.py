"""The PyTorch networks that `verify` compares ours with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from convert import bn_inception
from convert.efficientnet_lite import TorchEfficientNetLite


def _efficientnet_lite(width: float, depth: float) -> Callable[..., TorchEfficientNetLite]:
    def from_state_dict(state: Mapping[str, torch.Tensor]) -> TorchEfficientNetLite:
        heads = {head: len(state[f"{head}.bias"]) for head in ("_fc", "embedding_layer") if f"{head}.bias" in state}
        network = TorchEfficientNetLite(width, depth, heads)
        network.load_state_dict(state, strict=True)
        return network

    return from_state_dict


# From a state dict to the PyTorch network, an nn.Module. The keys are those of `models.BACKBONES`. The network's method
# `stages(images)` takes RGB bytes (NHWC) and yields the name and the output of each stage, named as the backbone's
# stages, and then "embedding" if it has that layer.
TWINS: dict[str, Callable[..., Any]] = {
    "bn_inception": bn_inception.from_state_dict,
    "efficientnet_lite0": _efficientnet_lite(1.0, 1.0),
    "efficientnet_lite1": _efficientnet_lite(1.0, 1.1),
    "efficientnet_lite2": _efficientnet_lite(1.1, 1.2),
}
