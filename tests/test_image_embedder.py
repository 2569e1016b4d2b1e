"""The scikit-learn transformer: scikit-learn's own checks, pipelines, and images of each kind."""

import pathlib
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import trees
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils import Tags, get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks
from written_runs import write_tiny_run

from proxynca_jax import Embedder, ImageEmbedder
from proxynca_jax.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Ten images of each of two classes."""
    folder = tmp_path_factory.mktemp("images")
    trees.draw_folder(folder, classes=2, images_per_class=10)
    return sorted(str(path) for path in folder.rglob("*.jpg"))


@pytest.fixture
def labels(paths: list[str]) -> list[str]:
    return [pathlib.Path(path).parent.name for path in paths]
