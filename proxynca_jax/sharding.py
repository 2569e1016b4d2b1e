"""Data parallelism: batches are sharded by image over the devices of all processes; all else is replicated.

One program runs on every device. All means over a batch, including BatchNorm's, are over the whole batch. So the losses
do not depend on the number of devices, except for rounding. Proxies and their optimiser state can be sharded by class.
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
    """Returns a mesh of all devices of all processes. The devices of a process are adjacent."""
    return Mesh(np.array(jax.devices()), (AXIS,))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shardings of a run's arrays. On a single device the methods leave arrays as they are."""

    mesh: Mesh = dataclasses.field(default_factory=all_devices)
    # C if the proxies are sharded by class. Rows of zeros, which nothing reads, pad them to a multiple of the number of
    # devices. None: the proxies are replicated.
    sharded_classes: int | None = None

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of an array that every device has whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        """Sharding of an array whose rows are split between the devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def batches(self) -> NamedSharding | None:
        """Sharding of a batch. None means JAX's default device."""
        return self.sharded if self.mesh.size > 1 else None

    def pad_proxies(self, proxies: Float32[np.ndarray, "classes dim"]) -> Float32[np.ndarray, "rows dim"]:
        """Pads the proxies, if they are sharded, so all devices get the same number of rows."""
        if self.sharded_classes is None:
            return proxies
        return np.pad(proxies, ((0, -len(proxies) % self.mesh.size), (0, 0)))

    def shardings(self, tree: Any) -> Any:
        """Returns the shardings of the leaves of a state, or of a part of it."""
        proxies = self.replicated if self.sharded_classes is None else self.sharded

        def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            # The proxies have this key, and so has their part of the optimiser's state: moments, and scalar counters.
            is_rows = jax.tree_util.DictKey("proxies") in path and np.ndim(leaf) > 0
            return proxies if is_rows else self.replicated

        return jax.tree_util.tree_map_with_path(sharding, tree)

    def place(self, tree: T) -> T:
        """Moves a state, or a part of it, to its devices. Every process must have all of it."""
        if self.mesh.size == 1:
            return jax.device_put(tree)

        def send(leaf: Any, sharding: NamedSharding) -> jax.Array:
            # device_put would send whole arrays between the processes, to check that they are equal.
            array = np.asarray(leaf)
            return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

        return jax.tree.map(send, tree, self.shardings(tree))

    def describe(self, tree: T) -> T:
        """Turns arrays or their shapes into shapes of arrays that every device has whole."""
        sharding = self.replicated if self.mesh.size > 1 else SingleDeviceSharding(self.mesh.devices.item())

        def describe(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(describe, tree)

    def constrain(self, tree: T) -> T:
        """Constrains a state, or a part of it, to its shardings, inside a compiled program."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def gather(self, tree: T) -> T:
        """Replicates arrays on every device, inside a compiled program."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.replicated)

    def round_up(self, batch_size: int) -> int:
        """Rounds a batch size up to a multiple of the number of devices."""
        return batch_size + -batch_size % self.mesh.size

    def check_batch_size(self, batch_size: int) -> None:
        """Checks that every device gets the same number of images.

        Raises:
            UserError: the batch size is not a multiple of the number of devices.
        """
        above = self.round_up(batch_size)
        if above != batch_size:
            below = above - self.mesh.size
            sizes = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"optim.batch_size is {batch_size}, not a multiple of the number of devices, {self.mesh.size}. "
                f"The nearest sizes that fit: {sizes}. Or let JAX see fewer devices."
            )
