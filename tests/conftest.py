"""Strict numerics for every test: jaxtyping with beartype on, rank promotion an error."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook(["proxynca_jax", "convert"], "beartype.beartype")
