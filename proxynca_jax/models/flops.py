"""Model FLOP: the arithmetic of the network by its table of layers, however it is computed.

A multiplication and an addition are two. Convolutions and the embedding layer count. BatchNorm, ReLU, pools, loss and
optimiser do not: they move memory rather than compute.
"""

from proxynca_jax.models.bn_inception import BLOCKS, FEATURES

TRAINING = 3  # passes' worth: forward, and backward to the weights and to the layer's input


def forward_flops(image_size: int, embedding_dim: int) -> int:
    """FLOP of embedding one image.

    Args:
        image_size: pixels, one on which the network closes.
        embedding_dim: D.
    """
    side = (image_size + 1) // 2
    products = side**2 * 7 * 7 * 3 * 64
    side //= 2
    products += side**2 * (64 * 64 + 9 * 64 * 192)
    side //= 2
    for inputs, (one, three_reduce, three, double_reduce, double_1, double_2, projection) in BLOCKS.values():
        products += side**2 * inputs * (one + three_reduce + double_reduce + projection)
        products += side**2 * 9 * double_reduce * double_1
        side = side if one else side // 2
        products += side**2 * 9 * (three_reduce * three + double_1 * double_2)
    return 2 * (products + FEATURES * embedding_dim)
