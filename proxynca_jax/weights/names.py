"""What the layers of a network are called in PyTorch's state dicts and in this project."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.network import abstract_network
from proxynca_jax.weights.converted_file import flatten

OHWI_FROM_OIHW = (0, 2, 3, 1)
HWIO_FROM_OIHW = (2, 3, 1, 0)  # of depthwise kernels, whose I is 1
IO_FROM_OI = (1, 0)


@dataclasses.dataclass(frozen=True)
class Rule:
    """`torch_key` becomes `path`, with its axes permuted by `axes`. `*` stands for any layer."""

    torch_key: str
    path: str  # arrays that only PyTorch uses are kept under `torch/`
    axes: tuple[int, ...] | None = None


def norm_rules(torch_layer: str, layer: str) -> tuple[Rule, ...]:
    """The rules of a BatchNorm layer, or of all that a `*` in both names stands for."""
    return (
        Rule(f"{torch_layer}.weight", f"params/backbone/{layer}/scale"),
        Rule(f"{torch_layer}.bias", f"params/backbone/{layer}/bias"),
        Rule(f"{torch_layer}.running_mean", f"batch_stats/backbone/{layer}/mean"),
        Rule(f"{torch_layer}.running_var", f"batch_stats/backbone/{layer}/var"),
        Rule(f"{torch_layer}.num_batches_tracked", f"torch/{layer}/num_batches_tracked"),
    )


def head_rules(classifier: str) -> tuple[Rule, ...]:
    """The rules of the linear layers on the features: the classifier of ImageNet, and the embedding layer."""
    return (
        Rule(f"{classifier}.weight", f"torch/{classifier}/weight"),
        Rule(f"{classifier}.bias", f"torch/{classifier}/bias"),
        Rule("embedding_layer.weight", "params/embedding_layer/kernel", IO_FROM_OI),
        Rule("embedding_layer.bias", "params/embedding_layer/bias"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """A row of `NAMES`."""

    rules: tuple[Rule, ...]  # the first one that matches counts, in both directions
    classifier: str  # the linear layer of ImageNet's 1000 classes; a trained network has `embedding_layer` instead
    published_blob_id: str  # git's name for the content of the published weights file

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

    def heads(self, state: Mapping[str, Shaped[np.ndarray, "..."]]) -> dict[str, int]:
        """Returns the widths of the linear layers on the features that a state dict has, by name."""
        widths = {}
        for head in (self.classifier, "embedding_layer"):
            if found := [len(np.atleast_1d(value)) for key, value in state.items() if key.startswith(f"{head}.")]:
                widths[head] = 1000 if head == self.classifier else max(found)
        return widths

    def expected(
        self, state: Mapping[str, Shaped[np.ndarray, "..."]], backbone: str
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Returns placeholders with the keys, shapes and dtypes of the network's state dict.

        Args:
            state: a state dict. The network has its heads and its batch counters.
            backbone: the key of this row.
        """
        _, (params, batch_stats) = abstract_network(ModelConfig(backbone=backbone))
        leaves = flatten({"params": {"backbone": params["backbone"]}, "batch_stats": batch_stats})
        expected = dict(self.to_torch(path, _placeholder(leaf.shape, leaf.dtype)) for path, leaf in leaves.items())
        for head, width in self.heads(state).items():
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
