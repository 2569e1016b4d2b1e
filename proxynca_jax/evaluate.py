"""Scores a run, or embeddings that anyone made, and prints a metric card: each score with all that it depends on.

    python -m proxynca_jax.evaluate --run runs/cars [--checkpoint latest] [--baselines]
    python -m proxynca_jax.evaluate --embeddings test.parquet
    python -m proxynca_jax.evaluate --embeddings queries.npz --gallery gallery.npz --recall_at 1 10 100 --no-nmi
    python -m proxynca_jax.evaluate --run runs/cars --verification [--roc roc.png]

A run is scored on its evaluation classes. The network, the images, the settings and the seeds are those of training,
and so are the numbers. `--baselines` adds what training did not make: raw pixels, and the network that the run started
from. Files are .npz (arrays `embeddings` and `labels`) or Parquet (columns `embedding` and `label`), with labels that
are integers or strings. Each image searches the other images or, if there is a gallery, the gallery. NMI clusters the
queries alone. `--verification` measures thresholds: above which similarity are two images of one class? Those of a run
are in its folder from then on, as `verification.json`, and an index takes them from there.
"""

from proxynca_jax.machine.signals import start_command

if __name__ == "__main__":
    start_command()

import argparse
import pathlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from proxynca_jax.config import COUNT, KMEANS, NMI_AVERAGES, SEEDS, TrainConfig
from proxynca_jax.embedder import embed, load_network
from proxynca_jax.errors import UserError
from proxynca_jax.machine.arguments import NO_GRAPHS, integer, path
from proxynca_jax.machine.command import exit_on_user_error, prepare_process
from proxynca_jax.machine.output import print_line
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.metrics.identification import identify
from proxynca_jax.metrics.retrieval import DISTANCES, LabelledVectors
from proxynca_jax.metrics.verification import verify
from proxynca_jax.onednn.way import way
from proxynca_jax.report.baselines import baselines, describe_baselines
from proxynca_jax.report.metric_card import metric_card
from proxynca_jax.report.verification_card import draw_roc, identification_card, verification_card
from proxynca_jax.runs import verification_file
from proxynca_jax.runs.checkpoint import KINDS
from proxynca_jax.runs.digests import digest
from proxynca_jax.runs.embedding_files import read_about, read_embeddings
from proxynca_jax.runs.image_list import evaluation_of_run
from proxynca_jax.scores import describe_scores, score, score_at_r

Queries = tuple[Float[np.ndarray, "images dim"], Int[np.ndarray, " images"]]  # vectors and labels
SETTINGS = (
    "recall_at",
    "nmi",
    "nmi_average",
    "kmeans",
    "kmeans_restarts",
)  # fields of EvaluationConfig that are options here


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: of the command line; by default the program's own.
    """
    options = _parse(arguments)
    with exit_on_user_error():
        (_score_run if options.run else _score_files)(options)


def _score_run(options: argparse.Namespace) -> None:
    kind, graphs = options.checkpoint or "best", not options.no_graphs
    network, config, step = load_network(options.run, kind, graphs=graphs)
    _override(config, options)
    evaluation = evaluation_of_run(options.run, config.data)
    queries, *others = [(embed(network, split, config), split.labels) for split in evaluation.splits()]
    title = f"{options.run}  {kind} checkpoint, step {step}"
    precision = f"{computed_in(config.model.compute_dtype)} by {way().name}"
    _print_scores(title, queries, others[0] if others else None, config, options, precision=precision)
    if options.verification:
        about = {"step": step, "checkpoint": kind, "weights": digest(network.variables)}
        _verify(queries, others[0] if others else None, config, options, about)
    if options.baselines:
        rows = baselines(network, config, evaluation, distance=options.distance, graphs=graphs)
        print_line(f"\n{describe_baselines(rows)}")


def _score_files(options: argparse.Namespace) -> None:
    config = TrainConfig()
    _override(config, options)
    queries, gallery = _read(options.embeddings, options.gallery)
    title = f"{options.embeddings} in {options.gallery}" if gallery else str(options.embeddings)
    about = read_about(options.embeddings)
    precision = " by ".join(about[name] for name in ("compute_dtype", "convolutions") if name in about) or None
    _print_scores(title, queries, gallery, config, options, precision=precision)
    if options.verification:
        _verify(queries, gallery, config, options, {"embeddings": str(options.embeddings)})


def _verify(
    queries: Queries,
    gallery: LabelledVectors | None,
    config: TrainConfig,
    options: argparse.Namespace,
    about: dict[str, Any],
) -> None:
    """Measures and prints thresholds. Writes them into the run's folder, and the files that were asked for."""
    verification = verify(*queries, gallery=gallery, seed=config.seed)
    print(f"\n{verification_card(verification)}", flush=True)
    identification = None
    try:
        identification = identify(*queries, gallery=gallery, seed=config.seed)
        print(f"\n{identification_card(identification)}", flush=True)
    except UserError as error:  # thresholds need fewer classes
        print()
        print_line(f"{'open set':<12}not measured: {error}")
    protocol = {
        "similarity": "cosine",
        "pairs": "queries x queries, each pair once" if gallery is None else "queries x gallery",
        "images": len(queries[1]),
        "gallery_images": None if gallery is None else len(gallery[1]),
        "intervals": "95 %, vertex bootstrap over classes",
        "seed": config.seed,
    }
    measured = about | {"protocol": protocol} | verification_file.record(verification, identification)
    for file in (options.run and options.run / verification_file.NAME, options.record):
        if file:
            verification_file.write(file, measured)
            print_line(f"thresholds are in {file}")
    if options.roc:  # last, because a picture is the least loss
        draw_roc(verification, options.roc)


