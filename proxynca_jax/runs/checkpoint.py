"""A run's states on disk, written by Orbax: the latest one and the best one.

A state has three items. `network` (parameters and batch statistics) is all that evaluation and conversion need.
`training` (proxies, optimiser, counters) is only needed to continue. `digests` notices damage to the other two. The
run's config.json names the backbone.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import time
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from proxynca_jax.errors import UserError
from proxynca_jax.machine import processes
from proxynca_jax.models.network import Tree, Variables
from proxynca_jax.runs.digests import digests, named_leaves
from proxynca_jax.runs.orbax_messages import end_abandoned, quiet
from proxynca_jax.steps import TrainState

KINDS = ("latest", "best")
DIGESTS = "digests"
SHOWN_LEAVES = 3  # of those that are damaged
UNFINISHED = "*.orbax-checkpoint-tmp"  # what Orbax calls a state until it is complete


class DamagedError(UserError):
    """A state is on disk, and it is not what was written."""


class Checkpoints:
    """One state of each kind, in `<run>/checkpoints/<kind>/<step>`. A context: its end waits for all writes."""

    def __init__(self, run: pathlib.Path, *, writes: bool = True, every_minutes: float = 0.0):
        """Args:
        run: the run's folder.
        writes: whether states will be saved. If not, the folder may be read-only, and it stays as it is.
        every_minutes: of `save_if_due`; 0 means never.
        """
        reading = {"read_only": True, "create": False, "save_interval_steps": 0}
        options = {"max_to_keep": 1, "enable_async_checkpointing": True} if writes else reading
        self._every_seconds = 60 * every_minutes
        self._saved_at = time.monotonic()
        self._folder = (run / "checkpoints").absolute()  # Orbax takes absolute paths only
        self._quiet = contextlib.ExitStack()
        with quiet(), self._saving():
            self._managers = {
                kind: ocp.CheckpointManager(
                    self._folder / kind,
                    options=ocp.CheckpointManagerOptions(**options),
                    item_names=("network", "training", DIGESTS),
                )
                for kind in KINDS
            }
        if writes:
            self._remove_unfinished()

    def __enter__(self) -> "Checkpoints":
        self._quiet.enter_context(quiet())
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        with self._quiet:
            try:
                with self._saving(), contextlib.ExitStack() as managers:
                    for manager in self._managers.values():
                        managers.callback(manager.close)
            except UserError:
                if error is None:  # otherwise the first error is the one to tell
                    raise

    def save(self, kind: str, step: int, state: TrainState) -> None:
        """Replaces the state of a kind, in the background. The old one is deleted when the new one is complete.

        A state of the same step is left as it is: a run that continues computes the same state again.

        Raises:
            UserError: if this state or the one before cannot be written. Those on disk are kept.
        """
        self.finish()  # one at a time: whatever moment a run dies at, the best state is there before the latest one
        self._saved_at = time.monotonic()
        manager = self._managers[kind]
        if manager.latest_step() == step:
            return
        # Copies, because the next training step overwrites the state's memory while this one is written.
        items = _copied(_items(state))
        saved: dict[str, Any] = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        written = digests(items)
        saved[DIGESTS] = ocp.args.JsonSave({"arrays": written, "check": _check(written)})
        with self._saving():
            manager.save(step, args=ocp.args.Composite(**saved), force=True)

    def finish(self) -> None:
        """Waits until all states are written.

        Raises:
            UserError: as for `save`.
        """
        with self._saving():
            for manager in self._managers.values():
                manager.wait_until_finished()

    def save_if_due(self, step: int, state: TrainState) -> None:
        """Saves the latest state if the last save was `every_minutes` ago. All processes must call it equally often."""
        due = 0 < self._every_seconds < time.monotonic() - self._saved_at
        if processes.decision_of_first(due):
            self.save("latest", step, state)

    def latest_step(self, kind: str = "latest") -> int | None:
        """Returns the step of the state of a kind, or None before the first save."""
        self.finish()
        return self._managers[kind].latest_step()

    def restore(self, state: TrainState, kind: str = "latest") -> TrainState:
        """Reads a state.

        Args:
            state: one of the same shapes; its values are not used.
            kind: one of `KINDS`.

        Raises:
            DamagedError: if it is not what was written.
            UserError: if there is none, or it has other leaves or shapes.
        """
        restored = self._restore(kind, _items(state))
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
            DamagedError: if it is not what was written.
            UserError: if there is none, or it has other leaves or shapes.
        """
        return Variables(**self._restore(kind, {"network": expected._asdict()})["network"])

    def restore_newest(self, state: TrainState) -> tuple[TrainState, int, list[str]]:
        """Reads the newest state that is whole, and puts those aside that are not.

        Args:
            state: one of the same shapes, which is returned if nothing was saved yet.

        Returns:
            The state, its step, and a sentence for each damaged state.

        Raises:
            UserError: if all states are damaged, or one has other leaves or shapes.
        """
        saved = {kind: step for kind in KINDS if (step := self.latest_step(kind)) is not None}
        damages: list[str] = []
        order = sorted(saved, key=lambda kind: saved[kind], reverse=True)
        for kind in order:
            try:
                state = self.restore(state, kind)
            except DamagedError as error:
                damages.append(str(error))
                continue
            for damaged in order[: len(damages)]:
                self._put_aside(damaged)
            return state, saved[kind], damages
        if damages:
            raise UserError("\n".join([*damages, "No state of this run is whole. Start a new run."]))
        return state, 0, []

    def _restore(self, kind: str, items: dict[str, Tree]) -> Any:
        manager = self._managers[kind]
        step = manager.latest_step()
        if step is None:
            others = [other for other in KINDS if self.latest_step(other) is not None]
            hint = f" There is one of the kind {others[0]!r} (--checkpoint {others[0]})." if others else ""
            raise UserError(f"{self._folder / kind} has no state: none was saved yet, or it was deleted.{hint}")
        place = self._folder / kind / str(step)
        written = self._written_digests(kind, step)
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, item) for name, item in items.items()}
        if written is not None and (differing := _other_shapes(items, written)):
            raise _of_another_network(place, "; ".join(differing[:SHOWN_LEAVES]))
        arguments = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
        restored, fault = self._read(kind, step, arguments)
        # Orbax compares with the tree that it is given: a leaf that is missing or of another shape is an error.
        if written is None and isinstance(fault, ValueError | KeyError):
            raise _of_another_network(place, str(fault))
        if fault:
            raise _damaged(place, _first_line(fault))
        if written is None:
            warnings.warn(f"{place} is of an earlier version: damage to it cannot be noticed", stacklevel=2)
        elif differing := [name for name, digest in digests(restored).items() if written[name] != digest]:
            raise _damaged(place, f"{len(differing)} arrays have other numbers, the first is {differing[0]}")
        return restored

    def _written_digests(self, kind: str, step: int) -> dict[str, str] | None:
        """The digests of a state, or None of a state of an earlier version.

        Raises:
            DamagedError: if they cannot be read.
        """
        place = self._folder / kind / str(step)
        if not (place / DIGESTS).exists():
            return None
        found, fault = self._read(kind, step, {DIGESTS: ocp.args.JsonRestore()})
        if fault:
            raise _damaged(place, _first_line(fault))
        written, check = (found[DIGESTS].get(name) for name in ("arrays", "check"))
        if check != _check(written):
            raise _damaged(place, "its digests have changed")
        return written

    def _read(self, kind: str, step: int, arguments: dict[str, Any]) -> tuple[dict[str, Any], Exception | None]:
        """Reads items of a state, or returns what Orbax or TensorStore say against it: each has its own errors."""
        try:
            return dict(self._managers[kind].restore(step, args=ocp.args.Composite(**arguments)).items()), None
        except Exception as error:
            fault = error.with_traceback(None)
        end_abandoned()
        return {}, fault

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Converts the errors of writing: Orbax, TensorStore and the system each have their own."""
        try:
            yield
            return
        except Exception as error:
            fault = error.with_traceback(None)
        end_abandoned()
        self._remove_unfinished()
        found = [f"{kind} (step {path.name})" for kind in KINDS for path in self._folder.glob(f"{kind}/[0-9]*")]
        kept = f"the states on disk are kept: {', '.join(found)}" if found else "no state is on disk yet"
        told = f"cannot save a state in {self._folder}: {_reason(fault)}; {kept}"
        raise UserError(f"{told}. Make room, and give the same command again.") from fault

    def _remove_unfinished(self) -> None:
        """Removes what is left of states that were not saved to their end."""
        if processes.is_first():
            for path in self._folder.glob(f"*/{UNFINISHED}"):
                shutil.rmtree(path, ignore_errors=True)

    def _put_aside(self, kind: str) -> None:
        """Moves a damaged state out of the way of those that will be saved."""
        manager = self._managers[kind]
        step = manager.latest_step()
        if processes.is_first():
            aside = self._folder / f"damaged-{kind}-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / kind / str(step)).rename(aside)
        processes.wait_for_all("the damaged state")
        manager.reload()


def _reason(fault: Exception) -> str:
    """Says why the system did not write. TensorStore has the system's number in its text."""
    found = re.search(r"os_error_code='(\d+)'", str(fault))
    number = int(found[1]) if found else getattr(fault, "errno", None)
    return os.strerror(number) if number else _first_line(fault)


