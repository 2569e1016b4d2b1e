"""Downloads an exported network from the Hugging Face Hub, into the cache of `huggingface_hub`."""

import os
import pathlib
import re

from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import path as expanded
from proxynca_jax.version import __version__
from proxynca_jax.weights import hub_folder

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)  # owner/name
HOW_TO_INSTALL = "pip install 'proxynca_jax[hub]'"


def find(
    name: str | os.PathLike[str], *, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """Finds an exported network: a folder here or, if there is none of this name, a repository on the Hub.

    Args:
        name: of the folder, or `owner/name` of the repository.
        revision: of the repository: a branch, tag or commit. None: its main branch.
        cache_dir: the folder to download to. None: that of `huggingface_hub`, which `HF_HOME` moves.

    Returns:
        A folder for `hub_folder.read`.

    Raises:
        UserError: if there is neither, or the download fails.
    """
    path = expanded(os.fspath(name))
    if not os.path.lexists(path):
        if REPOSITORY.fullmatch(os.fspath(name)) is None:
            raise UserError(
                f"there is no folder {name}, and this is no repository's name on the Hub, which is owner/name. "
                "Check the spelling."
            )
        return _download(os.fspath(name), revision, cache_dir)
    if not hub_folder.is_hub_folder(path):
        raise UserError(
            f"{path} is no exported network: it has no {hub_folder.WEIGHTS}. `Embedder.load` reads the folder of a run "
            "and weights files; `proxynca export RUN --format hub -o FOLDER` exports a run."
        )
    if revision is not None:
        raise UserError(
            f"revision is {revision!r}, and {path} is a folder here, which has none. Leave revision out, or start "
            "Python in another folder to download the repository of this name."
        )
    return path.absolute()  # or the name of a package would be the package


def _download(name: str, revision: str | None, cache_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            f"there is no folder {name}. To download a repository of this name, install huggingface_hub: "
            f"{HOW_TO_INSTALL}"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            allow_patterns=[hub_folder.CONFIG, hub_folder.WEIGHTS, hub_folder.CARD],
            library_name=hub_folder.LIBRARY,
            library_version=__version__,
        )
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the repository {name} has no revision {revision!r}. Name a branch, tag or commit.") from error
    except errors.RepositoryNotFoundError as error:  # includes those that need permission
        raise UserError(
            f"there is no folder {name}, and the Hub has no such repository, or you may not read it. Check the "
            "spelling; for a private or gated repository log in with `hf auth login`."
        ) from error
    except Exception as error:  # the errors of the connection have no common class; each version has its own
        raise UserError(
            f"there is no folder {name}, and the repository of this name cannot be downloaded: {_first_line(error)} "
            "Check the connection and try again. Without one, download it elsewhere with "
            f"`hf download {name} --local-dir FOLDER` and give that folder's path."
        ) from error
    if not hub_folder.is_hub_folder(pathlib.Path(folder)):
        raise UserError(
            f"the repository {name} has no {hub_folder.WEIGHTS}, so it is no exported network of {hub_folder.LIBRARY}. "
            "Check the spelling."
        )
    return pathlib.Path(folder)


def _first_line(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return f"{text}."
