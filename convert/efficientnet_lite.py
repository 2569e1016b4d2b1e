"""EfficientNet-Lite in PyTorch, with the keys of the published weights."""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, UInt8
from torch import nn
from torch.nn import functional

from proxynca_jax.models.convolution import same_padding
from proxynca_jax.models.efficientnet_lite import FEATURES, STEM, Block, blocks

EPSILON = 1e-3  # written here again, so that a wrong one in our network is found

Stage = tuple[str, Float[torch.Tensor, "batch ..."]]


def _convolve(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """Pads as TensorFlow's `SAME` does for the size of `x`, then convolves."""
    (top, bottom), (left, right) = same_padding(x.shape[2:], conv.kernel_size[0], conv.stride[0])
    return conv(functional.pad(x, (left, right, top, bottom)))


class TorchBlock(nn.Module):
    """An inverted residual block."""

    def __init__(self, block: Block):
        """Args:
        block: its channels, kernel and stride.
        """
        super().__init__()
        self.residual = block.stride == 1 and block.inputs == block.outputs
        self.expands = block.expanded != block.inputs
        if self.expands:
            self._expand_conv = nn.Conv2d(block.inputs, block.expanded, 1, bias=False)
            self._bn0 = _norm(block.expanded)
        self._depthwise_conv = nn.Conv2d(
            block.expanded, block.expanded, block.kernel, block.stride, groups=block.expanded, bias=False
        )
        self._bn1 = _norm(block.expanded)
        self._project_conv = nn.Conv2d(block.expanded, block.outputs, 1, bias=False)
        self._bn2 = _norm(block.outputs)

    def forward(self, x: Float[torch.Tensor, "batch channels height width"]) -> Float[torch.Tensor, "batch ..."]:
        """Returns the block's output, NCHW."""
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(_convolve(y, self._depthwise_conv)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


def _norm(channels: int) -> nn.BatchNorm2d:
    # PyTorch's momentum is the share of the new statistics.
    return nn.BatchNorm2d(channels, EPSILON, momentum=0.9)


class TorchEfficientNetLite(nn.Module):
    """EfficientNet-Lite whose `state_dict` has the published keys. Activations are NCHW."""

    def __init__(self, width: float, depth: float, heads: Mapping[str, int]):
        """Args:
        width: as for `efficientnet_lite.blocks`.
        depth: as for `efficientnet_lite.blocks`.
        heads: widths of the linear layers on the features, by name: `_fc`, `embedding_layer`.
        """
        super().__init__()
        own = blocks(width, depth)
        self._conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = _norm(STEM)
        self._blocks = nn.ModuleList(TorchBlock(block) for block in own)
        self._conv_head = nn.Conv2d(own[-1].outputs, FEATURES, 1, bias=False)
        self._bn1 = _norm(FEATURES)
        for name, outputs in heads.items():
            self.add_module(name, nn.Linear(FEATURES, outputs))

    def stages(self, images: UInt8[torch.Tensor, "batch size size 3"]) -> Iterator[Stage]:
        """Yields the name and the output of every stage, named as in `EfficientNetLite`, then the embedding if any.

        Args:
            images: RGB bytes.
        """
        x = ((images.to(self._conv_stem.weight.dtype) - 127) / 128).permute(0, 3, 1, 2)
        yield "stem", (x := functional.relu6(self._bn0(_convolve(x, self._conv_stem))))
        for index, block in enumerate(self._blocks):
            yield f"block{index}", (x := block(x))
        yield "head", (x := functional.relu6(self._bn1(self._conv_head(x))))
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
