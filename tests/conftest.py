"""Strict numerics for every test: jaxtyping with beartype on, rank promotion an error."""

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook(["proxynca_jax", "convert"], "beartype.beartype")


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory: pytest.TempPathFactory):
    """Keeps compiled programs for the session, so that each run of the same training compiles in a second."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    yield
    jax.config.update("jax_compilation_cache_dir", None)
