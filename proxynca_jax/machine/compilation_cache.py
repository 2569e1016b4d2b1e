"""Turns on JAX's persistent compilation cache, so only the first run of a program waits for the compiler."""

import contextlib
import os
import re
import warnings

import jax

from proxynca_jax.machine.cache_folder import cache_folder

# Before this version, JAX 0.9 and 0.10 print an error for every CPU program that they load from disk
# (https://github.com/jax-ml/jax/issues/38445).
SILENT_SINCE = (0, 10, 2)


def keep_compiled_programs() -> None:
    """Makes JAX cache compiled programs in the user's cache folder, by default `~/.cache/proxynca_jax`.

    JAX's cache key includes versions, options and the processor's features, so several machines may share the folder.
    JAX_COMPILATION_CACHE_DIR, if the user has set it, takes precedence.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or jax.__version_info__ < SILENT_SINCE:
        return
    if (folder := cache_folder()) is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(f"every run compiles again: cannot make {folder}: {error.strerror}", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A run compiles two large programs, which take seconds each, and some fifty small ones, which take a second in all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def drop_broken_entries(warning: str) -> bool:
    """Deletes what is left of a program that JAX could not write, or not read back: JAX would never replace it.

    Args:
        warning: any warning's text.

    Returns:
        Whether it is JAX's warning of such a program.
    """
    found = re.match(r"Error (?:reading|writing) persistent compilation cache entry for '([^']+)'", warning)
    if found and (folder := cache_folder()):
        for entry in folder.glob(f"{found[1]}-*-cache"):  # and those of the same name, which compile again
            with contextlib.suppress(OSError):
                entry.unlink()
    return bool(found)
