"""The PyTorch network that weights files are written for, built from the Flax network's table to verify against it."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, UInt8
from torch import nn
from torch.nn import functional

from proxynca_jax.models.bn_inception import BLOCKS, FEATURES, MAX_POOLED
from proxynca_jax.models.layers import BATCH_NORM_EPSILON
from proxynca_jax.models.network import BN_INCEPTION

Stage = tuple[str, Float[torch.Tensor, "batch ..."]]
HEADS = ("last_linear", "embedding_layer")


class TorchBNInception(nn.Module):
    """BN-Inception whose `state_dict` has the reference's keys. Images are NCHW inside."""

    def __init__(self, heads: Mapping[str, int]):
        """Args:
        heads: width of each linear layer on top of the features, by its name, one or more of `HEADS`.
        """
        super().__init__()

        def add(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
            self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2))
            # PyTorch's momentum is the share of the new statistics.
            self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs, BATCH_NORM_EPSILON, momentum=0.9))

        add("conv1_7x7_s2", 3, 64, 7, stride=2)
        add("conv2_3x3_reduce", 64, 64, 1)
        add("conv2_3x3", 64, 192, 3)
        for block, (inputs, widths) in BLOCKS.items():
            one, three_reduce, three, double_reduce, double_1, double_2, projection = widths
            stride = 1 if one else 2
            if one:
                add(f"{block}_1x1", inputs, one, 1)
                add(f"{block}_pool_proj", inputs, projection, 1)
            add(f"{block}_3x3_reduce", inputs, three_reduce, 1)
            add(f"{block}_3x3", three_reduce, three, 3, stride)
            add(f"{block}_double_3x3_reduce", inputs, double_reduce, 1)
            add(f"{block}_double_3x3_1", double_reduce, double_1, 3)
            add(f"{block}_double_3x3_2", double_1, double_2, 3, stride)
        for name, width in heads.items():
            self.add_module(name, nn.Linear(FEATURES, width))

    def _unit(self, x: torch.Tensor, *names: str) -> torch.Tensor:
        for name in names:
            x = functional.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)), inplace=True)
        return x

    def _block(self, block: str, x: torch.Tensor) -> torch.Tensor:
        three = self._unit(x, f"{block}_3x3_reduce", f"{block}_3x3")
        double = self._unit(x, f"{block}_double_3x3_reduce", f"{block}_double_3x3_1", f"{block}_double_3x3_2")
        if not BLOCKS[block][1][0]:
            return torch.cat([three, double, functional.max_pool2d(x, 3, 2, ceil_mode=True)], 1)
        pool = functional.max_pool2d if block == MAX_POOLED else functional.avg_pool2d
        return torch.cat(
            [self._unit(x, f"{block}_1x1"), three, double, self._unit(pool(x, 3, 1, 1), f"{block}_pool_proj")], 1
        )

    def stages(self, images: UInt8[torch.Tensor, "batch size size 3"]) -> Iterator[Stage]:
        """Yields every stage's name, as the Flax network calls it, and output, then the embedding if there is one.

        Args:
            images: RGB bytes.
        """
        weight = next(self.parameters())
        x = (images.flip(-1).to(weight.dtype) - weight.new_tensor(BN_INCEPTION.mean)).permute(0, 3, 1, 2)
        yield "conv1_relu_7x7", (x := self._unit(x, "conv1_7x7_s2"))
        yield "pool1_3x3_s2", (x := functional.max_pool2d(x, 3, 2, ceil_mode=True))
        yield "conv2_relu_3x3_reduce", (x := self._unit(x, "conv2_3x3_reduce"))
        yield "conv2_relu_3x3", (x := self._unit(x, "conv2_3x3"))
        yield "pool2_3x3_s2", (x := functional.max_pool2d(x, 3, 2, ceil_mode=True))
        for block in BLOCKS:
            yield block, (x := self._block(block, x))
        yield "global_pool", (x := x.mean((2, 3)))
        if hasattr(self, "embedding_layer"):
            yield "embedding", functional.normalize(self.get_submodule("embedding_layer")(x))

    def forward(self, images: UInt8[torch.Tensor, "batch size size 3"]) -> Float[torch.Tensor, "batch dim"]:
        """The last stage's output."""
        *_, (_, last) = self.stages(images)
        return last


def from_state_dict(state: Mapping[str, torch.Tensor]) -> TorchBNInception:
    """The network with the heads that `state` has, loaded with `strict=True`."""
    network = TorchBNInception({head: len(state[f"{head}.bias"]) for head in HEADS if f"{head}.bias" in state})
    network.load_state_dict(state, strict=True)
    return network
