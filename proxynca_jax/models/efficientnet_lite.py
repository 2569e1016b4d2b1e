"""EfficientNet-Lite 0, 1 and 2: EfficientNet (Tan and Le, arXiv 1905.11946) for small devices, without
squeeze-and-excitation and with ReLU6.

    stem        3×3/2
    blocks      1×1 expand → k×k depthwise → 1×1 project, plus the input if the shapes agree
    head        1×1
    global average: 1280 features

Every convolution is followed by BatchNorm, and by ReLU6 except after `project`. No convolution has a bias. Padding is
TensorFlow's `SAME`, which depends on the size of the activations, so any image size works. Images are NHWC.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from proxynca_jax.models.activation import IDENTITY, RELU6, Activation
from proxynca_jax.models.backbone import Backbone, Preprocessing
from proxynca_jax.models.batch_norm import BatchNorm, batch_norm_act, fold_batch_norms
from proxynca_jax.models.convolution import Conv, activates_at_once, convolve, read_fingerprint, same_padding
from proxynca_jax.models.depthwise import DepthwiseConv, depthwise_convolve
from proxynca_jax.onednn import operations

STEM, FEATURES = 32, 1280  # channels, the same in each size of the network
EPSILON = 1e-3  # BatchNorm's
SMALLEST = 32  # pixels: the network halves an image five times


class Stage(NamedTuple):
    """Blocks of equal width. `width` and `repeats` are those of EfficientNet-B0."""

    width: int  # output channels
    repeats: int
    kernel: int  # side of the depthwise kernels
    stride: int  # of the first block
    expansion: int  # channels inside of a block per input channel


STAGES = (
    Stage(16, 1, 3, 1, 1),
    Stage(24, 2, 3, 2, 6),
    Stage(40, 2, 5, 2, 6),
    Stage(80, 3, 3, 2, 6),
    Stage(112, 3, 5, 1, 6),
    Stage(192, 4, 5, 2, 6),
    Stage(320, 1, 3, 1, 6),
)


class Block(NamedTuple):
    """An inverted residual block (MBConv)."""

    inputs: int  # channels
    expanded: int  # channels of the depthwise convolution; as many as `inputs`: there is no expansion
    outputs: int  # channels
    kernel: int  # side, of the depthwise convolution
    stride: int  # of the depthwise convolution


def blocks(width: float, depth: float) -> list[Block]:
    """Returns the blocks of a size of the network.

    Args:
        width: factor of the channels.
        depth: factor of the repeats, except of the first and the last stage, which Lite does not scale.
    """
    found, inputs = [], STEM
    for stage in STAGES:
        outputs = _round_channels(width * stage.width)
        scaled = stage not in (STAGES[0], STAGES[-1])
        for index in range(math.ceil(depth * stage.repeats) if scaled else stage.repeats):
            stride = 1 if index else stage.stride
            found.append(Block(inputs, stage.expansion * inputs, outputs, stage.kernel, stride))
            inputs = outputs
    return found


def _round_channels(channels: float) -> int:
    """The nearest multiple of 8, or the next one if that is more than a tenth too few."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


