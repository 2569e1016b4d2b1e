"""Size and time of a report at the size of Stanford Online Products, from drawn images and drawn embeddings.

    python -m benchmarks.report_page --output /tmp/report.html

Measured on 2 cores of an Intel Xeon (AVX-512, AMX) that other programs kept busy: 8.11 MB, 136 s of CPU time, 402 s.

The images are noise on a plane, 256 pixels a side, in memory. JPEG compresses photographs better than noise. The
network does not run: a report embeds all images once, which takes as long as it takes.
"""

import argparse
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

from proxynca_jax.config import DataConfig, ModelConfig, TrainConfig
from proxynca_jax.data.split import Evaluation, Split
from proxynca_jax.report.run_page import one_run
from proxynca_jax.report.run_page.read import Scored, Trained

DRAWN = 500  # different images
SIDE, DIM = 256, 64


def draw_split(images: int, classes: int, prefix: str, rng: np.random.Generator) -> Split:
    """Draws a split of which the images repeat."""
    small = rng.integers(0, 256, (DRAWN, 16, 16, 3), np.uint8)
    pixels = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE))) for image in small]
    labels = np.sort(rng.integers(0, classes, images)).astype(np.int32)
    names = [f"{prefix}_{number}.jpg" for number in range(images)]
    rows = [pixels[number % DRAWN] for number in range(images)]
    return Split(rows, names, labels, tuple(f"{prefix} product {label}" for label in range(classes)), digests=names)


def draw_vectors(split: Split, centres: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws unit vectors around the centre of each image's class."""
    return unit(centres[split.labels] + 1.4 * rng.standard_normal((len(split.labels), DIM)))


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--images", type=int, default=60_000, help="to test on, and as many to train on")
    parser.add_argument("--classes", type=int, default=11_316)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    train, test = (draw_split(options.images, options.classes, name, rng) for name in ("train", "test"))
    trained_on, tested_on = (rng.standard_normal((options.classes, DIM)) for _ in range(2))
    config = TrainConfig(data=DataConfig(dataset="sop"), model=ModelConfig(embedding_dim=DIM))
    config.evaluation.nmi = False
    network: Any = None
    about = (pathlib.Path("drawn"), "best", config, 0, [], network, "drawn")
    scored = Scored(*about, train, Evaluation(test), draw_vectors(test, tested_on, rng), None)
    trained = Trained(draw_vectors(train, trained_on, rng), unit(trained_on), "")
    one_run.read_scored, one_run.read_trained = lambda *_: scored, lambda _: trained
    start, worked = time.perf_counter(), time.process_time()
    page = one_run.one_run_page(pathlib.Path("drawn"), "best").encode()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    output = options.output or pathlib.Path(tempfile.mkdtemp()) / "report.html"
    output.write_bytes(page)
    size = f"{options.images:,} images of {options.classes:,} classes"
    print(f"{size}: {len(page) / 1e6:.2f} MB in {seconds:.0f} s, {worked:.0f} s of CPU time: {output}")


if __name__ == "__main__":
    main()
