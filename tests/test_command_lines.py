"""The entry points as a user meets them: a subprocess, its output and its exit status."""

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trees

from proxynca_jax import evaluate
from proxynca_jax.data.datasets import DATASETS

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs compiled by one subprocess serve the next, and the user's cache stays as it is.

    They are compiled quickly, not well.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)


MISTAKES = {
    "a typo in an option": (["--config.optim.learning_rat=1"], ["'optim.learning_rat'", "'optim.learning_rate'"]),
    "no such directory": (["--config.data.root=/nowhere"], ["/nowhere", "not a directory", "CUB_200_2011"]),
    "no directory": ([], ["data.root is empty", "--config.data.root="]),
    "no such data set": (["--config.data.dataset=carz"], ["'carz'", "did you mean 'cars'?", "glyphs"]),
    "a size that does not close": (["--config.data.root=/", "--config.data.image_size=48"], ["48", "38 or 63", "227"]),
    "a wrong type": (["--config.optim.epochs=many"], ["optim.epochs", "many"]),
    "a stray word": (["cars"], ["'cars'", "--"]),
    "a wrong weights file": (["--config.model.weights=README.md"], ["README.md", "python -m convert"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_clear_error(mistake, tmp_path):
    options, told = MISTAKES[mistake]
    if mistake == "a wrong weights file":
        trees.draw_cub(tmp_path / "cub", classes=4, images_per_class=16)
        options = [*options, f"--config.data.root={tmp_path / 'cub'}"]
    result = run("proxynca_jax.train", "--config", "configs/cub.py", "--run", tmp_path / "run", *options)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    for words in told:
        assert words in result.stderr
    assert not (tmp_path / "run").exists()


TYPO = "from proxynca_jax.config import TrainConfig\ndef get_config():\n    return TrainConfig(epoch=3)\n"


@pytest.mark.parametrize(
    ("written", "told"), [(TYPO, "'epoch'"), ("def get_config()\n", "mine.py, line 1"), (None, "get_config()")]
)
def test_a_config_file_that_cannot_be_used(written, told, tmp_path):
    path = tmp_path / ("missing.py" if written is None else "mine.py")
    if written is not None:
        path.write_text(written)
    result = run("proxynca_jax.train", "--config", path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert told in result.stderr


def check_training(dataset: str, program: list[object], folder: pathlib.Path, *, images_per_class: int) -> str:
    """Trains with the published settings and 4 images a step. Returns the scores that the last line reports."""
    draw = {"cub": trees.draw_cub, "cars": trees.draw_cars, "sop": trees.draw_sop}[dataset]
    draw(folder / "tree", classes=4, images_per_class=images_per_class)
    options = [f"--config.data.root={folder / 'tree'}", "--config.optim.batch_size=4", "--config.optim.epochs=1"]
    options += ["--config.evaluation.batch_size=8", "--config.log_every_steps=2"]
    command = [sys.executable, *program, "--run", folder / "run", *options]
    result = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "starting from random weights" in result.stdout
    assert (
        f"warning: {dataset}: found {2 * images_per_class} training and {2 * images_per_class} evaluation images, "
        f"but {DATASETS[dataset].published}" in (result.stderr.splitlines()[0])
    )
    last = result.stdout.splitlines()[-2]
    return last[last.index("R@1") : last.index("  evaluated")]


@pytest.mark.slow
def test_the_whole_network_trains_as_published(tmp_path):
    """A few steps on 227 pixels, then the same scores again from the folder."""
    scores = check_training(
        "cub", ["-m", "proxynca_jax.train", "--config", "configs/cub.py"], tmp_path, images_per_class=6
    )
    again = run("proxynca_jax.evaluate", "--run", tmp_path / "run", "--checkpoint", "latest")
    assert again.returncode == 0, again.stderr
    assert scores in again.stdout


@pytest.mark.parametrize("dataset", ["cars", "sop"])
def test_other_layouts_train(dataset, tmp_path, capsys):
    """The tiny network, because layouts differ in their images alone."""
    program = [
        pathlib.Path(__file__).with_name("tiny_train.py"),
        "--config",
        f"configs/{dataset}.py",
        "--config.data.image_size=226",
    ]
    scores = check_training(dataset, program, tmp_path, images_per_class=6)
    with pytest.warns(UserWarning, match="are published"):
        evaluate.main(["--run", str(tmp_path / "run"), "--checkpoint", "latest"])
    assert scores in capsys.readouterr().out
