"""What can be known before a run begins: of its images, its network and its machine. Each check yields findings."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

OK, WARNING, ERROR = "ok", "warning", "error"
SHOWN = 5  # names in a finding


class Finding(NamedTuple):
    """What one check has found."""

    level: str  # OK, WARNING or ERROR: a run would give scores that mean what they say; would not; would stop
    text: str  # what was found and, if it is not OK, what to do


def listed(names: Iterable[str]) -> str:
    """Lists the first names, and says how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def worst(findings: Sequence[Finding]) -> str:
    """Returns the level of the gravest finding."""
    return max((finding.level for finding in findings), key=(OK, WARNING, ERROR).index, default=OK)
