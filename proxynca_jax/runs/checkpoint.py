"""A run's states on disk, written by Orbax: the latest one and the best one.

A state has two items. `network` (parameters and batch statistics) is all that evaluation and conversion need.
`training` (proxies, optimiser, counters) is only needed to continue. The run's config.json names the backbone.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from proxynca_jax.errors import UserError
from proxynca_jax.models.network import Tree, Variables
from proxynca_jax.steps import TrainState

KINDS = ("latest", "best")


class Checkpoints:
    """One state of each kind, in `<run>/checkpoints/<kind>/<step>`. Use it as a context."""

    def __init__(self, run: pathlib.Path):
        self._managers = {
            kind: ocp.CheckpointManager(
                (run / "checkpoints" / kind).absolute(),  # Orbax takes absolute paths only
                options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False),
                item_names=("network", "training"),
            )
            for kind in KINDS
        }

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        for manager in self._managers.values():
            manager.close()

    def save(self, kind: str, step: int, state: TrainState) -> None:
        """Replaces the state of a kind. The old one is deleted when the new one is complete.

        A state of the same step is left as it is: a run that continues computes the same state again.
        """
        manager = self._managers[kind]
        if manager.latest_step() == step:
            return
        items = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in _items(state).items()})
        manager.save(step, args=items, force=True)

    def latest_step(self, kind: str = "latest") -> int | None:
        """Returns the step of the state of a kind, or None before the first save."""
        return self._managers[kind].latest_step()

    def restore(self, state: TrainState) -> TrainState:
        """Reads the latest state.

        Args:
            state: one of the same shapes; its values are not used.

        Raises:
            UserError: if there is none, or it has other leaves or shapes.
        """
        restored = self._restore("latest", _items(state))
        network, training = restored["network"], restored["training"]
        proxies = training.pop("proxies")
        state = dataclasses.replace(state, params=state.params | {"proxies": proxies}, **training)
        return state.with_network(Variables(**network))

    def restore_network(self, kind: str, expected: Variables) -> Variables:
        """Reads the network of a state, without what only training needs.

        Args:
            kind: one of `KINDS`.
            expected: arrays of the same shapes, or their shapes and shardings.

        Raises:
            UserError: if there is none, or it has other leaves or shapes.
        """
        return Variables(**self._restore(kind, {"network": expected._asdict()})["network"])

    def _restore(self, kind: str, items: dict[str, Tree]) -> Any:
        manager = self._managers[kind]
        step = manager.latest_step()
        if step is None:
            raise UserError(f"there is no {kind} checkpoint in {manager.directory}: the run has not saved one yet.")
        # Orbax compares with the tree that it is given: a leaf that is missing or of another shape is an error.
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, item) for name, item in items.items()}
        arguments = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
        try:
            return manager.restore(step, args=ocp.args.Composite(**arguments))
        except (ValueError, KeyError) as error:
            raise UserError(
                f"the {kind} checkpoint in {manager.directory} is of another network or other classes than this "
                f"configuration (model.backbone, model.embedding_dim) and data have, or of an earlier version, whose "
                f"runs can be evaluated but not continued. Give the run its own config.json back, or start a new run. "
                f"Orbax says: {error}"
            ) from error


def _items(state: TrainState) -> dict[str, Tree]:
    return {
        "network": state.network()._asdict(),
        "training": {
            "step": state.step,
            "proxies": state.params["proxies"],
            "opt_state": state.opt_state,
            "loss_sum": state.loss_sum,
        },
    }
