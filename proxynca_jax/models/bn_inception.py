"""BN-Inception (Ioffe and Szegedy, arXiv 1502.03167), in the form of its Caffe port: the whole network.

Layers carry the names of the PyTorch state dict, so converting weights is a matter of renaming the leaves. Every
convolution has a bias and is followed by BatchNorm and ReLU. Images are NHWC.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from proxynca_jax.models.layers import (
    BatchNorm,
    Conv,
    average_pool,
    batch_norm_relu,
    convolve,
    fold_batch_norm,
    max_pool,
)

FEATURES = 1024

# One row a block: input channels, then output channels of [1x1, 3x3_reduce, 3x3, double_3x3_reduce, double_3x3_1,
# double_3x3_2, pool_proj]. A block without 1x1 and pool_proj (0) halves height and width.
BLOCKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "inception_3a": (192, (64, 64, 64, 64, 96, 96, 32)),
    "inception_3b": (256, (64, 64, 96, 64, 96, 96, 64)),
    "inception_3c": (320, (0, 128, 160, 64, 96, 96, 0)),
    "inception_4a": (576, (224, 64, 96, 96, 128, 128, 128)),
    "inception_4b": (576, (192, 96, 128, 96, 128, 128, 128)),
    "inception_4c": (576, (160, 128, 160, 128, 160, 160, 128)),
    "inception_4d": (608, (96, 128, 192, 160, 192, 192, 128)),
    "inception_4e": (608, (0, 128, 192, 192, 256, 256, 0)),
    "inception_5a": (1056, (352, 192, 320, 160, 224, 224, 128)),
    "inception_5b": (1024, (352, 192, 320, 192, 224, 224, 128)),
}
MAX_POOLED = "inception_5b"  # the one block of stride 1 whose pool takes the maximum


def is_valid_image_size(size: int) -> bool:
    """Whether the branches of blocks 3c and 4e agree on their output size for square images of `size` pixels.

    Their strided convolution rounds an odd size up and their ceil-mode pool rounds it down.
    """
    third = (size + 1) // 2 // 4
    return third >= 4 and third % 4 == 0


class BNInception(nnx.Module):
    """The network up to its global average pool. Attributes are named as the keys of the PyTorch state dict."""

    def __init__(
        self,
        *,
        batch_norm_momentum: float,
        rng: np.random.Generator,
        precision: jax.lax.Precision = jax.lax.Precision.HIGHEST,
    ):
        """Args:
        batch_norm_momentum: share of the old running statistics kept at each training step, 0 to 1.
        rng: source of the initial weights (He normal; biases 0).
        precision: of the convolutions and their gradients.
        """
        self.precision = precision

        def add(name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
            setattr(self, name, Conv(inputs, outputs, kernel, stride=stride, rng=rng))
            setattr(self, f"{name}_bn", BatchNorm(outputs, momentum=batch_norm_momentum))

        add("conv1_7x7_s2", 3, 64, 7, stride=2)
        add("conv2_3x3_reduce", 64, 64, 1)
        add("conv2_3x3", 64, 192, 3)
        for block, (
            inputs,
            (one, three_reduce, three, double_reduce, double_1, double_2, projection),
        ) in BLOCKS.items():
            stride = 1 if one else 2
            if one:
                add(f"{block}_1x1", inputs, one, 1)
            add(f"{block}_3x3_reduce", inputs, three_reduce, 1)
            add(f"{block}_3x3", three_reduce, three, 3, stride)
            add(f"{block}_double_3x3_reduce", inputs, double_reduce, 1)
            add(f"{block}_double_3x3_1", double_reduce, double_1, 3)
            add(f"{block}_double_3x3_2", double_1, double_2, 3, stride)
            if projection:
                add(f"{block}_pool_proj", inputs, projection, 1)

    def fold(self) -> None:
        """Leaves inference by the running statistics to the convolutions; training is not possible any more."""
        for norm in [name for name in vars(self) if name.endswith("_bn")]:
            fold_batch_norm(getattr(self, norm.removesuffix("_bn")), getattr(self, norm))
            delattr(self, norm)

    def stages(
        self, x: Float[Array, "batch size size 3"], *, train: bool
    ) -> Iterator[tuple[str, Float[Array, "batch ..."]]]:
        """Yields every stage's name and output in order, the stem's layers one by one, then block by block.

        Args:
            x: normalised images.
            train: normalise by the batch's statistics and update the running ones.
        """
        unit = functools.partial(self._unit, train=train)
        yield "conv1_relu_7x7", (x := unit("conv1_7x7_s2", x))
        yield "pool1_3x3_s2", (x := max_pool(x, stride=2))
        yield "conv2_relu_3x3_reduce", (x := unit("conv2_3x3_reduce", x))
        yield "conv2_relu_3x3", (x := unit("conv2_3x3", x))
        yield "pool2_3x3_s2", (x := max_pool(x, stride=2))
        for block, (_, (one, *_)) in BLOCKS.items():
            yield block, (x := self._block(block, bool(one), x, train=train))
        yield "global_pool", jnp.mean(x, (1, 2), jnp.float32)

    def _block(self, block: str, keeps_size: bool, x: Array, *, train: bool) -> Array:
        unit = functools.partial(self._unit, train=train)
        # The convolutions of 1x1 that share their input are one, with one BatchNorm.
        entries = [f"{block}_{branch}" for branch in ("1x1", "3x3_reduce", "double_3x3_reduce")[not keeps_size :]]
        projection = f"{block}_pool_proj"
        if not keeps_size:
            entered, pooled = self._convolve(entries, x), None
        elif block == MAX_POOLED:
            entered, pooled = self._convolve(entries, x), self._convolve([projection], max_pool(x, stride=1))
        else:
            # The projection of an average is the average of the projection, which has fewer channels.
            entered, projected = self._split([entries, [projection]], self._convolve([*entries, projection], x))
            pooled = average_pool(projected)
        entered = self._normalise(entries, entered, train=train)
        *one, three, double = self._split([[name] for name in entries], entered)
        branches = [*one, unit(f"{block}_3x3", three)]
        branches.append(unit(f"{block}_double_3x3_2", unit(f"{block}_double_3x3_1", double)))
        last = max_pool(x, stride=2) if pooled is None else self._normalise([projection], pooled, train=train)
        return jnp.concatenate([*branches, last], -1)

    def _unit(self, name: str, x: Array, *, train: bool) -> Array:
        return self._normalise([name], self._convolve([name], x), train=train)

    def _convolve(self, names: Sequence[str], x: Array) -> Array:
        """The convolutions `names`, which differ in their output channels only, as one, without the biases."""
        layers = [getattr(self, name) for name in names]
        kernel = jnp.concatenate([layer.kernel[...] for layer in layers])
        return convolve(x, kernel.astype(x.dtype), layers[0].stride, self.precision)

    def _normalise(self, names: Sequence[str], x: Array, *, train: bool) -> Array:
        """BatchNorm and ReLU of what `_convolve` gave for `names`."""
        shift = jnp.concatenate([getattr(self, name).bias[...] for name in names])
        if not hasattr(self, f"{names[0]}_bn"):
            return jnp.maximum(x + shift[None, None, None], 0).astype(x.dtype)
        return batch_norm_relu(x, shift, [getattr(self, f"{name}_bn") for name in names], train=train)

    def _split(self, groups: Sequence[Sequence[str]], x: Array) -> list[Array]:
        """The channels of each group of convolutions, of all that `x` holds."""
        widths = [sum(getattr(self, name).bias.shape[0] for name in group) for group in groups]
        return jnp.split(x, np.cumsum(widths)[:-1], -1)

    def __call__(self, x: Float[Array, "batch size size 3"], *, train: bool) -> Float[Array, "batch 1024"]:
        """Maps normalised images to features.

        Args:
            x: normalised images; `is_valid_image_size(size)` must hold.
            train: normalise by the batch's statistics and update the running ones.

        Raises:
            ValueError: for an image size on which the network does not close.
        """
        if not is_valid_image_size(x.shape[1]):
            raise ValueError(invalid_image_size(x.shape[1]))
        *_, (_, features) = self.stages(x, train=train)
        return features


def invalid_image_size(size: int) -> str:
    """The error message for an image size on which the network does not close."""
    below = max((s for s in range(size) if is_valid_image_size(s)), default=None)
    above = next(s for s in range(max(size, 0) + 1, max(size, 0) + 99) if is_valid_image_size(s))
    near = " or ".join(str(s) for s in (below, above) if s is not None)
    return (
        f"image size {size} does not fit BN-Inception: the inputs of blocks 3c and 4e must have even sides. "
        f"The nearest sizes that fit are {near}; the reference uses 227."
    )
