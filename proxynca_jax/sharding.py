"""How a run's arrays lie on the devices of all processes: batches divided by image, all else whole on each device.

One program runs on every device. Means over a batch are of the whole batch, BatchNorm's too, so that the losses do not
depend on the number of devices beyond rounding. Proxies and their optimiser state can be divided by class.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Float32

from proxynca_jax.errors import UserError

AXIS = "devices"
T = TypeVar("T")


def all_devices() -> Mesh:
    """Every device of every process, those of a process side by side."""
    return Mesh(np.array(jax.devices()), (AXIS,))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where arrays go. On a single device there is nothing to lay out, and the methods leave them as they are."""

    mesh: Mesh = dataclasses.field(default_factory=all_devices)
    # C, where the proxies are divided by class: each device then holds the same number of rows, and the rows past the
    # last class are zeros that nothing reads. None: every device holds all proxies.
    divided_classes: int | None = None

    @property
    def whole(self) -> NamedSharding:
        """The whole array on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def divided(self) -> NamedSharding:
        """Each device a share of the rows."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def batches(self) -> NamedSharding | None:
        """Where a batch goes; None is JAX's default device."""
        return self.divided if self.mesh.size > 1 else None

    def pad_proxies(self, proxies: Float32[np.ndarray, "classes dim"]) -> Float32[np.ndarray, "rows dim"]:
        """Fills the proxies up so that all devices get the same number of rows, if they are to be divided."""
        if self.divided_classes is None:
            return proxies
        return np.pad(proxies, ((0, -len(proxies) % self.mesh.size), (0, 0)))

    def shardings(self, tree: Any) -> Any:
        """Where the leaves of a state, or of a part of it, go."""
        proxies = self.whole if self.divided_classes is None else self.divided

        def sharding(path: tuple[Any, ...], _: Any) -> NamedSharding:
            # Under this key lie the proxies themselves and, in the optimiser's state, their moments.
            return proxies if path and path[-1] == jax.tree_util.DictKey("proxies") else self.whole

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def place(self, tree: T) -> T:
        """Sends a state, or a part of it, that every process holds whole to where it goes."""
        if self.mesh.size == 1:
            return jax.device_put(tree)

        def send(leaf: Any, sharding: NamedSharding) -> jax.Array:
            # Not device_put, with which the processes would send each other all of it to compare.
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

        return jax.tree.map(send, tree, self.shardings(tree))

    def describe(self, tree: T) -> T:
        """Turns arrays or their shapes into shapes of arrays that every device has whole."""
        sharding = self.whole if self.mesh.size > 1 else SingleDeviceSharding(self.mesh.devices.item())

        def describe(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(describe, tree)

    def constrain(self, tree: T) -> T:
        """Inside a compiled program: keeps a state, or a part of it, where it goes."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def gather(self, tree: T) -> T:
        """Inside a compiled program: brings whole arrays to every device."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.whole)

    def round_up(self, batch_size: int) -> int:
        """The next batch size that the devices divide evenly."""
        return batch_size + -batch_size % self.mesh.size

    def check_batch_size(self, batch_size: int) -> None:
        """Looks whether every device gets the same number of images.

        Raises:
            UserError: if not.
        """
        above = self.round_up(batch_size)
        if above != batch_size:
            below = above - self.mesh.size
            sizes = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"optim.batch_size is {batch_size}, which {self.mesh.size} devices cannot divide evenly. "
                f"The nearest sizes that fit: {sizes}. Or let JAX see fewer devices."
            )
