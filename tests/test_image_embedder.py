"""The scikit-learn transformer: scikit-learn's own checks, pipelines, and images of each kind."""

import pathlib
import pickle

import numpy as np
import pandas as pd
import pytest
import trees
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils import InputTags, Tags, get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from written_runs import write_tiny_run

from proxynca_jax import Embedder, ImageEmbedder
from proxynca_jax.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Images of two classes."""
    folder = tmp_path_factory.mktemp("images")
    trees.draw_folder(folder, classes=2, images_per_class=10)
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def labels(paths: list[str]) -> list[str]:
    return [pathlib.Path(path).parent.name for path in paths]


class EmbedsRows(ImageEmbedder):
    """Embeds rows of numbers, each as an image of one row of pixels: scikit-learn's checks bring no images."""

    def transform(self, X: object) -> object:
        rows = np.asarray(X, float)
        return super().transform([np.uint8(np.clip(25 * row[None], 0, 255)) for row in rows])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags = InputTags()
        return tags


EXPECTED_FAILURES = {
    "check_do_not_raise_errors_in_init_or_set_params": "it gives -1 for a path; the tests check types at run time",
    "check_estimator_sparse_tag": "fit does not look at the images, so only transform refuses a sparse matrix",
}


@parametrize_with_checks([EmbedsRows("x")], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_scikit_learns_checks(estimator, check, run):
    check(estimator.set_params(model=run))


def test_the_tags_say_what_it_takes():
    tags = get_tags(ImageEmbedder())
    assert not tags.requires_fit
    assert tags.input_tags.string
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.two_d_array


def test_paths_and_pixels_in_each_container_give_the_vectors_of_embedder(run, paths):
    expected = Embedder.load(run).embed(paths)
    embedder = ImageEmbedder(run)
    for images in (paths, tuple(paths), np.array(paths), np.array(paths, object), pd.Series(paths)):
        np.testing.assert_array_equal(embedder.transform(images), expected)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), np.uint8)
    expected = Embedder.load(run).embed(pixels)
    np.testing.assert_array_equal(embedder.fit_transform(pixels), expected)
    np.testing.assert_allclose(ImageEmbedder(run, batch_size=2).transform(list(pixels)), expected, atol=1e-6)
    assert expected.dtype == np.float32


def test_names_and_data_frames(run, paths):
    embedder = ImageEmbedder(run)
    names = [f"imageembedder{i}" for i in range(8)]
    assert embedder.get_feature_names_out().tolist() == names
    frame = embedder.set_output(transform="pandas").transform(pd.Series(paths, index=range(100, 120)))
    assert frame.columns.tolist() == names
    assert frame.index.tolist() == list(range(100, 120))
    np.testing.assert_array_equal(frame.to_numpy(), ImageEmbedder(run).transform(paths))


def test_a_pipeline_is_cross_validated_and_searched(run, paths, labels):
    pipeline = make_pipeline(ImageEmbedder(run), KNeighborsClassifier(n_neighbors=1))
    assert cross_val_score(pipeline, paths, labels, cv=2).tolist() == [1, 1]
    search = GridSearchCV(pipeline, {"imageembedder__batch_size": [2, 4]}, cv=2).fit(paths, labels)
    assert search.best_score_ == 1


def test_clones_share_the_network_and_pickles_do_not_contain_it(run, paths, monkeypatch):
    embedder = ImageEmbedder(run).fit(paths)
    expected = embedder.transform(paths)
    assert len(pickle.dumps(embedder)) < 500
    monkeypatch.setattr(Embedder, "load", lambda *_args, **_options: pytest.fail("the network was read again"))
    for copy in (clone(embedder), pickle.loads(pickle.dumps(embedder))):
        assert copy.get_params() == {"model": run, "checkpoint": "best", "batch_size": None}
        np.testing.assert_array_equal(copy.transform(paths), expected)


def test_a_mistake_is_noticed_in_fit_or_names_its_image(run, tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        ImageEmbedder(tmp_path / "nothing").fit([])
    with pytest.raises(UserError, match="did you mean 'latest'"):
        ImageEmbedder(run, checkpoint="lastest").fit([])
    with pytest.raises(UserError, match=r"image 0 is an array of float64 of shape \(3,\)"):
        ImageEmbedder(run).transform(np.zeros((2, 3)))
