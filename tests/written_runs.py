"""Writes folders of training runs, with chosen scores or with a tiny network, for tests."""

import dataclasses
import json
from pathlib import Path

from proxynca_jax import steps
from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, TrainConfig
from proxynca_jax.optim import make_optimizer
from proxynca_jax.report.reference import REFERENCES
from proxynca_jax.runs.checkpoint import KINDS, Checkpoints
from proxynca_jax.runs.folder import open_run
from proxynca_jax.runs.image_list import ListedImage
from proxynca_jax.runs.log import Record

ALIKE = REFERENCES["cub"].records  # records of a run with the reference's scores


def shifted(by: float) -> list[Record]:
    """Returns the reference's records with every score shifted."""
    scores = [name for name in ALIKE[0] if name != "epoch"]
    return [record | {name: record[name] + by for name in scores} for record in ALIKE]


def flat(*recalls: float) -> list[Record]:
    """Returns records from epoch -1 on with these Recall@1. The other scores have fixed offsets from it."""
    return [
        {
            "epoch": epoch,
            **({"train_loss": 2.0, "train_seconds": 10.0 + epoch} if epoch >= 0 else {}),
            **{f"recall_at_{k}": recall + k - 1.0 for k in (1, 2, 4, 8)},
            "nmi": recall + 10.0,
        }
        for epoch, recall in enumerate(recalls, start=-1)
    ]


def write_run(folder: Path, records: list[Record], tests: list[Record] | None = None, **fields: object) -> Path:
    """Writes the folder of a run.

    Args:
        folder: the folder, which must not exist yet.
        records: one per epoch.
        tests: the records on the test classes; validation protocol only.
        fields: changed fields of the configuration, by dotted name.
    """
    config = TrainConfig()
    for name, value in {"data.root": "/data", "model.weights": "w", **fields}.items():
        *groups, field = name.split(".")
        setattr(getattr(config, groups[0]) if groups else config, field, value)
    split = "test" if config.evaluation.protocol == "reference" else "validation"
    lines = [{"split": split, **record} for record in records] + [{"split": "test", **test} for test in tests or []]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_tiny_run(
    folder: Path, images: list[ListedImage] | None = None, *, dim: int = 8, **evaluation: object
) -> Path:
    """Writes a run of the tiny network with random weights: both states are of step 12, and the log is empty.

    Args:
        folder: the folder, which must not exist yet.
        images: its list of images.
        dim: width of its embeddings.
        evaluation: changed fields of the evaluation's configuration.
    """
    config = TrainConfig(
        data=DataConfig(dataset="folder", root="/nowhere", image_size=32, resize_size=40, threads=2),
        model=ModelConfig(backbone="tiny", embedding_dim=dim),
        evaluation=EvaluationConfig(**{"batch_size": 4} | evaluation),
    )
    open_run(folder, config, images)
    _, state = steps.init_state(config.model, make_optimizer(config.optim, steps_per_epoch=1), classes=2, seed=3)
    with Checkpoints(folder) as checkpoints:
        for kind in KINDS:
            checkpoints.save(kind, 12, state)
    return folder
