"""The packages of the extra `report`, which are imported only when a page is written."""

import importlib.util

from proxynca_jax.errors import UserError


def require_extra(name: str, *packages: str) -> None:
    """Checks that packages are installed.

    Args:
        name: of the extra that installs them.
        packages: as they are imported.

    Raises:
        UserError: if one is not. It says how to install it.
    """
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise UserError(f"this needs {' and '.join(missing)}: pip install 'proxynca_jax[{name}]'.")


def require_report() -> None:
    """Checks that a page can be written.

    Raises:
        UserError: as for `require_extra`.
    """
    require_extra("report", "bokeh", "jinja2")
