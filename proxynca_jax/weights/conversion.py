"""From a PyTorch state dict to this project's layout. A file that does not fit gets an error with the likely reason."""

import collections
import dataclasses
import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from proxynca_jax.errors import UserError, look_up
from proxynca_jax.models import BACKBONES
from proxynca_jax.weights import NAMES
from proxynca_jax.weights.converted_file import list_names, mismatches

TO_FLOAT32 = (np.float16, ml_dtypes.bfloat16, np.float64)  # dtypes that are converted
LIKELY = 0.5  # share of a network's tensors that must fit for a hint to name it

Tensors = Mapping[str, Shaped[np.ndarray, "..."]]


def to_flax(state: Tensors, backbone: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Renames and transposes the tensors of an accepted state dict."""
    return dict(NAMES[backbone].to_flax(key, value) for key, value in state.items())


def to_torch(leaves: Tensors, backbone: str) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Renames and transposes the leaves of a network to a PyTorch state dict: the inverse of `to_flax`.

    Args:
        leaves: by path.
        backbone: a key of `NAMES`.

    Raises:
        UserError: if the backbone has no names in PyTorch, or a leaf is unknown.
    """
    names = look_up(NAMES, backbone, "the backbone")
    return dict(names.to_torch(path, value) for path, value in leaves.items())


def accept(
    state: Tensors, backbone: str, source: str | os.PathLike[str]
) -> tuple[dict[str, Shaped[np.ndarray, "..."]], tuple[str, ...]]:
    """Accepts the backbone, with or without its heads, and nothing else.

    Args:
        state: a PyTorch state dict. float16, bfloat16 and float64 stand for float32.
        backbone: a key of `NAMES`.
        source: where `state` comes from, for the message.

    Returns:
        The state dict in float32, and what was converted or is absent, a line each.

    Raises:
        UserError: for missing and unknown keys, wrong shapes, wrong dtypes and tensors that are not finite. It says
            how many there are, the first ones, and which prefix or network would fit.
    """
    names = look_up(NAMES, backbone, "the backbone")
    expected = names.expected(state, backbone)
    with np.errstate(over="ignore"):  # becomes infinite, which is found below
        floats = {key: value.astype(np.float32) if value.dtype in TO_FLOAT32 else value for key, value in state.items()}
    faults = mismatches(floats, expected)
    known = {key: value for key, value in floats.items() if key in expected and value.dtype == np.float32}
    broken = [key for key, value in known.items() if not np.isfinite(value).all()]
    if broken:
        faults.append(list_names("not finite", broken))
    if faults:
        title = BACKBONES[backbone].title
        raise UserError("\n  ".join([f"{source} is not a state dict of {title}:", *faults, *_hints(state, backbone)]))
    counts = collections.Counter(str(value.dtype) for value in state.values() if value.dtype in TO_FLOAT32)
    notes = [f"converted {count} tensors from {dtype} to float32." for dtype, count in counts.items()]
    if not names.heads(state):
        notes.append(f"no {names.classifier} and no embedding_layer: the backbone alone, which is enough for training.")
    return floats, tuple(notes)


@dataclasses.dataclass(frozen=True, order=True)
class _Guess:
    """A way to read a state dict."""

    share: float  # of the network's tensors that it finds
    as_asked: bool  # whether it is the backbone that the user named
    backbone: str
    prefix: str


def _hints(state: Tensors, backbone: str) -> list[str]:
    """Guesses which network the tensors are of, and under which prefix."""
    best = max(guess for name in NAMES for guess in _guesses(state, name, backbone))
    hints = []
    if best.share >= LIKELY and best.prefix:
        hints.append(
            f"{best.share:.0%} of the network's tensors are there with {best.prefix!r} before their keys. "
            "Save them without it, and without the other tensors."
        )
    if best.share >= LIKELY and best.backbone != backbone:
        hints.append(f"they fit {BACKBONES[best.backbone].title} better: try --backbone {best.backbone}")
    return hints


def _guesses(state: Tensors, name: str, asked: str) -> list[_Guess]:
    """Guesses that the tensors are those of the network `name`, under each prefix that one of them suggests."""
    expected = NAMES[name].expected({}, name)
    example = next(iter(expected))
    prefixes = {"", *(key.removesuffix(example) for key in state if key.endswith(example))}

    def share(prefix: str) -> float:
        found = {key: state[prefix + key].shape for key in expected if prefix + key in state}
        return sum(shape == expected[key].shape for key, shape in found.items()) / len(expected)

    return [_Guess(share(prefix), name == asked, name, prefix) for prefix in prefixes]
