"""README and docs: their links, the files and commands that they name, and the README's length."""

import ast
import pathlib
import re

import pytest

from proxynca_jax.config import TrainConfig, flatten

REPOSITORY = pathlib.Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
# Folders whose files belong to the repository. Others that the pages name are the user's: runs/, weights/, /data/.
OURS = ("proxynca_jax", "convert", "benchmarks", "configs", "docs", "tests", ".ci")
README_WORDS = 800


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code_blocks(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def source_of(module: str) -> pathlib.Path | None:
    path = REPOSITORY / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__main__.py") if file.is_file()), None)


@EVERY_PAGE
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code_blocks(page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@EVERY_PAGE
def test_files_that_are_named_exist(page):
    names = re.findall(rf"(?<![\w./])(?:{'|'.join(map(re.escape, OURS))})/[\w./]*\w/?", page.read_text())
    assert [name for name in names if not (REPOSITORY / name).exists()] == []


@EVERY_PAGE
def test_commands_that_are_named_exist(page):
    text = page.read_text()
    modules = set(re.findall(r"python -m ((?:proxynca_jax|convert|benchmarks)[\w.]*\w)", text))
    modules |= {
        "convert" if name == "convert" else f"proxynca_jax.{name}" for name in re.findall(r"`proxynca (\w+)", text)
    }
    assert [module for module in modules if source_of(module) is None] == []


@EVERY_PAGE
def test_options_are_those_of_the_configuration(page):
    fields = flatten(TrainConfig())
    assert [name for name in re.findall(r"--config\.([\w.]+)", page.read_text()) if name not in fields] == []


def test_the_readme_lists_every_command():
    """A command is a module of the package that runs when it is started."""
    readme = (REPOSITORY / "README.md").read_text()
    commands = [file.stem for file in (REPOSITORY / "proxynca_jax").glob("*.py") if "__main__" in file.read_text()]
    assert [name for name in commands if not name.startswith("_") and f"| `{name}` |" not in readme] == []


def test_python_in_the_readme_is_python():
    blocks = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert [ast.parse(block).body[0].lineno for block in blocks] == [1]


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().split()) <= README_WORDS


def test_the_picture_is_small():
    assert (REPOSITORY / "docs/neighbours.png").stat().st_size < 200_000
