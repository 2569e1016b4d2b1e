"""The program that indexes, on the tiny network and with few images per call of `add`."""

import pathlib
import sys

from tiny import TINY

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from proxynca_jax import index
from proxynca_jax.models import BACKBONES
from proxynca_jax.vector_index import update

if __name__ == "__main__":
    BACKBONES["tiny"] = TINY
    update.ROWS_PER_ADD = 8
    index.main(sys.argv[1:])
