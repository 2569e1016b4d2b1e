"""The Python face: any images to unit vectors, with the same bits as the command."""

import contextlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import trees
from PIL import Image, ImageOps
from written_runs import write_tiny_run

from proxynca_jax import Embedder, embed, steps
from proxynca_jax.config import ModelConfig
from proxynca_jax.data.given_images import given_split
from proxynca_jax.errors import UserError
from proxynca_jax.models.network import init_network
from proxynca_jax.weights import converted_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Files of many modes and sizes."""
    folder = tmp_path_factory.mktemp("images")
    trees.draw_odd_images(folder)
    (folder / "truncated.jpg").unlink()
    trees.draw_folder(folder / "classes", classes=2, images_per_class=2)
    return folder


@pytest.fixture(scope="module")
def images(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("[!.]*") if path.is_file())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of random weights."""
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "run")


def test_vectors_have_the_bits_that_the_command_writes(run, folder, tmp_path):
    output = tmp_path / "out.npz"
    embed.main(["--run", str(run), "--images", str(folder), "--output", str(output)])
    with np.load(output) as file:
        written, paths = file["embeddings"], file["paths"].tolist()
    ours = Embedder.load(run).embed(paths)
    np.testing.assert_array_equal(ours, written)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-6)


def test_paths_pil_images_and_arrays_are_the_same_images(run, images):
    embedder = Embedder.load(str(run))
    expected = embedder.embed(images)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Image.open(path)) for path in images]
        np.testing.assert_array_equal(embedder.embed(opened), expected)
        arrays = [np.asarray(ImageOps.exif_transpose(image).convert("RGB")) for image in opened]
    np.testing.assert_array_equal(embedder.embed(arrays), expected)
    assert expected.shape == (len(images), embedder.dim)
    assert expected.dtype == np.float32


def test_grey_and_transparent_arrays(run):
    embedder = Embedder.load(run)
    grey = np.random.default_rng(0).integers(0, 256, (50, 40), np.uint8)
    colours = np.repeat(grey[..., None], 3, 2)
    expected = embedder.embed([colours])
    for array in (grey, grey[..., None], np.concatenate([colours, grey[..., None]], 2)):
        np.testing.assert_array_equal(embedder.embed([array]), expected)


def test_no_images_give_no_vectors(run):
    assert Embedder.load(run).embed([]).shape == (0, 8)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("a.jpg", "give a list of images"),
        ([np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))], r"image 1 is an array of float64 of shape \(4, 4, 3\)"),
        ([np.zeros((4, 4, 2), np.uint8)], "image 0 .* must be uint8"),
        ([np.zeros((0, 4, 3), np.uint8)], "not empty"),
        (["/nowhere/a.jpg"], "no image file at /nowhere/a.jpg"),
        ([__file__], "test_embedder.py: cannot decode"),
    ],
)
def test_what_is_no_image_is_named(run, images, said):
    with pytest.raises(UserError, match=said):
        Embedder.load(run).embed(images)


def test_what_has_no_pixels_is_named():
    with pytest.raises(UserError, match="image 0 is a NoneType; it must be a path"):
        given_split([None])


def test_the_size_of_batches_changes_the_last_digits_at_most(run, images):
    embedder = Embedder.load(run)
    expected = embedder.embed(images)
    np.testing.assert_array_equal(embedder.embed(images, batch_size=4), expected)
    np.testing.assert_allclose(embedder.embed(images, batch_size=3), expected, atol=1e-6)
    with pytest.raises(UserError, match="batch_size is 0; it must be at least 1"):
        embedder.embed(images, batch_size=0)


def test_progress_is_shown_when_asked_for(run, images, capsys):
    embedder = Embedder.load(run)
    embedder.embed(images)
    assert capsys.readouterr().err == ""
    embedder.embed(images, progress=True)
    assert f"{len(images)}/{len(images)}" in capsys.readouterr().err


@pytest.mark.parametrize("dim", [0, 8])
def test_a_converted_weights_file(dim, images, tmp_path):
    config = ModelConfig(backbone="tiny", embedding_dim=dim)
    graph, variables = init_network(config, np.random.default_rng(3))
    leaves = {name: np.asarray(leaf) for name, leaf in converted_file.flatten(variables._asdict()).items()}
    converted_file.write(tmp_path / "w.safetensors", "tiny", leaves, source={})
    embedder = Embedder.load(tmp_path / "w.safetensors")
    vectors = embedder.embed(images[:2])
    pixels = np.stack([np.asarray(Image.new("RGB", (32, 32), colour)) for colour in ("red", "blue")])
    expected = steps.make_embed_step(graph)(variables, pixels)
    np.testing.assert_allclose(embedder.embed(list(pixels)), expected, atol=1e-6)
    assert vectors.shape == (2, embedder.dim)
    assert (embedder.dim == 8) == (dim == 8)


def test_what_is_neither_a_run_nor_weights_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        Embedder.load(tmp_path / "nothing")
    with pytest.raises(
        UserError, match=r"no weights are called 'efficientnet_light0': did you mean 'efficientnet_lite0'"
    ):
        Embedder.load("efficientnet_light0")
    with pytest.raises(UserError, match=r"cannot be read as a safetensors file"):
        Embedder.load(__file__)
    with pytest.raises(UserError, match=r"did you mean 'latest'\?"):
        Embedder.load(run, checkpoint="lastest")


def test_importing_the_package_starts_no_jax():
    quiet = "assert not {'jax', 'sklearn'} & {*sys.modules}"
    program = f"import sys, proxynca_jax, proxynca_jax.config; {quiet}; proxynca_jax.Embedder"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
