"""What converting has to know of a network: a table of names, and the checks that it covers a file completely."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import abstract_network
from proxynca_jax.weights import flatten, mismatches

OHWI_FROM_OIHW = (0, 2, 3, 1)
IO_FROM_OI = (1, 0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """`torch_key` becomes `path`, with its axes permuted by `axes`. `*` stands for any layer."""

    torch_key: str
    path: str  # arrays that only PyTorch uses are kept under `torch/`
    axes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converter:
    """A row of `CONVERTERS`."""

    rules: tuple[Rule, ...]  # the first one that matches counts, in both directions
    # Linear layers on the features: a state dict has one or more of them, and their width; None is any width.
    heads: Mapping[str, int | None]
    # A state dict to the PyTorch network, an nn.Module. Its method `stages(images)` takes RGB bytes (NHWC) and yields
    # the name and the output of each stage, named as the backbone's stages, and then "embedding" if it has that layer.
    twin: Callable[..., Any]
    published_blob_id: str | None  # git's name for the content of the published weights file, if it is known

    def to_flax(self, key: str, value: Shaped[np.ndarray, "..."]) -> tuple[str, Shaped[np.ndarray, "..."]]:
        """Converts one PyTorch tensor.

        Args:
            key: of the state dict.
            value: in PyTorch's layout.

        Returns:
            The path of the leaf, and its value in this project's layout.

        Raises:
            UserError: if no rule knows the key.
        """
        for rule in self.rules:
            if path := _rename(key, rule.torch_key, rule.path):
                return path, value.transpose(rule.axes) if rule.axes else value
        raise UserError(f"{key!r} is not a key of the network's state dict.")

    def to_torch(self, path: str, value: Shaped[np.ndarray, "..."]) -> tuple[str, Shaped[np.ndarray, "..."]]:
        """Converts one leaf of the network: the inverse of `to_flax`.

        Args:
            path: of the leaf, such as `params/backbone/conv1_7x7_s2/kernel`.
            value: in this project's layout.

        Returns:
            The key of the state dict, and the value in PyTorch's layout.

        Raises:
            UserError: if no rule knows the path.
        """
        for rule in self.rules:
            if key := _rename(path, rule.path, rule.torch_key):
                return key, value.transpose(np.argsort(rule.axes)) if rule.axes else value
        raise UserError(f"{path!r} is not a leaf of the network.")

    def check(self, state: Mapping[str, Shaped[np.ndarray, "..."]], backbone: str, source: pathlib.Path) -> None:
        """Accepts the backbone with one or more of `heads`, and nothing else.

        Args:
            state: a PyTorch state dict.
            backbone: a key of `BACKBONES`.
            source: where `state` comes from, for the message.

        Raises:
            UserError: listing every missing and unknown key, wrong shape, wrong dtype and tensor that is not finite.
        """
        faults = mismatches(state, self._expected(state, backbone))
        broken = [key for key, value in state.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
        if broken:
            faults.append(f"not finite ({len(broken)}): {', '.join(broken)}")
        if faults:
            raise UserError("\n  ".join([f"{source} is not a state dict of {BACKBONES[backbone].title}:", *faults]))

    def _expected(
        self, state: Mapping[str, Shaped[np.ndarray, "..."]], backbone: str
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Placeholders with the keys, shapes and dtypes of a network that has the heads and counters of `state`."""
        _, (params, batch_stats) = abstract_network(ModelConfig(backbone=backbone))
        leaves = flatten({"params": {"backbone": params["backbone"]}, "batch_stats": batch_stats})
        expected = dict(self.to_torch(path, _placeholder(leaf.shape, leaf.dtype)) for path, leaf in leaves.items())

        heads = {head for head in self.heads for key in state if key.startswith(f"{head}.")}
        for head in heads or {next(iter(self.heads))}:
            widths = [len(np.atleast_1d(value)) for key, value in state.items() if key.startswith(f"{head}.")]
            width = self.heads[head] or max(widths)
            expected[f"{head}.weight"] = _placeholder((width, BACKBONES[backbone].features), np.float32)
            expected[f"{head}.bias"] = _placeholder((width,), np.float32)

        # Files older than PyTorch 0.4.1 have no counters.
        counters = {key.replace("running_mean", "num_batches_tracked") for key in expected if "running_mean" in key}
        return expected | {key: _placeholder((), np.int64) for key in counters & state.keys()}


def _rename(name: str, pattern: str, target: str) -> str | None:
    match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\w+)"), name)
    return match and target.replace("*", match[1] if match.groups() else "")


def _placeholder(shape: tuple[int, ...], dtype: np.dtype | type) -> Shaped[np.ndarray, "..."]:
    """An array of zeros that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
