import os

import pytest

from proxynca_jax.machine.xla_messages import LEVEL, hide_xla_warnings


@pytest.mark.parametrize(("before", "after"), [(None, "2"), ("1", "2"), ("0", "0"), ("3", "3")])
def test_warnings_are_hidden_unless_the_user_wants_another_level(monkeypatch, before, after):
    monkeypatch.delenv(LEVEL, raising=False)
    if before is not None:
        monkeypatch.setenv(LEVEL, before)
    hide_xla_warnings()
    assert os.environ[LEVEL] == after