def _print_scores(
    title: str,
    queries: Queries,
    gallery: LabelledVectors | None,
    config: TrainConfig,
    options: argparse.Namespace,
    *,
    precision: str | None,
) -> None:
    search = {"gallery": gallery, "distance": options.distance}
    scores = score(*queries, config, **search)
    print_line(f"{title}  {describe_scores(scores)}\n")
    scores |= score_at_r(*queries, **search)
    print_line(metric_card(scores, *queries, config, precision=precision, **search))


def _read(path: pathlib.Path, gallery_path: pathlib.Path | None) -> tuple[Queries, LabelledVectors | None]:
    """Reads queries and gallery, and numbers their classes."""
    embeddings, labels = read_embeddings(path)
    if gallery_path is None:
        return (embeddings, np.unique(labels, return_inverse=True)[1]), None
    others, other_labels = read_embeddings(gallery_path)
    for what, ours, theirs in (
        ("dimensions", embeddings.shape[1], others.shape[1]),
        ("kind of labels", *("text" if found.dtype.kind == "U" else "integers" for found in (labels, other_labels))),
    ):
        if ours != theirs:
            raise UserError(f"{path} and {gallery_path} differ in {what}, {ours} and {theirs}; both need the same.")
    _, classes = np.unique(np.concatenate([labels, other_labels]), return_inverse=True)
    return (embeddings, classes[: len(labels)]), (others, classes[len(labels) :])


def _override(config: TrainConfig, options: argparse.Namespace) -> None:
    """Puts what the command line says in place of what the run or the defaults say."""
    for name in SETTINGS:
        if (value := getattr(options, name)) is not None:
            setattr(config.evaluation, name, tuple(value) if isinstance(value, list) else value)
    if options.seed is not None:
        config.seed = options.seed


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m proxynca_jax.evaluate", description=summary)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=path, help="the folder of a training run")
    source.add_argument("--embeddings", type=path, metavar="FILE", help=".npz or .parquet")
    parser.add_argument("--checkpoint", choices=KINDS, help="with --run: which of its states (default: best)")
    parser.add_argument(
        "--baselines", action="store_true", help="with --run: score raw pixels and the network before training, too"
    )
    parser.add_argument("--gallery", type=path, metavar="FILE", help="with --embeddings: what to search in")
    parser.add_argument("--distance", choices=DISTANCES, default="cosine", help="of neighbours (default: cosine)")
    parser.add_argument("--verification", action="store_true", help="measure thresholds: when are two images the same?")
    parser.add_argument("--record", type=path, metavar="FILE.json", help="with --verification: write it as JSON")
    parser.add_argument("--roc", type=path, metavar="FILE.png", help="with --verification: draw the ROC curve")
    parser.add_argument("--no_graphs", action="store_true", help=NO_GRAPHS)
    settings = parser.add_argument_group("settings", "by default those of the run, or of training")
    settings.add_argument("--recall_at", type=integer(COUNT), nargs="+", metavar="K", help="the K of Recall@K")
    settings.add_argument("--nmi", action=argparse.BooleanOptionalAction, help="whether to cluster for NMI")
    settings.add_argument("--nmi_average", choices=NMI_AVERAGES, help="the mean of the entropies")
    settings.add_argument("--kmeans", choices=KMEANS, help="whose k-means, for NMI")
    settings.add_argument("--kmeans_restarts", type=integer(COUNT), metavar="N", help="k-means runs for NMI")
    settings.add_argument("--seed", type=integer(SEEDS), help="of k-means, and of the draws of --verification")
    options = parser.parse_args(arguments)
    for option, needed in (
        ("checkpoint", "run"),
        ("baselines", "run"),
        ("gallery", "embeddings"),
        ("record", "verification"),
        ("roc", "verification"),
    ):
        if getattr(options, option) and not getattr(options, needed):
            parser.error(f"--{option} goes with --{needed}")
    for option, suffix in (("record", ".json"), ("roc", ".png")):
        if (file := getattr(options, option)) and file.suffix.lower() != suffix:
            parser.error(f"--{option} is {str(file)!r}; it must end in {suffix}")
    return options


if __name__ == "__main__":
    prepare_process()
    main()
