"""The page that explains a run, or compares two: one HTML file that needs no network."""

from proxynca_jax.machine.extras import require_extra


def require_report() -> None:
    """Checks that pages can be written: `one_run` and `two_runs` import Bokeh and Jinja.

    Raises:
        UserError: if a package of the extra `report` is not installed.
    """
    require_extra("report", "bokeh", "jinja2")
