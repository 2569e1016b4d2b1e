"""`benchmarks.roofline`: which kind of operation the time of a step is counted as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import roofline
from proxynca_jax.models.convolution import convolve
from proxynca_jax.models.pooling import max_pool
from proxynca_jax.onednn.way import way, without_onednn


@pytest.mark.skipif(not way().onednn, reason="oneDNN is not here")
def test_handlers_of_onednn_count_as_what_they_compute():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.array(rng.standard_normal(shape, np.float32)) for shape in ((8, 56, 56, 64), (64, 3, 3, 64)))
    spent = profile(lambda x, kernel: jnp.sum(max_pool(convolve(x, kernel, 1), stride=2)), x, kernel)
    assert {("convolutions", "forward"), ("convolutions", "backward")} <= spent.keys()
    assert {("pools", "forward"), ("pools", "backward")} <= spent.keys()


def test_convolutions_of_xla_count_as_convolutions_or_products():
    x, kernel = jnp.ones((2, 28, 28, 8)), jnp.ones((8, 3, 3, 8))
    with without_onednn():
        spent = profile(lambda x, kernel: jnp.sum(jnp.square(convolve(x, kernel, 1))), x, kernel)
    assert {"convolutions", "matrix products"} & {kind for kind, _ in spent}


def profile(loss, *arrays):
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
    return roofline.profiled(program, lambda: program(*arrays))
