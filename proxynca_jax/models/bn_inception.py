"""BN-Inception (Ioffe and Szegedy, arXiv 1502.03167), in the form of its Caffe port.

    stem            7×7/2 → max/2 → 1×1 → 3×3 → max/2
    3a 3b 3c        blocks of four branches, concatenated:
    4a 4b 4c 4d 4e      1×1  |  1×1 → 3×3  |  1×1 → 3×3 → 3×3  |  pool → 1×1
    5a 5b           3c and 4e halve the size. They have no first branch, and their fourth is the pool alone.
    global average

Every convolution has a bias and is followed by BatchNorm and ReLU. Layers are named as in the PyTorch state dict.
Images are NHWC.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from proxynca_jax.models.activation import IDENTITY, RELU, Activation, activate
from proxynca_jax.models.backbone import Backbone, Preprocessing
from proxynca_jax.models.batch_norm import BatchNorm, batch_norm_act, fold_batch_norms
from proxynca_jax.models.convolution import Conv, activates_at_once, convolve, read_fingerprint
from proxynca_jax.models.pooling import average_pool, max_pool

FEATURES = 1024


class Block(NamedTuple):
    """Channels of an Inception block."""

    inputs: int
    one: int  # 1×1; 0: there is no such branch, and the block halves the size
    three: tuple[int, int]  # 1×1 → 3×3
    double: tuple[int, int, int]  # 1×1 → 3×3 → 3×3
    pool: str  # "average" or "max"
    projection: int  # pool → 1×1; 0: the pool alone

    @property
    def stride(self) -> int:
        """Of the last convolution of each branch, and of the pool."""
        return 1 if self.one else 2


BLOCKS = {
    "inception_3a": Block(192, 64, (64, 64), (64, 96, 96), "average", 32),
    "inception_3b": Block(256, 64, (64, 96), (64, 96, 96), "average", 64),
    "inception_3c": Block(320, 0, (128, 160), (64, 96, 96), "max", 0),
    "inception_4a": Block(576, 224, (64, 96), (96, 128, 128), "average", 128),
    "inception_4b": Block(576, 192, (96, 128), (96, 128, 128), "average", 128),
    "inception_4c": Block(576, 160, (128, 160), (128, 160, 160), "average", 128),
    "inception_4d": Block(608, 96, (128, 192), (160, 192, 192), "average", 128),
    "inception_4e": Block(608, 0, (128, 192), (192, 256, 256), "max", 0),
    "inception_5a": Block(1056, 352, (192, 320), (160, 224, 224), "average", 128),
    "inception_5b": Block(1024, 352, (192, 320), (192, 224, 224), "max", 128),
}


class Layer(NamedTuple):
    """A convolution; the BatchNorm after it is called `<name>_bn`."""

    name: str
    inputs: int  # channels
    outputs: int  # channels
    kernel: int  # side, in pixels
    stride: int
    halvings: int  # of the image's side, up to and including this layer


def layers() -> Iterator[Layer]:
    """Yields all convolutions in order, which is also the order in which their initial weights are drawn."""
    yield Layer("conv1_7x7_s2", 3, 64, 7, 2, 1)
    yield Layer("conv2_3x3_reduce", 64, 64, 1, 1, 2)
    yield Layer("conv2_3x3", 64, 192, 3, 1, 2)
    halvings = 3
    for name, block in BLOCKS.items():
        before, halvings = halvings, halvings + block.stride - 1
        if block.one:
            yield Layer(f"{name}_1x1", block.inputs, block.one, 1, 1, before)
        yield Layer(f"{name}_3x3_reduce", block.inputs, block.three[0], 1, 1, before)
        yield Layer(f"{name}_3x3", *block.three, 3, block.stride, halvings)
        yield Layer(f"{name}_double_3x3_reduce", block.inputs, block.double[0], 1, 1, before)
        yield Layer(f"{name}_double_3x3_1", *block.double[:2], 3, 1, before)
        yield Layer(f"{name}_double_3x3_2", *block.double[1:], 3, block.stride, halvings)
        if block.projection:
            yield Layer(f"{name}_pool_proj", block.inputs, block.projection, 1, 1, before)


def forward_flops(image_size: int) -> int:
    """FLOP of the convolutions for one image, whatever algorithm computes them.

    Args:
        image_size: pixels; `is_valid_image_size(image_size)` must hold.
    """
    # The first halving rounds up, the others round down.
    sides = {layer.name: (image_size + 1) // 2 >> (layer.halvings - 1) for layer in layers()}
    return sum(2 * (sides[layer.name] * layer.kernel) ** 2 * layer.inputs * layer.outputs for layer in layers())


def is_valid_image_size(size: int) -> bool:
    """Whether the branches of 3c and 4e agree on their output size for square images of `size` pixels.

    Of an odd input, a strided convolution rounds the size up and a ceil-mode pool rounds it down.
    """
    third = (size + 1) // 2 // 4
    return third >= 4 and third % 4 == 0


class BNInception(nnx.Module):
    """The network up to its global average pool."""

    def __init__(
        self,
        *,
        batch_norm_momentum: float,
        rng: np.random.Generator | None,
        precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    ):
        """Args:
        batch_norm_momentum: share of the old running statistics kept at each training step, 0 to 1.
        rng: source of the initial weights (He normal; biases 0); None starts from zeros.
        precision: of the convolutions and their gradients.
        """
        self.precision = precision
        for layer in layers():
            conv = Conv(layer.inputs, layer.outputs, layer.kernel, stride=layer.stride, rng=rng)
            setattr(self, layer.name, conv)
            setattr(self, f"{layer.name}_bn", BatchNorm(layer.outputs, momentum=batch_norm_momentum))

    def __call__(self, x: Float[Array, "batch size size 3"], *, train: bool) -> Float[Array, "batch 1024"]:
        """Maps normalised images to features.

        Args:
            x: normalised images; `is_valid_image_size(size)` must hold.
            train: normalise by the batch's statistics and update the running ones.

        Raises:
            UserError: if the network does not accept images of this size.
        """
        BN_INCEPTION.check_image_size(x.shape[1])
        *_, (_, features) = self.stages(x, train=train)
        return features

    def stages(
        self, x: Float[Array, "batch size size 3"], *, train: bool
    ) -> Iterator[tuple[str, Float[Array, "batch ..."]]]:
        """Yields the name and the output of every stage: each layer of the stem, each block, and the features.

        Args:
            x: normalised images.
            train: as for `__call__`.
        """
        unit = functools.partial(self.unit, train=train)
        yield "conv1_relu_7x7", (x := unit("conv1_7x7_s2", x))
        yield "pool1_3x3_s2", (x := max_pool(x, stride=2))
        yield "conv2_relu_3x3_reduce", (x := unit("conv2_3x3_reduce", x))
        yield "conv2_relu_3x3", (x := unit("conv2_3x3", x))
        yield "pool2_3x3_s2", (x := max_pool(x, stride=2))
        for name in BLOCKS:
            yield name, (x := self.block(name, x, train=train))
        yield "global_pool", jnp.mean(x, (1, 2), jnp.float32)

    def plain_block(
        self, name: str, x: Float[Array, "batch rows columns channels"], *, train: bool
    ) -> Float[Array, "batch ..."]:
        """An Inception block as the paper draws it. `block` returns the same and runs faster.

        Args:
            name: a key of `BLOCKS`.
            x: output of the block before.
            train: as for `__call__`.
        """

        def branch(x: Array, *layers: str) -> Array:
            for layer in layers:
                x = self.unit(f"{name}_{layer}", x, train=train)
            return x

        block = BLOCKS[name]
        three = branch(x, "3x3_reduce", "3x3")
        double = branch(x, "double_3x3_reduce", "double_3x3_1", "double_3x3_2")
        pooled = average_pool(x) if block.pool == "average" else max_pool(x, stride=block.stride)
        if not block.one:
            return jnp.concatenate([three, double, pooled], -1)
        return jnp.concatenate([branch(x, "1x1"), three, double, branch(pooled, "pool_proj")], -1)

    def block(
        self, name: str, x: Float[Array, "batch rows columns channels"], *, train: bool
    ) -> Float[Array, "batch ..."]:
        """`plain_block` in fewer operations.

        The 1×1 convolutions that read the block's input are computed as one, with one BatchNorm. A projection comes
        before an average pool: the two commute, and the pool then has fewer channels.

        Args:
            name: as for `plain_block`.
            x: as for `plain_block`.
            train: as for `plain_block`.
        """
        unit = functools.partial(self.unit, train=train)
        block = BLOCKS[name]
        entries = [f"{name}_{branch}" for branch in ("1x1", "3x3_reduce", "double_3x3_reduce")[not block.one :]]
        projection = f"{name}_pool_proj"
        at_once = self._is_folded(entries[0]) and activates_at_once()
        if block.pool == "max" or at_once:
            *one, three, double = self._enter(entries, x, train=train)
            if block.pool == "average":
                last = self._normalise([projection], average_pool(self._convolve([projection], x)), train=train)
            else:
                last = unit(projection, max_pool(x, stride=1)) if block.projection else max_pool(x, stride=2)
        else:
            entered, projected = self._split([entries, [projection]], self._convolve([*entries, projection], x))
            entered = self._normalise(entries, entered, train=train)
            last = self._normalise([projection], average_pool(projected), train=train)
            *one, three, double = self._split([[entry] for entry in entries], entered)
        branches = [*one, unit(f"{name}_3x3", three)]
        branches.append(unit(f"{name}_double_3x3_2", unit(f"{name}_double_3x3_1", double)))
        return jnp.concatenate([*branches, last], -1)

    def unit(self, name: str, x: Float[Array, "batch rows columns inputs"], *, train: bool) -> Float[Array, "..."]:
        """The convolution `name`, its BatchNorm and ReLU.

        Args:
            name: of a `Layer`.
            x: its input.
            train: as for `__call__`.
        """
        if self._is_folded(name):
            return self._convolve([name], x, self._bias([name]), RELU)
        return self._normalise([name], self._convolve([name], x), train=train)

    def _enter(self, names: Sequence[str], x: Array, *, train: bool) -> list[Array]:
        """`unit` for convolutions that differ in their output channels only.

        They are computed as one, unless bias and ReLU are part of the convolution: then splitting the result would be
        the only other pass over it.
        """
        if self._is_folded(names[0]) and activates_at_once():
            return [self.unit(name, x, train=train) for name in names]
        return self._split([[name] for name in names], self._normalise(names, self._convolve(names, x), train=train))

    def _is_folded(self, name: str) -> bool:
        return not hasattr(self, f"{name}_bn")

    def _bias(self, names: Sequence[str]) -> Array:
        return jnp.concatenate([getattr(self, name).bias[...] for name in names])

    def _convolve(
        self, names: Sequence[str], x: Array, bias: Array | None = None, activation: Activation = IDENTITY
    ) -> Array:
        """Convolutions that differ in their output channels only, as one."""
        convs = [getattr(self, name) for name in names]
        kernel = jnp.concatenate([conv.kernel[...] for conv in convs]).astype(x.dtype)
        fingerprint = read_fingerprint(convs[0]) if len(convs) == 1 else None
        return convolve(x, kernel, convs[0].stride, self.precision, None, bias, activation, fingerprint=fingerprint)

    def _normalise(self, names: Sequence[str], x: Array, *, train: bool) -> Array:
        """Bias, BatchNorm and ReLU of the concatenated channels that `_convolve` returned for `names`."""
        shift = self._bias(names)
        if self._is_folded(names[0]):
            return activate(x + shift[None, None, None], RELU).astype(x.dtype)
        return batch_norm_act(x, shift, [getattr(self, f"{name}_bn") for name in names], train=train)

    def _split(self, groups: Sequence[Sequence[str]], x: Array) -> list[Array]:
        """Splits concatenated channels into those of each group of convolutions."""
        widths = [sum(getattr(self, name).bias.shape[0] for name in group) for group in groups]
        return jnp.split(x, np.cumsum(widths)[:-1], -1)

    def fold(self) -> None:
        """Moves BatchNorm's running statistics into the convolutions. The network cannot be trained afterwards."""
        fold_batch_norms(self)


BN_INCEPTION = Backbone(
    title="BN-Inception",
    build=BNInception,
    features=FEATURES,
    preprocessing=Preprocessing(
        channel_order="BGR",
        scale=1.0,
        mean=(104.0, 117.0, 128.0),
        std=(1.0, 1.0, 1.0),
        image_size=227,
        resize_size=256,
    ),
    fits=is_valid_image_size,
    size_rule="the inputs of blocks 3c and 4e must have even sides",
    forward_flops=forward_flops,
)
