"""Tiny training runs for tests of the report, on classes with names that are hard to show."""

import pathlib

import numpy as np
import trees

from proxynca_jax import train
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig

SCRIPT = "<script>document.title = 'broken'<%script> & \"quotes\" {{ 7 * 7 }}".replace("%", "\N{DIVISION SLASH}")
CLASSES, IMAGES_PER_CLASS = 10, 6


def draw_images(folder: pathlib.Path) -> pathlib.Path:
    """Draws class folders, of which half are for testing; the last one is called SCRIPT.

    One image of each class looks like those of the next, so its nearest image is wrong.
    """
    root, rng = folder / "tree", np.random.default_rng(1)
    trees.draw_folder(root, classes=CLASSES, images_per_class=IMAGES_PER_CLASS)
    for label in range(CLASSES):
        (root / f"class_{label:02d}/0.jpg").write_bytes(trees.encode((label + 1) % CLASSES, trees.SIZE, rng))
    *_, last = sorted(path for path in root.iterdir() if path.is_dir())
    last.rename(root / SCRIPT)
    (folder / "evaluation.txt").write_text("\n".join([SCRIPT, *sorted(p.name for p in root.iterdir())[-4:]]) + "\n")
    return root


def train_tiny(
    root: pathlib.Path, run: pathlib.Path, *, seed: int = 0, epochs: int = 2, **fields: object
) -> TrainConfig:
    """Trains the tiny network on `draw_images`."""
    config = TrainConfig(
        seed=seed,
        log_every_steps=2,
        data=DataConfig(
            dataset="folder",
            root=str(root),
            eval_classes_file=str(root.parent / "evaluation.txt"),
            image_size=8,
            resize_size=8,
            threads=2,
        ),
        model=ModelConfig(backbone="tiny", embedding_dim=8),
        optim=OptimConfig(epochs=epochs, batch_size=8, learning_rate=0.05, proxy_learning_rate=0.1, epsilon=1e-3),
        evaluation=EvaluationConfig(batch_size=8, kmeans_restarts=1),
    )
    for name, value in fields.items():
        setattr(config, name, value)
    train.train(config, run)
    return config
