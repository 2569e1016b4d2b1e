"""Packages of the extras, which are imported only when they are needed."""

import importlib.util

from proxynca_jax.errors import UserError


def require_extra(extra: str, *packages: str) -> None:
    """Checks that packages are installed.

    Args:
        extra: of this package, which installs them.
        packages: as they are imported.

    Raises:
        UserError: if one is not. It says how to install it.
    """
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise UserError(f"this needs {' and '.join(missing)}: pip install 'proxynca_jax[{extra}]'.")
