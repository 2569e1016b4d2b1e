"""Addresses of indexes as messages show them: without passwords."""

import re

from proxynca_jax.errors import UserError

# Greedy: up to the last @, because a password may have one that should be written as %40.
PASSWORD = re.compile(r"(?P<before>^\w+://[^:@/?]*:)(?P<password>.*)(?=@)")
OPTION = re.compile(r"(?P<before>password=)(?P<password>[^&]*)", re.IGNORECASE)
MEANING = re.compile(r"[@/?#]|%(?![0-9A-Fa-f]{2})|%(?=00)")
HIDDEN = "***"


def masked(address: str) -> str:
    """Returns the address with asterisks for passwords."""
    for pattern in (PASSWORD, OPTION):
        address = pattern.sub(rf"\g<before>{HIDDEN}", address)
    return address


def check_password(address: str) -> None:
    """Checks that a database would read the passwords as the user means them. Its errors could print a part.

    Raises:
        UserError: if one has characters with a meaning.
    """
    for pattern in (PASSWORD, OPTION):
        for found in pattern.finditer(address):
            if wrong := MEANING.findall(found["password"]):
                codes = ", ".join(f"{sign} as %{ord(sign):02X}" for sign in sorted(set(wrong)))
                raise UserError(f"a password in {masked(address)} has signs with a meaning. Write {codes}.")
