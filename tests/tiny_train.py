"""The training program with a network of one layer, as a command with the same options."""

import pathlib
import runpy
import sys

from tiny import TinyEmbedder

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from proxynca_jax import steps

if __name__ == "__main__":
    steps.Embedder = TinyEmbedder
    runpy.run_module("proxynca_jax.train", run_name="__main__", alter_sys=True)
