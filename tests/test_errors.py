"""What the user sees of a mistake."""

import subprocess
import sys

import pytest

from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine.command import exit_on_user_error

PROGRAM = """
from proxynca_jax.errors import UserError
from proxynca_jax.machine.command import exit_on_user_error
with exit_on_user_error():
    raise UserError("no such file: α.jpg")
"""


def test_nearest_guesses_and_lists():
    assert nearest("carz", ("sop", "cub", "cars")) == "did you mean 'cars'? Valid names: cars, cub, sop."


def test_nearest_does_not_guess_wildly():
    assert nearest("imagenet", iter(["sop", "cub"])) == "Valid names: cub, sop."


def test_user_error_becomes_a_message_and_status_one():
    program = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", PROGRAM], capture_output=True, text=True, encoding="utf8"
    )
    assert (program.returncode, program.stdout, program.stderr) == (1, "", "error: no such file: α.jpg\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ValueError, match="a bug") as raised, exit_on_user_error():
        raise ValueError("a bug")
    assert not isinstance(raised.value, UserError)


def test_block_without_an_error_goes_on():
    with exit_on_user_error():
        went_on = True
    assert went_on
