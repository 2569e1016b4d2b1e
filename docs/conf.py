"""The documentation site: `sphinx-build -W --keep-going docs build/site`."""

from typing import Any

from sphinx.application import Sphinx

from proxynca_jax.version import __version__

project = "proxynca_jax"
version = release = __version__
copyright = "the proxynca_jax authors, MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["conf.py"]
myst_heading_anchors = 4  # the anchors that GitHub gives to headings

default_role = "code"  # what single backticks are in docstrings
smartquotes = False  # options start with two hyphens

html_theme = "furo"
html_title = f"proxynca_jax {version}"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", _shorten_arrays)
    app.connect("autodoc-skip-member", _skip_fields_of_tuples)


def _shorten_arrays(*event: Any) -> tuple[str | None, str | None]:
    """Writes `Array` for the class that it is an alias of."""
    *_, arguments, result = event
    return _shorten(arguments), _shorten(result)


def _shorten(signature: str | None) -> str | None:
    return signature and signature.replace("jaxlib._jax.Array", "Array")


def _skip_fields_of_tuples(app: Sphinx, kind: str, name: str, member: object, skip: bool, options: Any) -> bool | None:
    """Leaves out the fields of named tuples: the signature has them, and their own docstrings are made by Python."""
    return True if (member.__doc__ or "").startswith("Alias for field number") else None
