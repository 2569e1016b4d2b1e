"""Networks in PyTorch, and the reference's loss and optimiser."""

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from convert.bn_inception import TorchBNInception
from convert.efficientnet_lite import TorchEfficientNetLite
from proxynca_jax.config import LossConfig, ModelConfig, OptimConfig


def efficientnet_lite0(heads: Mapping[str, int]) -> TorchEfficientNetLite:
    """Builds EfficientNet-Lite0 with random kernels from the distribution of ours.

    PyTorch's own kernels are too small for a network without biases if BatchNorm uses its initial statistics: the
    activations shrink to 1e-8 the gradients to 1e-10. A few of Adam's second moments are then denormal numbers. CPUs
    compute with those slowly, and of the two libraries only XLA replaces them by 0. `mode="fan_out"` is no better,
    because PyTorch does not divide its count by the groups of a depthwise convolution.

    Args:
        heads: as for `TorchEfficientNetLite`.
    """
    network = TorchEfficientNetLite(1.0, 1.0, heads)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    return network


NETWORKS: dict[str, Callable[[Mapping[str, int]], nn.Module]] = {  # by model.backbone
    "bn_inception": TorchBNInception,
    "efficientnet_lite0": efficientnet_lite0,
}


def make_network(config: ModelConfig, *, train: bool) -> nn.Module:
    """Builds a network with random weights.

    Args:
        config: its `backbone` is a key of NETWORKS. `embedding_dim` and `fixed_batch_norm` are used too.
        train: whether it is in training mode. With `fixed_batch_norm`, BatchNorm stays in inference mode.
    """
    network = NETWORKS[config.backbone]({"embedding_layer": config.embedding_dim}).train(train)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and config.fixed_batch_norm:
            module.eval()
    return network


def proxy_nca(
    embeddings: torch.Tensor, proxies: torch.Tensor, labels: torch.Tensor, config: LossConfig
) -> torch.Tensor:
    """Computes the mean loss of a batch. The formula is that of `proxynca_jax.losses.proxy_nca.proxy_nca`."""
    x = config.embedding_scale * functional.normalize(embeddings)
    p = config.proxy_scale * functional.normalize(proxies)
    others = config.label_smoothing / (len(p) - 1)
    target = torch.full((len(x), len(p)), others, dtype=x.dtype, device=x.device)
    target[torch.arange(len(x)), labels.long()] = 1 - config.label_smoothing
    return functional.cross_entropy(-torch.cdist(x, p).square(), target)


def make_adam(
    network: nn.Module, proxies: torch.Tensor, config: OptimConfig, *, fused: bool | None = None
) -> torch.optim.Adam:
    """Returns Adam with one learning rate for the network and one for the proxies.

    Args:
        network: with float32 parameters on the proxies' device.
        proxies: of shape (C, D).
        config: learning rates, betas and epsilon.
        fused: True updates many parameters in one kernel. None is PyTorch's default, which takes several kernels.
    """
    groups = [
        {"params": network.parameters(), "lr": config.learning_rate},
        {"params": [proxies], "lr": config.proxy_learning_rate},
    ]
    return torch.optim.Adam(groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=fused)
