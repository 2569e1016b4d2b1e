"""Compiled programs on disk, so that only the first run of a program waits for the compiler."""

import os
import pathlib

import jax

# Before it, JAX 0.9 and 0.10 print an error for every program that they load from the disk for a CPU
# (https://github.com/jax-ml/jax/issues/38445).
SILENT_SINCE = (0, 10, 2)


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in `$XDG_CACHE_HOME/proxynca_jax`, by default below ~/.cache, and load it again.

    JAX finds a program by all that it was compiled from and for, versions, options and the processor's features
    included, so a folder may serve several machines. The user's own choice, by JAX_COMPILATION_CACHE_DIR, stays.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.__version_info__ < SILENT_SINCE:
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "proxynca_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # without a place to write to, every run compiles
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Beside the two large programs, which take seconds, a run compiles some fifty small ones: a second in all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
