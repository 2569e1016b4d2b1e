"""Rows of an index, made without a network."""

import numpy as np
import pyarrow as pa

from proxynca_jax.vector_index.engine import schema

ABOUT = {"weights": "first", "dimensions": 4, "preprocessing": {"image_size": 64}}


def unit(count, dim=4, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def table(paths, vectors, labels=None, size=1):
    count = len(paths)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    values = [paths, labels or [""] * count, [size] * count, range(count), [f"{n:032x}" for n in range(count)], column]
    return pa.table([pa.array(list(v)) if v is not column else v for v in values], schema=schema(vectors.shape[1]))
