"""Benchmarks verification from all pairs of one set of embeddings: seconds and peak memory.

    python -m benchmarks.verification [--size sop]

The embeddings are those of `benchmarks.metrics`: class centres plus noise, as unit vectors. Peak memory is the peak of
the process minus its memory after loading the embeddings and the libraries.

Measured on 2 cores of an AMD EPYC (numpy 2.4.6): 60,502 × 64 (sop), 1.8e9 pairs: 21 s otherwise idle, 35 to 42 s with
two other busy processes; 200 MB.
"""

import argparse
import time

from benchmarks.metrics import SIZES, make_embeddings
from benchmarks.metrics_methods import peak_mb
from proxynca_jax.metrics.verification import verify
from proxynca_jax.report.verification_card import verification_card


def main() -> None:
    summary, *_ = str(__doc__).splitlines()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verification", description=summary)
    parser.add_argument("--size", choices=SIZES, default="sop", help="of the set (default: sop)")
    embeddings, labels = make_embeddings(SIZES[parser.parse_args().size])
    before_mb, start = peak_mb(), time.perf_counter()
    found = verify(embeddings, labels)
    seconds = time.perf_counter() - start
    print(verification_card(found))
    print(f"\n{seconds:.1f} s, {peak_mb() - before_mb:.0f} MB")


if __name__ == "__main__":
    main()
