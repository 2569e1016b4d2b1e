"""A run's states on disk, through Orbax: the latest one and the best one.

Each state is two items: `network` (parameters and batch statistics), all that evaluation and conversion need, and
`training` (proxies, optimiser, counters), which only continuing needs.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from proxynca_jax.errors import UserError
from proxynca_jax.steps import TrainState, Tree

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
        """Replaces the state of a kind; the old one goes when the new one is complete.

        A state of the same step stays as it is: a run that continues comes to the same state again.
        """
        manager = self._managers[kind]
        if manager.latest_step() == step:
            return
        items = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in _items(state).items()})
        manager.save(step, args=items, force=True)

    def latest_step(self, kind: str = "latest") -> int | None:
        """The step of the state of a kind; None before the first save."""
        return self._managers[kind].latest_step()

    def restore(self, state: TrainState) -> TrainState:
        """The latest state.

        Args:
            state: one of the same shapes; its values do not matter.

        Raises:
            UserError: if the saved state has other leaves or shapes.
        """
        restored = self._restore("latest", _items(state))
        network, training = restored["network"], restored["training"]
        proxies = training.pop("proxies")
        state = dataclasses.replace(state, params=state.params | {"proxies": proxies}, **training)
        return state.with_network(network["params"], network["batch_stats"])

    def restore_network(self, kind: str, network: Tree, batch_stats: Tree) -> tuple[Tree, Tree]:
        """The parameters and batch statistics of a kind, without what only training needs.

        Args:
            kind: one of `KINDS`.
            network: parameters of the same shapes; their values do not matter.
            batch_stats: batch statistics of the same shapes.

        Raises:
            UserError: if there is none, or it has other leaves or shapes.
        """
        restored = self._restore(kind, {"network": {"params": network, "batch_stats": batch_stats}})["network"]
        return restored["params"], restored["batch_stats"]

    def _restore(self, kind: str, items: dict[str, Tree]) -> Any:
        manager = self._managers[kind]
        step = manager.latest_step()
        if step is None:
            raise UserError(f"there is no {kind} checkpoint in {manager.directory}: the run has not saved one yet.")
        # Orbax restores into what it is given, so a leaf that is missing or of another shape is an error.
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, item) for name, item in items.items()}
        arguments = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
        try:
            return manager.restore(step, args=ocp.args.Composite(**arguments))
        except (ValueError, KeyError) as error:
            raise UserError(
                f"the {kind} checkpoint in {manager.directory} does not fit this configuration and data: {error}"
            ) from error


def _items(state: TrainState) -> dict[str, Tree]:
    return {
        "network": dict(zip(("params", "batch_stats"), state.network(), strict=True)),
        "training": {
            "step": state.step,
            "proxies": state.params["proxies"],
            "opt_state": state.opt_state,
            "loss_sum": state.loss_sum,
        },
    }