def _first_line(fault: Exception) -> str:
    return f"{type(fault).__name__}: {fault}".splitlines()[0].partition(" See full TensorStore details")[0]


def _check(written: dict[str, str]) -> int:
    return zlib.crc32(json.dumps(written, sort_keys=True).encode())


def _other_shapes(items: dict[str, Tree], written: dict[str, str]) -> list[str]:
    """Describes the leaves that were written with another dtype or shape than is expected, or not at all."""
    written = {name: digest.rpartition(" ")[0] for name, digest in written.items() if name.split("/")[0] in items}
    expected = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(items)}
    return [
        f"{name} is {written.get(name, 'missing')} there, {expected.get(name, 'unknown')} here"
        for name in sorted(written.keys() | expected.keys())
        if written.get(name) != expected.get(name)
    ]


def _of_another_network(place: pathlib.Path, what: str) -> UserError:
    return UserError(
        f"the state in {place} is of another network or other classes than this configuration (model.backbone, "
        f"model.embedding_dim) and data have, or of an earlier version, whose runs can be evaluated but not continued. "
        f"Give the run its own config.json back, or start a new run. What differs: {what}"
    )


def _damaged(place: pathlib.Path, what: str) -> DamagedError:
    return DamagedError(f"the state in {place} is damaged: {what}.")


@jax.jit
def _copied(items: dict[str, Tree]) -> dict[str, Tree]:
    return jax.tree.map(jnp.copy, items)


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
