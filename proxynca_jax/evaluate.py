"""Scores a run's checkpoint again on its evaluation classes.

    python -m proxynca_jax.evaluate --run runs/cars [--checkpoint latest]

The network, the images and the seeds are those of the training run, and so are the numbers.
"""

import pathlib

import numpy as np
from absl import app, flags, logging

from proxynca_jax import steps
from proxynca_jax.checkpoint import KINDS, Checkpoints
from proxynca_jax.data.datasets import load_splits
from proxynca_jax.errors import exit_on_user_error
from proxynca_jax.metric_log import describe_scores
from proxynca_jax.run_folder import read_config
from proxynca_jax.scoring import embed, score

_RUN = flags.DEFINE_string("run", None, "Folder of a training run.", required=True)
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", KINDS, "Which of the run's states.")


def main(_arguments: list[str]) -> None:
    with exit_on_user_error():
        run = pathlib.Path(_RUN.value)
        config = read_config(run)
        _, split = load_splits(config.data)
        graph, network, batch_stats = steps.init_network(config.model, np.random.default_rng(config.seed))
        with Checkpoints(run) as checkpoints:
            network, batch_stats = checkpoints.restore_network(_CHECKPOINT.value, network, batch_stats)
            step = checkpoints.latest_step(_CHECKPOINT.value)
        embeddings = embed(steps.make_embed_step(graph), network, batch_stats, split, config)
        record = score(embeddings, split.labels, config)
        print(f"{run}  {_CHECKPOINT.value} checkpoint, step {step}  {describe_scores(record)}")


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # Orbax tells of each of its steps
    app.run(main)
