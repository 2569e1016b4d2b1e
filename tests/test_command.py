"""What every command does first."""

import subprocess
import sys

PROGRAM = """
import warnings
from proxynca_jax.machine.command import prepare_process
prepare_process()
warnings.warn("found 3 images,\\nbut 4 are published")
"""


def test_a_warning_is_one_line():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert result.stderr == "warning: found 3 images, but 4 are published\n"
