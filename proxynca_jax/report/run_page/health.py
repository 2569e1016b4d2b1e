"""Whether a run is sound: how its embeddings, proxies, images and clock look, each with what it means."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int

from proxynca_jax.config import TrainConfig
from proxynca_jax.machine.devices import describe_devices
from proxynca_jax.machine.peak_flops import peak_flops
from proxynca_jax.machine.precision import computed_in
from proxynca_jax.metrics.alignment import alignment, uniformity
from proxynca_jax.metrics.neighbours import nearest
from proxynca_jax.metrics.vectors import spread
from proxynca_jax.models.network import TRAINING_PASSES, forward_flops
from proxynca_jax.report.run_page.read import Scored, Trained
from proxynca_jax.runs.log import Record
from proxynca_jax.scores import COLLAPSED

NEARLY_THE_SAME = 0.99  # cosine of two embeddings from which on their images may show the same
PAIRS_SHOWN = 6
WAITS = 0.2  # share of the time from which on the data are what limits training


class Fact(NamedTuple):
    """A line of the page."""

    name: str
    value: str
    meaning: str
    bad: bool = False  # whether to look into it


class Twins(NamedTuple):
    """A test image and a training image that look alike to the network."""

    query: int
    train: int
    cosine: float
    same_content: bool


class Health(NamedTuple):
    """All of it."""

    facts: list[Fact]
    twins: list[Twins]  # the closest PAIRS_SHOWN
    near_proxies: list[tuple[str, str, float]]  # pairs of classes, and the angle between their proxies in degrees
    far_proxies: list[tuple[str, float]]  # classes, and the angle from their proxy to their mean in degrees


def examine(scored: Scored, trained: Trained) -> Health:
    """Measures the health of a run."""
    queries = scored.evaluation.queries
    twins, facts = _twins(scored, trained)
    near, far, proxy_facts = _proxies(scored, trained)
    found = spread(scored.embeddings)
    return Health(
        [
            Fact(
                "spread of the embeddings",
                f"{found:.3f}",
                "Mean squared distance from their mean direction: 1 is everywhere, 0 a collapse to one point.",
                found < COLLAPSED,
            ),
            Fact(
                "alignment",
                f"{alignment(scored.embeddings, queries.labels):.3f}",
                "Mean squared distance of two test images of one class. Lower is better; unrelated images have about "
                "2 × the spread.",
            ),
            Fact(
                "uniformity",
                f"{uniformity(scored.embeddings):.2f}".replace("-", "−"),
                "How evenly the test images fill the sphere (Wang and Isola 2020). Lower is more even; 0 is a "
                "collapse, and evenly spread directions have about −4.",
            ),
            *proxy_facts,
            *facts,
            *_waits(scored.records),
            *_utilisation(scored.config, scored.records),
        ],
        twins,
        near,
        far,
    )


def _twins(scored: Scored, trained: Trained) -> tuple[list[Twins], list[Fact]]:
    """Finds test images that are training images, or look like one."""
    queries, train = scored.evaluation.queries, scored.train
    assert queries.digests is not None  # from the inspection
    assert train.digests is not None
    found = nearest(
        scored.embeddings,
        np.full(len(queries.labels), -1, np.int32),  # no class: theirs are not trained on
        count=1,
        gallery=(trained.embeddings, train.labels),
    )
    cosines, others = 1 - found.distances[:, 0], found.found[:, 0]
    row_of = {digest: row for row, digest in enumerate(train.digests)}
    same = {query: row_of[digest] for query, digest in enumerate(queries.digests) if digest in row_of}
    alike = np.flatnonzero(cosines >= NEARLY_THE_SAME)
    near = [query for query in alike[np.argsort(-cosines[alike])].tolist() if query not in same]
    twins = [
        Twins(query, row, float(scored.embeddings[query] @ trained.embeddings[row]), True)
        for query, row in same.items()
    ]
    twins += [Twins(query, int(others[query]), float(cosines[query]), False) for query in near]
    return twins[:PAIRS_SHOWN], [
        Fact(
            "test images that are training images",
            f"{len(same):,} of {len(queries.labels):,}",
            "The same content on both sides. Scores of such images are not scores of unseen ones.",
            bool(same),
        ),
        Fact(
            "test images that look like one",
            f"{len(near):,} of {len(queries.labels):,}",
            f"Their cosine to a training image is {NEARLY_THE_SAME} or more. Look at those shown below: the "
            "network may only confuse them, or both may show the same thing.",
        ),
    ]


def _proxies(
    scored: Scored, trained: Trained
) -> tuple[list[tuple[str, str, float]], list[tuple[str, float]], list[Fact]]:
    """Compares proxies with the means of their classes and with each other."""
    if trained.proxies is None:
        return [], [], [Fact("proxies", "not known", trained.why_not, True)]
    names, proxies = scored.train.class_names, trained.proxies
    angles = _angles(proxies, _class_means(trained.embeddings, scored.train.labels, len(names)))
    others = nearest(proxies, np.arange(len(proxies)), count=1)
    between = np.degrees(np.arccos(np.clip(1 - others.distances[:, 0], -1, 1)))
    near = {}
    for one in np.argsort(between).tolist():
        pair = tuple(sorted((one, int(others.found[one, 0]))))
        near.setdefault(pair, (names[pair[0]], names[pair[1]], float(between[one])))
    far = [(names[row], float(angles[row])) for row in np.argsort(-angles)[:PAIRS_SHOWN].tolist()]
    median, high = np.median(angles), np.quantile(angles, 0.9)
    facts = [
        Fact(
            "angle of proxy and class mean",
            f"{median:.0f}° (a tenth above {high:.0f}°)",
            "A proxy stands for its class in training. 0°: it points to where the images of its class are. 90°: it has "
            "nothing to do with them.",
            bool(median > 75),
        ),
        Fact(
            "angle of a proxy to the nearest other",
            f"{np.median(between):.0f}° (smallest {between.min():.0f}°)",
            "Proxies that nearly coincide are classes that training does not tell apart.",
            bool(between.min() < 5),
        ),
    ]
    return list(near.values())[:PAIRS_SHOWN], far, facts


def _class_means(
    embeddings: Float32[np.ndarray, "images dim"], labels: Int[np.ndarray, " images"], classes: int
) -> Float32[np.ndarray, "classes dim"]:
    sums = np.zeros((classes, embeddings.shape[1]), np.float32)
    np.add.at(sums, labels, embeddings)
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def _angles(ours: Float32[np.ndarray, "rows dim"], theirs: Float32[np.ndarray, "rows dim"]) -> np.ndarray:
    """The angles of unit vectors row by row, in degrees."""
    return np.degrees(np.arccos(np.clip((ours * theirs).sum(1), -1, 1)))


def _waits(records: list[Record]) -> list[Fact]:
    timed = [record for record in records if "train_seconds" in record]
    seconds = sum(record["train_seconds"] for record in timed)
    if not seconds:
        return []
    share = sum(record["data_wait_share"] * record["train_seconds"] for record in timed) / seconds
    text = "Share of the training time in which the device waited for images. "
    advice = (
        "More data.threads or data.cache would help." if share > WAITS else "The device was the limit, as it should be."
    )
    return [Fact("waiting for data", f"{share:.0%}", text + advice, share > WAITS)]


def _utilisation(config: TrainConfig, records: list[Record]) -> list[Fact]:
    """The model FLOP utilisation (MFU), if this machine is the one that trained."""
    timed = [record for record in records if "images_per_second" in record and "backbone_frozen" not in record]
    if not timed:
        return []
    pace = float(np.median([record["images_per_second"] for record in timed]))
    flops = TRAINING_PASSES * forward_flops(config.model, config.data.image_size) * pace
    facts = [Fact("training speed", f"{pace:,.0f} img/s", f"Median of the epochs; {_rounded(flops)} of the model.")]
    trained_on, here = timed[-1].get("devices"), describe_devices()
    if trained_on != here:
        where = trained_on or "an unknown device"
        meaning = f"It was trained on {where}, and this page was made on {here}. Make it there to measure the peak."
        return [*facts, Fact("MFU", "not known", meaning)]
    peak, source = peak_flops(computed_in(config.model.compute_dtype))
    share, of_peak = flops / peak, f"of the device's peak, {_rounded(peak)} ({source})"
    if share > 1:
        meaning = f"More than 100 % {of_peak}: this peak is too low. It was probably measured while other programs ran."
        return [*facts, Fact("MFU", "not known", meaning)]
    return [*facts, Fact("MFU", f"{share:.0%}", f"Model FLOP utilisation: the share {of_peak}.")]


def _rounded(flops: float) -> str:
    exponent = min(int(math.log10(max(flops, 1)) // 3), 5)
    return f"{flops / 1000**exponent:.3g} {['', 'k', 'M', 'G', 'T', 'P'][exponent]}FLOP/s"
