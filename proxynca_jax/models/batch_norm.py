"""BatchNorm followed by an activation: the definition, and a form that reads its input fewer times. Images are NHWC.

`plain_batch_norm_act` is the definition. `batch_norm_act` returns the same, with the bias of the convolution before
it, for several layers at once, and with a gradient written by hand.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from proxynca_jax.models.activation import RELU, Activation, clamp, passed
from proxynca_jax.models.convolution import Conv, by_turns, make_fingerprint, on_device
from proxynca_jax.models.depthwise import DepthwiseConv
from proxynca_jax.onednn import operations
from proxynca_jax.onednn.way import uses_onednn

EPSILON = 1e-5  # PyTorch's default


class BatchNorm(nnx.Module):
    """The parameters and the running statistics of a batch normalisation, which `batch_norm_act` applies.

    The batch is normalised by its biased variance; the running variance averages the unbiased one, as in PyTorch.
    `flax.nnx.BatchNorm` uses the biased variance for both.
    """

    def __init__(self, features: int, *, momentum: float, epsilon: float = EPSILON):
        """Args:
        features: channels.
        momentum: share of the old running statistics kept at each step, 0 to 1. PyTorch's is 1 minus this.
        epsilon: added to the variance.
        """
        ones, zeros = np.ones(features, np.float32), np.zeros(features, np.float32)
        self.scale, self.bias = nnx.Param(on_device(ones)), nnx.Param(on_device(zeros))
        self.mean, self.var = nnx.BatchStat(on_device(zeros)), nnx.BatchStat(on_device(ones))
        self.momentum, self.epsilon = momentum, epsilon

    def update(self, mean: Float[Array, " channels"], var: Float[Array, " channels"]) -> None:
        """Averages a batch's mean and unbiased variance into the running statistics."""
        # `self.mean[...] =` would ask for shardings, which takes a fifth of the time of tracing a step.
        self.mean.set_value(self.momentum * self.mean[...] + (1 - self.momentum) * mean)
        self.var.set_value(self.momentum * self.var[...] + (1 - self.momentum) * var)


def plain_batch_norm_act(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    mean: Float[Array, " channels"],
    var: Float[Array, " channels"],
    activation: Activation = RELU,
    epsilon: float = EPSILON,
) -> Float[Array, "batch height width channels"]:
    """clamp(scale · (x − mean) / √(var + ε) + bias).

    Args:
        x: activations.
        scale: γ of the paper (arXiv 1502.03167).
        bias: β of the paper.
        mean: of each channel; in training that of the batch, in inference the running one.
        var: the variance, likewise; that of the batch is the biased one.
        activation: the limits of the clamp.
        epsilon: ε.
    """
    scale, bias, mean, var = (values[None, None, None] for values in (scale, bias, mean, var))
    return clamp(scale * (x - mean) / jnp.sqrt(var + epsilon) + bias, activation)


def batch_norm_act(
    x: Float[Array, "batch height width channels"],
    shift: Float[Array, " channels"] | None,
    norms: Sequence[BatchNorm],
    activation: Activation = RELU,
    *,
    train: bool,
) -> Float[Array, "batch height width channels"]:
    """Applies BatchNorm and an activation to `x + shift`.

    Args:
        x: a convolution without its bias; float32 or bfloat16, as is the result. Statistics are float32.
        shift: the bias of the convolution. In training the mean of the batch cancels it, so it only enters the running
            mean. None if it has none.
        norms: the layers, whose channels are concatenated in `x`. They have one epsilon.
        activation: applied last.
        train: normalise by the batch's statistics, and update the running ones.
    """
    scale, bias, running_mean, var = (
        jnp.concatenate([getattr(norm, leaf)[...] for norm in norms]) for leaf in ("scale", "bias", "mean", "var")
    )
    epsilon = norms[0].epsilon
    shift = jnp.zeros_like(bias) if shift is None else shift
    if not train:
        factor = scale * jax.lax.rsqrt(var + epsilon)
        offset = bias + (shift - running_mean) * factor
        return clamp(_affine(x, factor, offset), activation).astype(x.dtype)
    y, mean, var = normalise_batch(activation, epsilon, x, shift, scale, bias, running_mean)
    count = x.size // x.shape[-1]
    ends = np.cumsum([norm.mean.shape[0] for norm in norms])[:-1]
    statistics = (jnp.split(values, ends) for values in (mean + shift, var * (count / max(count - 1, 1))))
    for norm, *own in zip(norms, *statistics, strict=True):
        norm.update(*own)
    return y


def fold_batch_norms(network: nnx.Module) -> None:
    """Folds each BatchNorm of a network, called `<name>_bn`, into the convolution `<name>`, and removes it."""
    for name in [name for name in vars(network) if name.endswith("_bn")]:
        fold_batch_norm(getattr(network, name.removesuffix("_bn")), getattr(network, name))
        delattr(network, name)


def fold_batch_norm(convolution: Conv | DepthwiseConv, norm: BatchNorm) -> None:
    """Changes a convolution so that in inference it computes what it and `norm` after it compute together."""
    factor = norm.scale[...] * jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    old = 0 if convolution.bias is None else convolution.bias[...]
    convolution.bias = nnx.Param(norm.bias[...] + (old - norm.mean[...]) * factor)
    convolution.multiply_outputs(factor)
    convolution.fingerprint = make_fingerprint(convolution.kernel[...])


