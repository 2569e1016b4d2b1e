"""A run's embeddings beside raw pixels and the network that it started from."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from proxynca_jax import evaluate, train
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.transforms import eval_transform, load_image
from proxynca_jax.embedder import TrainedNetwork, before_training, embed, load_network
from proxynca_jax.report.baselines import (
    FROZEN,
    LINEAR,
    PIXELS,
    TRAINED,
    TRAINED_FEATURES,
    Row,
    baselines,
    describe_baselines,
)
from proxynca_jax.runs.log import MetricLog
from proxynca_jax.scores import score, score_at_r

SIZE = 32  # of a thumbnail, so that raw pixels are those of the crops


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[pathlib.Path, TrainConfig]:
    root = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    for label, colour in enumerate(rng.uniform(90, 160, (10, 3))):
        (root / "tree" / f"class {label}").mkdir(parents=True)
        for number, cast in enumerate(rng.normal(0, 20, (6, 3))):  # of one image's light, so that classes overlap
            pixels = rng.normal(colour + cast, 20, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "tree" / f"class {label}" / f"{number}.png")
    config = TrainConfig(
        data=DataConfig(dataset="folder", root=str(root / "tree"), image_size=SIZE, resize_size=SIZE, threads=2),
        model=ModelConfig(backbone="tiny", embedding_dim=tiny.FEATURES),
        optim=OptimConfig(epochs=2, batch_size=8, learning_rate=0.3, proxy_learning_rate=0.1, epsilon=1e-3),
        evaluation=EvaluationConfig(batch_size=8, nmi=False, recall_at=(1, 2)),
    )
    train.train(config, root / "run")
    return root / "run", config


@pytest.fixture(scope="module")
def rows(trained) -> dict[str, Row]:
    network, config, _ = load_network(trained[0], "latest")
    found = baselines(network, config, load_dataset(config.data).evaluation, distance="cosine")
    return {row.name: row for row in found}


def with_identity(network: TrainedNetwork) -> TrainedNetwork:
    """The network with an embedding layer that changes nothing."""
    layer = {"kernel": jnp.eye(tiny.FEATURES), "bias": jnp.zeros(tiny.FEATURES)}
    params = network.variables.params | {"embedding_layer": layer}
    return network._replace(variables=network.variables._replace(params=params))


def test_embeddings_have_the_scores_of_the_runs_records(trained, rows):
    first, *_, last = MetricLog(trained[0]).records()
    for name, record in ((LINEAR, first), (TRAINED, last)):
        assert {k: rows[name].scores[k] for k in ("recall_at_1", "recall_at_2")} == {
            k: record[k] for k in ("recall_at_1", "recall_at_2")
        }
    assert rows[LINEAR].scores != rows[TRAINED].scores


def test_features_are_what_the_embedding_layer_gets(trained, rows):
    network, config, _ = load_network(trained[0], "latest")
    queries = load_dataset(config.data).evaluation.queries
    for name, state in ((FROZEN, before_training(network, config)), (TRAINED_FEATURES, network)):
        vectors = embed(with_identity(state), queries, config)
        assert rows[name].scores == score(vectors, queries.labels, config) | score_at_r(vectors, queries.labels)
        assert rows[name].dim == tiny.FEATURES


def test_pixels_are_those_of_the_crops(trained, rows):
    queries = load_dataset(trained[1].data).evaluation.queries
    crops = [eval_transform(load_image(queries, row), trained[1].data) for row in range(len(queries.labels))]
    vectors = np.stack(crops).reshape(len(crops), -1).astype(np.float32)
    expected = score(vectors, queries.labels, trained[1]) | score_at_r(vectors, queries.labels)
    assert rows[PIXELS].scores == pytest.approx(expected)
    assert rows[PIXELS].dim == 3 * SIZE**2


def test_the_words_say_whether_training_was_better():
    def row(name: str, dim: int, recall: float, precision: float) -> Row:
        return Row(name, dim, {"recall_at_1": recall, "map_at_r": precision, "r_precision": 0.0, "left_out": 0})

    table = describe_baselines([row(FROZEN, 1280, 50.0, 9.0), row(TRAINED, 64, 48.5, 12.25)])
    assert table.splitlines() == [
        "                           dimensions    R@1  MAP@R",
        "features before training        1,280  50.00   9.00",
        "embeddings after training          64  48.50  12.25",
        "",
        "R@1 of the 64 trained dimensions is 1.50 below that of the 1,280 features before training.",
        "MAP@R of the 64 trained dimensions is 3.25 above that of the 1,280 features before training.",
    ]


def test_the_command_prints_them_under_the_card(trained, capsys):
    evaluate.main(["--run", str(trained[0]), "--baselines", "--recall_at", "1", "4"])
    _, table = capsys.readouterr().out.split("raw pixels")
    assert [line.split("  ")[0] for line in table.splitlines()[1:5]] == [FROZEN, LINEAR, TRAINED, TRAINED_FEATURES]
    with pytest.raises(SystemExit):
        evaluate.main(["--embeddings", "file.npz", "--baselines"])
    assert "--baselines goes with --run" in capsys.readouterr().err