class EfficientNetLite(nnx.Module):
    """The network up to its global average pool. Layers are called `stem`, `block3_expand`, ..., `head`.

    The BatchNorm after a layer is called `<name>_bn`.
    """

    def __init__(
        self,
        width: float,
        depth: float,
        *,
        batch_norm_momentum: float,
        rng: np.random.Generator | None,
        precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    ):
        """Args:
        width: as for `blocks`.
        depth: as for `blocks`.
        batch_norm_momentum: share of the old running statistics kept at each step, 0 to 1.
        rng: source of the initial weights (He normal); None starts from zeros.
        precision: of the convolutions and their gradients.
        """
        self.precision, self.blocks = precision, tuple(blocks(width, depth))

        def add(name: str, convolution: Conv | DepthwiseConv, outputs: int) -> None:
            setattr(self, name, convolution)
            setattr(self, f"{name}_bn", BatchNorm(outputs, momentum=batch_norm_momentum, epsilon=EPSILON))

        def pointwise(name: str, inputs: int, outputs: int) -> None:
            add(name, Conv(inputs, outputs, 1, stride=1, rng=rng, bias=False), outputs)

        add("stem", Conv(3, STEM, 3, stride=2, rng=rng, bias=False), STEM)
        for index, block in enumerate(self.blocks):
            name = f"block{index}"
            if block.expanded != block.inputs:
                pointwise(f"{name}_expand", block.inputs, block.expanded)
            depthwise = DepthwiseConv(block.expanded, block.kernel, stride=block.stride, rng=rng)
            add(f"{name}_depthwise", depthwise, block.expanded)
            pointwise(f"{name}_project", block.expanded, block.outputs)
        pointwise("head", self.blocks[-1].outputs, FEATURES)

    def __call__(self, x: Float[Array, "batch size size 3"], *, train: bool) -> Float[Array, "batch 1280"]:
        """Maps normalised images to features.

        Args:
            x: normalised images.
            train: normalise by the batch's statistics and update the running ones.
        """
        *_, (_, features) = self.stages(x, train=train)
        return features

    def stages(
        self, x: Float[Array, "batch size size 3"], *, train: bool
    ) -> Iterator[tuple[str, Float[Array, "batch ..."]]]:
        """Yields the name and the output of every stage: the stem, each block, the head and the features.

        Args:
            x: normalised images.
            train: as for `__call__`.
        """
        yield "stem", (x := self._unit("stem", x, train=train))
        for index, block in enumerate(self.blocks):
            yield f"block{index}", (x := self._block(f"block{index}", block, x, train=train))
        yield "head", (x := self._unit("head", x, train=train))
        yield "global_pool", jnp.mean(x, (1, 2), jnp.float32)

    def _block(self, name: str, block: Block, x: Array, *, train: bool) -> Array:
        layers = ("expand", "depthwise", "project")[block.expanded == block.inputs :]
        *before, last = [f"{name}_{layer}" for layer in layers]
        is_residual = block.stride == 1 and block.inputs == block.outputs

        def layer_by_layer(x: Array) -> Array:
            y = x
            for name in before:
                y = self._unit(name, y, train=train)
            return self._unit(last, y, train=train, addend=x if is_residual else None)

        if self._is_folded(last) and activates_at_once() and fills_caches(block, *x.shape[1:3]):
            image_by_image = functools.partial(self._image_by_image, [*before, last], adds_images=is_residual)
            return jax.lax.platform_dependent(x, cpu=image_by_image, default=layer_by_layer)
        return layer_by_layer(x)

    def _image_by_image(self, names: Sequence[str], x: Array, *, adds_images: bool) -> Array:
        """`_unit` for one layer after the other, by oneDNN."""
        weights, windows, size = [], [], x.shape[1:3]
        for name in names:
            layer = getattr(self, name)
            depthwise = isinstance(layer, DepthwiseConv)
            kernel = layer.kernel[...].astype(x.dtype)
            padding = same_padding(size, kernel.shape[0 if depthwise else 1], layer.stride)
            weights.append((kernel, layer.bias[...], read_fingerprint(layer)))
            windows.append(operations.Window(layer.stride, padding, _activation(name), depthwise))
            size = [-(-pixels // layer.stride) for pixels in size]
        return operations.convolutions_image_by_image(x, weights, windows, adds_images)

    def _unit(self, name: str, x: Array, *, train: bool, addend: Array | None = None) -> Array:
        """The convolution `name`, its BatchNorm and its activation, plus the addend of a `project` layer."""
        convolution, activation = getattr(self, name), _activation(name)
        kernel, stride = convolution.kernel[...].astype(x.dtype), convolution.stride
        folded = self._is_folded(name)
        after: dict[str, Any] = {}
        if folded:
            after = {
                "bias": convolution.bias[...],
                "activation": activation,
                "fingerprint": read_fingerprint(convolution),
            }
        if isinstance(convolution, DepthwiseConv):
            y = depthwise_convolve(x, kernel, stride, self.precision, **after)
        else:
            padding = same_padding(x.shape[1:3], kernel.shape[1], stride)
            y = convolve(x, kernel, stride, self.precision, padding, addend=addend if folded else None, **after)
        if folded:
            return y
        y = batch_norm_act(y, None, [getattr(self, f"{name}_bn")], activation, train=train)
        return y if addend is None else y + addend

    def _is_folded(self, name: str) -> bool:
        return not hasattr(self, f"{name}_bn")

    def fold(self) -> None:
        """Moves BatchNorm's running statistics into the convolutions."""
        fold_batch_norms(self)


def _activation(name: str) -> Activation:
    """Of a layer."""
    return IDENTITY if name.endswith("_project") else RELU6


def fills_caches(block: Block, height: int, width: int) -> bool:
    """Whether the widest activations of an image are more numbers than the kernels that every image needs.

    Then a CPU is faster image by image: activations stay in the cache. Otherwise kernels would be read too often.

    Args:
        block: of the network.
        height: of its input, pixels.
        width: of its input, pixels.
    """
    return height * width >= block.inputs + block.outputs


def forward_flops(width: float, depth: float, image_size: int) -> int:
    """FLOP of the convolutions for one image, whatever algorithm computes them.

    Args:
        width: as for `blocks`.
        depth: as for `blocks`.
        image_size: pixels.
    """
    side = -(-image_size // 2)
    products = side**2 * 3**2 * 3 * STEM
    for block in blocks(width, depth):
        expansion = side**2 * block.inputs * block.expanded if block.expanded != block.inputs else 0
        side = -(-side // block.stride)
        products += expansion + side**2 * block.expanded * (block.kernel**2 + block.outputs)
    return 2 * (products + side**2 * blocks(width, depth)[-1].outputs * FEATURES)


def _backbone(size: int, width: float, depth: float, image_size: int) -> Backbone:
    return Backbone(
        title=f"EfficientNet-Lite{size}",
        build=functools.partial(EfficientNetLite, width, depth),
        features=FEATURES,
        preprocessing=Preprocessing(
            channel_order="RGB",
            scale=1.0,
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            image_size=image_size,
            resize_size=image_size + 32,
        ),
        fits=lambda size: size >= SMALLEST,
        size_rule=f"the size must be at least {SMALLEST}",
        forward_flops=functools.partial(forward_flops, width, depth),
    )


EFFICIENTNET_LITE0 = _backbone(0, 1.0, 1.0, 224)
EFFICIENTNET_LITE1 = _backbone(1, 1.0, 1.1, 240)
EFFICIENTNET_LITE2 = _backbone(2, 1.1, 1.2, 260)
