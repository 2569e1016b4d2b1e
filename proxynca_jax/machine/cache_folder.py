"""The user's folder for files that can be made again."""

import os
import pathlib


def cache_folder() -> pathlib.Path | None:
    """Returns `$XDG_CACHE_HOME/proxynca_jax`, by default `~/.cache/proxynca_jax`; None if the user has no home."""
    try:
        return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "proxynca_jax"
    except RuntimeError:  # from `home`
        return None
