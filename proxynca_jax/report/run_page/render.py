"""Fills a template of a page, with everything that it needs inside of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from bokeh.embed import components
from bokeh.models import LayoutDOM
from bokeh.resources import Resources
from markupsafe import Markup

from proxynca_jax.report.run_page.pictures import Pictures


def render(template: str, pictures: Pictures, plots: Mapping[str, Sequence[LayoutDOM]], **fields: Any) -> str:
    """Fills a template. All text is escaped.

    Args:
        template: its file.
        pictures: all that the page shows.
        plots: groups of them by name.
        fields: what else the template shows.

    Returns:
        The page: HTML that loads nothing.
    """
    script, parts = components([plot for group in plots.values() for plot in group])
    divisions = iter(parts)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        bokeh=Markup(Resources(mode="inline", components=["bokeh"]).render_js()),
        plot_script=Markup(script),
        plots={name: [Markup(next(divisions)) for _ in group] for name, group in plots.items()},
        pictures=pictures.uris,
        **fields,
    )
