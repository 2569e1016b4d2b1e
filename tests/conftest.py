"""Strict numerics for every test: jaxtyping with beartype on, rank promotion an error. And a tiny network."""

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook(["proxynca_jax", "convert"], "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def memory_of_images(tmp_path_factory):
    """Keeps what tests remember of their images out of the user's cache folder."""
    from proxynca_jax.data import inspection

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def tiny_backbone():
    """Lets tests choose `model.backbone = "tiny"`."""
    from tiny import TINY

    from proxynca_jax.models import BACKBONES

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield
