"""An index of a few images for tests of the page, with labels that are hard to show."""

import pathlib

import numpy as np
from PIL import Image

from proxynca_jax import Index
from proxynca_jax.config import ModelConfig
from proxynca_jax.models.network import init_network
from proxynca_jax.weights import converted_file

SCRIPT = "<script>document.title = 'broken'<%script>".replace("%", "\N{DIVISION SLASH}")
QUOTES = "it's \"quoted\" -- '); DROP"
COLOURS = {SCRIPT: "red", QUOTES: "green", "plain": "blue"}
POINTS = [{"far": 0.1, "threshold": -1.0}, {"far": 0.01, "threshold": 0.25}, {"far": 0.001, "threshold": 0.999}]


def make_index(folder: pathlib.Path) -> Index:
    """Indexes two images of each label, which are `folder / "photographs" / label / number.png`."""
    _, variables = init_network(ModelConfig(backbone="tiny", embedding_dim=8), np.random.default_rng(0))
    leaves = {name: np.asarray(leaf) for name, leaf in converted_file.flatten(variables._asdict()).items()}
    converted_file.write(folder / "tiny.safetensors", "tiny", leaves, source={})
    for label, colour in COLOURS.items():
        (folder / "photographs" / label).mkdir(parents=True)
        for number in range(2):
            picture = Image.new("RGB", (400, 300), colour)
            picture.paste("white", (10 + 100 * number, 10, 80 + 100 * number, 200))
            picture.save(folder / "photographs" / label / f"{number}.png")
    index = Index.open(folder / "i.lance", folder / "tiny.safetensors")
    index.add(folder / "photographs")
    index.about = {**index.about, "operating_points": POINTS}
    return index
