"""PyTorch state-dict keys to paths in the network's plain dicts and back, as a table, and the check that all are there.

Both networks name their layers alike, so a key's last word decides nearly everything. What PyTorch has and the Flax
network has not goes under `torch/`: kept for the way back, unused in training.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Shaped

from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError
from proxynca_jax.models.bn_inception import FEATURES
from proxynca_jax.steps import init_network
from proxynca_jax.weights import flatten, mismatches

OHWI_FROM_OIHW = (0, 2, 3, 1)
IO_FROM_OI = (1, 0)
IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Rule:
    """`torch_key` becomes `path`, `*` being any layer, with its axes permuted by `axes`."""

    torch_key: str
    path: str
    axes: tuple[int, ...] | None = None


# The first rule that matches counts, in both directions.
RULES = (
    Rule("*_bn.weight", "params/backbone/*_bn/scale"),
    Rule("*_bn.bias", "params/backbone/*_bn/bias"),
    Rule("*_bn.running_mean", "batch_stats/backbone/*_bn/mean"),
    Rule("*_bn.running_var", "batch_stats/backbone/*_bn/var"),
    Rule("*_bn.num_batches_tracked", "torch/*_bn/num_batches_tracked"),
    Rule("last_linear.weight", "torch/last_linear/weight"),
    Rule("last_linear.bias", "torch/last_linear/bias"),
    Rule("embedding_layer.weight", "params/embedding_layer/kernel", IO_FROM_OI),
    Rule("embedding_layer.bias", "params/embedding_layer/bias"),
    Rule("*.weight", "params/backbone/*/kernel", OHWI_FROM_OIHW),
    Rule("*.bias", "params/backbone/*/bias"),
)


def _rename(name: str, pattern: str, target: str) -> str | None:
    match = re.fullmatch(re.escape(pattern).replace(r"\*", r"(\w+)"), name)
    return match and target.replace("*", match[1] if match.groups() else "")


def to_flax(key: str, value: Shaped[np.ndarray, "..."]) -> tuple[str, Shaped[np.ndarray, "..."]]:
    """Moves one PyTorch tensor to its path, in the network's layout.

    Args:
        key: of the state dict.
        value: in PyTorch's layout.

    Raises:
        UserError: for a key that no rule knows.
    """
    for rule in RULES:
        if path := _rename(key, rule.torch_key, rule.path):
            return path, value.transpose(rule.axes) if rule.axes else value
    raise UserError(f"{key!r} is not a key of BN-Inception's state dict.")


def to_torch(path: str, value: Shaped[np.ndarray, "..."]) -> tuple[str, Shaped[np.ndarray, "..."]]:
    """Moves one leaf of the network to its state-dict key, in PyTorch's layout: the inverse of `to_flax`.

    Args:
        path: of the leaf, such as `params/backbone/conv1_7x7_s2/kernel`.
        value: in the network's layout.

    Raises:
        UserError: for a path that no rule knows.
    """
    for rule in RULES:
        if key := _rename(path, rule.path, rule.torch_key):
            return key, value.transpose(np.argsort(rule.axes)) if rule.axes else value
    raise UserError(f"{path!r} is not a leaf of the network.")


def check_state_dict(state: Mapping[str, Shaped[np.ndarray, "..."]], source: pathlib.Path) -> None:
    """Accepts BN-Inception with ImageNet's classifier, an embedding layer or both, and nothing else.

    Args:
        state: a PyTorch state dict.
        source: where it comes from, for the message.

    Raises:
        UserError: listing every missing and unknown key, wrong shape, wrong dtype and tensor that is not finite.
    """
    faults = mismatches(state, _expected_like(state))
    broken = [key for key, value in state.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]
    if broken:
        faults.append(f"not finite ({len(broken)}): {', '.join(broken)}")
    if faults:
        raise UserError("\n  ".join([f"{source} is not a state dict of BN-Inception:", *faults]))


def _expected_like(state: Mapping[str, Shaped[np.ndarray, "..."]]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Placeholders of the keys, shapes and dtypes that a network with the heads and counters of `state` has."""
    network, batch_stats = jax.eval_shape(lambda: init_network(ModelConfig(), np.random.default_rng(0))[1:])
    leaves = flatten({"params": {"backbone": network["backbone"]}, "batch_stats": batch_stats})
    expected = dict(to_torch(path, _placeholder(leaf.shape, leaf.dtype)) for path, leaf in leaves.items())

    widths = [len(np.atleast_1d(value)) for key, value in state.items() if key.startswith("embedding_layer.")]
    rows = {"last_linear": IMAGENET_CLASSES, "embedding_layer": max(widths, default=0)}
    heads = {head for head in rows for key in state if key.startswith(f"{head}.")}
    for head in heads or {"last_linear"}:
        expected[f"{head}.weight"] = _placeholder((rows[head], FEATURES), np.float32)
        expected[f"{head}.bias"] = _placeholder((rows[head],), np.float32)

    # Files older than PyTorch 0.4.1 have no counters.
    counters = {key.replace("running_mean", "num_batches_tracked") for key in expected if "running_mean" in key}
    return expected | {key: _placeholder((), np.int64) for key in counters & state.keys()}


def _placeholder(shape: tuple[int, ...], dtype: np.dtype | type) -> Shaped[np.ndarray, "..."]:
    """An array of zeros that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)
