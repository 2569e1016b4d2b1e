"""Where a run's arrays are: batches are sharded by image over all devices, all else is replicated.

One program runs on every device. Means over a batch, BatchNorm's included, are over all devices. So the losses depend
on the number of devices only by rounding. Proxies and their optimiser state can be sharded by class.
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
    """Returns the devices of all processes, ordered by process."""
    return Mesh(np.array(jax.devices()), (AXIS,))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shardings of a run. On a single device, the methods return arrays unchanged."""

    mesh: Mesh = dataclasses.field(default_factory=all_devices)
    # C, if the proxies are sharded by class. Each device then has the same number of rows; those after the last class
    # are padding. None: the proxies are replicated.
    divided_classes: int | None = None

    @property
    def whole(self) -> NamedSharding:
        """Replicates an array."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def divided(self) -> NamedSharding:
        """Shards an array by rows."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def batches(self) -> NamedSharding | None:
        """The sharding of a batch; None is JAX's default device."""
        return self.divided if self.mesh.size > 1 else None

    def pad_proxies(self, proxies: Float32[np.ndarray, "classes dim"]) -> Float32[np.ndarray, "rows dim"]:
        """Pads proxies that are to be sharded with zeros, so that all devices get the same number of rows."""
        if self.divided_classes is None:
            return proxies
        return np.pad(proxies, ((0, -len(proxies) % self.mesh.size), (0, 0)))

    def shardings(self, tree: Any) -> Any:
        """Returns the sharding of each leaf of a state, or of a part of it."""
        proxies = self.whole if self.divided_classes is None else self.divided

        def sharding(path: tuple[Any, ...], _: Any) -> NamedSharding:
            # This key names the proxies themselves and, in the optimiser's state, their moments.
            return proxies if path and path[-1] == jax.tree_util.DictKey("proxies") else self.whole

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def place(self, tree: T) -> T:
        """Shards a state, or a part of it, of which every process has a whole copy."""
        if self.mesh.size == 1:
            return jax.device_put(tree)

        def send(leaf: Any, sharding: NamedSharding) -> jax.Array:
            # device_put would compare the copies, and for that send all of them to every process.
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

        return jax.tree.map(send, tree, self.shardings(tree))

    def describe(self, tree: T) -> T:
        """Turns arrays, or their shapes, into the shapes of replicated arrays."""
        sharding = self.whole if self.mesh.size > 1 else SingleDeviceSharding(self.mesh.devices.item())

        def describe(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(describe, tree)

    def constrain(self, tree: T) -> T:
        """Inside a compiled program: keeps the sharding of a state, or of a part of it."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def gather(self, tree: T) -> T:
        """Inside a compiled program: replicates arrays."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.whole)

    def round_up(self, batch_size: int) -> int:
        """Rounds a batch size up to a multiple of the number of devices."""
        return batch_size + -batch_size % self.mesh.size

    def check_batch_size(self, batch_size: int) -> None:
        """Checks that every device gets the same number of images.

        Raises:
            UserError: if not. It gives the nearest batch sizes that fit.
        """
        above = self.round_up(batch_size)
        if above != batch_size:
            below = above - self.mesh.size
            sizes = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"optim.batch_size is {batch_size}, which {self.mesh.size} devices cannot divide evenly. "
                f"The nearest sizes that fit: {sizes}. Or let JAX see fewer devices."
            )
