"""The PyTorch network that BN-Inception's weights are written for."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, UInt8
from torch import nn
from torch.nn import functional

from proxynca_jax.models import bn_inception
from proxynca_jax.models.batch_norm import EPSILON
from proxynca_jax.models.bn_inception import BLOCKS, FEATURES, layers

Stage = tuple[str, Float[torch.Tensor, "batch ..."]]


class TorchBNInception(nn.Module):
    """BN-Inception whose `state_dict` has the reference's keys. Activations are NCHW."""

    def __init__(self, heads: Mapping[str, int]):
        """Args:
        heads: widths of the linear layers on the features, by name: `last_linear`, `embedding_layer`, both or none.
        """
        super().__init__()
        for layer in layers():
            conv = nn.Conv2d(layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.kernel // 2)
            self.add_module(layer.name, conv)
            # PyTorch's momentum is the share of the new statistics.
            self.add_module(f"{layer.name}_bn", nn.BatchNorm2d(layer.outputs, EPSILON, momentum=0.9))
        for name, width in heads.items():
            self.add_module(name, nn.Linear(FEATURES, width))

    def _unit(self, x: torch.Tensor, *names: str) -> torch.Tensor:
        for name in names:
            x = functional.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)), inplace=True)
        return x

    def _block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        block = BLOCKS[name]
        three = self._unit(x, f"{name}_3x3_reduce", f"{name}_3x3")
        double = self._unit(x, f"{name}_double_3x3_reduce", f"{name}_double_3x3_1", f"{name}_double_3x3_2")
        if not block.one:
            return torch.cat([three, double, functional.max_pool2d(x, 3, 2, ceil_mode=True)], 1)
        pool = functional.max_pool2d if block.pool == "max" else functional.avg_pool2d
        pooled = self._unit(pool(x, 3, 1, 1), f"{name}_pool_proj")
        return torch.cat([self._unit(x, f"{name}_1x1"), three, double, pooled], 1)

    def stages(self, images: UInt8[torch.Tensor, "batch size size 3"]) -> Iterator[Stage]:
        """Yields the name and the output of every stage, named as in `BNInception`, then the embedding if there is one.

        Args:
            images: RGB bytes.
        """
        weight = next(self.parameters())
        mean = weight.new_tensor(bn_inception.BN_INCEPTION.preprocessing.mean)
        x = (images.flip(-1).to(weight.dtype) - mean).permute(0, 3, 1, 2)
        yield "conv1_relu_7x7", (x := self._unit(x, "conv1_7x7_s2"))
        yield "pool1_3x3_s2", (x := functional.max_pool2d(x, 3, 2, ceil_mode=True))
        yield "conv2_relu_3x3_reduce", (x := self._unit(x, "conv2_3x3_reduce"))
        yield "conv2_relu_3x3", (x := self._unit(x, "conv2_3x3"))
        yield "pool2_3x3_s2", (x := functional.max_pool2d(x, 3, 2, ceil_mode=True))
        for name in BLOCKS:
            yield name, (x := self._block(name, x))
        yield "global_pool", (x := x.mean((2, 3)))
        if hasattr(self, "embedding_layer"):
            yield "embedding", functional.normalize(self.get_submodule("embedding_layer")(x))

    def forward(self, images: UInt8[torch.Tensor, "batch size size 3"]) -> Float[torch.Tensor, "batch dim"]:
        """Returns the output of the last stage.

        Args:
            images: RGB bytes.
        """
        *_, (_, last) = self.stages(images)
        return last


def from_state_dict(state: Mapping[str, torch.Tensor]) -> TorchBNInception:
    """Builds the network with the heads that `state` has, and loads `state` with `strict=True`."""
    heads = ("last_linear", "embedding_layer")
    network = TorchBNInception({head: len(state[f"{head}.bias"]) for head in heads if f"{head}.bias" in state})
    network.load_state_dict(state, strict=True)
    return network