def _normalise_batch(
    activation: Activation, epsilon: float, x: Array, shift: Array, scale: Array, bias: Array, guess: Array
) -> tuple[Array, Array, Array]:
    """`plain_batch_norm_act` with the batch's own statistics.

    The gradient is written by hand, because differentiation needs more passes over memory. Forward, one pass over `x`
    computes both statistics and one normalises. Backward, one pass over `x` and the gradient computes both sums and one
    applies them. The only large residual is `x`.

    Args:
        activation: applied last.
        epsilon: added to the variance.
        x: float32 or bfloat16.
        shift: per channel; no gradient.
        scale: per channel.
        bias: per channel.
        guess: near the mean of `x + shift`, per channel; no gradient. The variance is computed from squared distances
            to it. This takes no second pass, as the mean would, and large values do not cancel, as around 0.

    Returns:
        The activations, and the mean and the biased variance of `x`, which have no gradient.
    """
    return _normalise_forward(activation, epsilon, x, shift, scale, bias, guess)[0]


normalise_batch = jax.custom_vjp(_normalise_batch, nondiff_argnums=(0, 1))


def _normalise_forward(
    activation: Activation, epsilon: float, x: Array, shift: Array, scale: Array, bias: Array, guess: Array
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    off, squared = (sums / (x.size // x.shape[-1]) for sums in _sums_of_distances(x, shift, guess))
    var = jnp.maximum(squared - jnp.square(off), 0)
    mean, inverse = guess - shift + off, jax.lax.rsqrt(var + epsilon)
    factor = scale * inverse
    offset = bias - mean * factor
    y = clamp(_affine(x, factor, offset), activation).astype(x.dtype)
    return (y, mean, var), (x, mean, inverse, factor, offset)


def _normalise_backward(
    activation: Activation, epsilon: float, residuals: tuple[Array, ...], gradients: tuple[Array, ...]
) -> tuple[Array | None, ...]:
    x, mean, inverse, factor, offset = residuals
    gradient = _passed_gradient(x, gradients[0], factor, offset, activation)
    of_bias, of_distances = _sums_of_gradients(x, gradients[0], mean, factor, offset, activation)
    of_scale = of_distances * inverse
    count = x.size // x.shape[-1]
    slope = of_scale * inverse / count
    distances = x.astype(jnp.float32) - mean[None, None, None]
    centred = gradient - (of_bias / count)[None, None, None] - distances * slope[None, None, None]
    return (centred * factor[None, None, None]).astype(x.dtype), None, of_scale, of_bias, None


normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def _sums_of_distances(x: Array, shift: Array, guess: Array) -> Sequence[Array]:
    """Sums of `x + shift - guess` and of its squares over images and pixels."""

    def plain(x: Array, shift: Array, guess: Array) -> Sequence[Array]:
        # Two operations on `x`: for the difference of shift and guess a GPU would launch another kernel.
        distances = x.astype(jnp.float32) + shift[None, None, None] - guess[None, None, None]
        return _sums(distances, jnp.square(distances))

    def by_onednn(x: Array, shift: Array, guess: Array) -> Sequence[Array]:
        return list(operations.sums_of_distances(x, guess - shift))

    return jax.lax.platform_dependent(x, shift, guess, cpu=by_onednn if _by_onednn(x) else plain, default=plain)


def _sums_of_gradients(
    x: Array, gradient: Array, mean: Array, factor: Array, offset: Array, activation: Activation
) -> Sequence[Array]:
    """Sums over images and pixels of what `_passed_gradient` returns, and of its products with `x - mean`."""

    def plain(x: Array, gradient: Array, mean: Array, factor: Array, offset: Array) -> Sequence[Array]:
        passed_on = _passed_gradient(x, gradient, factor, offset, activation)
        return _sums(passed_on, passed_on * (x.astype(jnp.float32) - mean[None, None, None]))

    def by_onednn(x: Array, gradient: Array, mean: Array, factor: Array, offset: Array) -> Sequence[Array]:
        return list(operations.sums_of_gradients(x, gradient, mean, factor, offset, activation))

    arrays = x, gradient, mean, factor, offset
    return jax.lax.platform_dependent(*arrays, cpu=by_onednn if _by_onednn(x) else plain, default=plain)


def _passed_gradient(x: Array, gradient: Array, factor: Array, offset: Array, activation: Activation) -> Array:
    """The gradient where the activation lets it pass, float32."""
    return jnp.where(passed(_affine(x, factor, offset), activation), gradient.astype(jnp.float32), 0)


def _by_onednn(x: Array) -> bool:
    return uses_onednn() and x.dtype == jnp.float32


def _sums(first: Array, second: Array) -> list[Array]:
    """Sums of two arrays over images and pixels."""
    return jax.lax.platform_dependent(first, second, cpu=_sums_on_cpu, default=_sums_on_gpu)


def _sums_on_cpu(*arrays: Array) -> list[Array]:
    """Sums over the images of a device first: XLA computes these sums of many channels at a time.

    The barrier keeps XLA from merging them with the sums over pixels, which would then be as slow as one reduction.
    """
    of_images = _reduce_together([by_turns(values) for values in arrays], (0,))
    return [jnp.sum(sums, (0, 1, 2, 3)) for sums in jax.lax.optimization_barrier(of_images)]


def _sums_on_gpu(*arrays: Array) -> list[Array]:
    return _reduce_together(arrays, (0, 1, 2))


def _reduce_together(arrays: Sequence[Array], axes: Sequence[int]) -> list[Array]:
    """Sums of two arrays in one reduction, which is one pass over what they are computed from."""
    zeros = jnp.float32(0), jnp.float32(0)
    return list(jax.lax.reduce(tuple(arrays), zeros, lambda x, y: (x[0] + y[0], x[1] + y[1]), axes))


def _affine(x: Array, factor: Array, offset: Array) -> Array:
    return x * factor[None, None, None] + offset[None, None, None]
