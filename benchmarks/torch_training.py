"""The reference's loss and optimiser in PyTorch."""

import torch
from torch.nn import functional

from proxynca_jax.config import LossConfig, OptimConfig


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
    network: torch.nn.Module, proxies: torch.Tensor, config: OptimConfig, *, fused: bool | None = None
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
