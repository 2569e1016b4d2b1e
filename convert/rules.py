"""PyTorch state-dict keys to Flax paths, as a table.

The Flax network names its layers as PyTorch does, so a key's last word decides everything.
"""

import dataclasses
import re

import numpy as np

HWIO_FROM_OIHW = (2, 3, 1, 0)
OIHW_FROM_HWIO = (3, 2, 0, 1)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the keys that match `torch_key` become a leaf called `leaf` in `collection`, and back."""

    torch_key: re.Pattern[str]
    collection: str  # "params" or "batch_stats"
    leaf: str
    torch_leaf: str
    to_flax: tuple[int, ...] | None = None  # permutation of the axes
    to_torch: tuple[int, ...] | None = None


RULES = (
    Rule(re.compile(r"(\w+_bn)\.weight"), "params", "scale", "weight"),
    Rule(re.compile(r"(\w+_bn)\.bias"), "params", "bias", "bias"),
    Rule(re.compile(r"(\w+_bn)\.running_mean"), "batch_stats", "mean", "running_mean"),
    Rule(re.compile(r"(\w+_bn)\.running_var"), "batch_stats", "var", "running_var"),
    Rule(re.compile(r"(embedding_layer|last_linear)\.weight"), "params", "kernel", "weight", (1, 0), (1, 0)),
    Rule(re.compile(r"(\w+)\.weight"), "params", "kernel", "weight", HWIO_FROM_OIHW, OIHW_FROM_HWIO),
    Rule(re.compile(r"(\w+)\.bias"), "params", "bias", "bias"),
)


def find_rule(torch_key: str) -> tuple[Rule, str] | None:
    """The first rule whose pattern is all of `torch_key`, and the layer it names; None for an unknown key."""
    for rule in RULES:
        if match := rule.torch_key.fullmatch(torch_key):
            return rule, match[1]
    return None


def to_flax(torch_key: str, value: np.ndarray) -> tuple[str, str, str, np.ndarray]:
    """One PyTorch tensor as (collection, layer, leaf, array in Flax's layout).

    Raises:
        KeyError: for a key that no rule knows.
    """
    found = find_rule(torch_key)
    if found is None:
        raise KeyError(torch_key)
    rule, layer = found
    return rule.collection, layer, rule.leaf, value.transpose(rule.to_flax) if rule.to_flax else value
