"""The training program on the tiny network, as a command with the same options."""

import pathlib
import runpy
import sys

from tiny import TINY

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from proxynca_jax.models import BACKBONES

if __name__ == "__main__":
    BACKBONES["tiny"] = TINY
    sys.argv.append("--config.model.backbone=tiny")
    runpy.run_module("proxynca_jax.train", run_name="__main__", alter_sys=True)
