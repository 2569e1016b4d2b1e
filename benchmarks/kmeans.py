"""Benchmarks k-means for NMI, ours on the device compared with scikit-learn's, and compares their NMI.

    python -m benchmarks.kmeans [--sizes cub sop] [--repeats 3]

The embeddings are those of `benchmarks.metrics`, with another random set for each repeat. There are 10 restarts at CUB
size and one at SOP size. The two implementations take turns, each run in a process of its own. Our first call in a
process compiles: this is the cost of a single evaluation. The second call is the cost of every later evaluation in a
training run. scikit-learn's k-means is called once.

Measured on 2 cores of an AMD EPYC, otherwise idle (jax 0.10.2, scikit-learn 1.9.1), medians of 3 sets at CUB size, one
set at SOP size:

                             first call    later call    NMI of each set
    cub   device             2.57 s        0.56 s        91.51  90.11  91.48
          scikit-learn       0.88 s        0.88 s        90.86  90.46  90.69
    sop   device             20.7 s        18.6 s        89.91
          scikit-learn       183 s         183 s         90.02
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from benchmarks.metrics import SIZES, make_embeddings
from proxynca_jax.config import COUNT
from proxynca_jax.machine.arguments import integer
from proxynca_jax.metrics.clustering import nmi

RESTARTS = {"cub": 10, "cars": 10, "sop": 1}
CALLS = {"device": 2, "scikit-learn": 1}


def measure(name: str, implementation: str, seed: int) -> dict[str, float]:
    """Clusters one set of embeddings in this process. Returns NMI, and the seconds of the first and the last call."""
    embeddings, labels = make_embeddings(SIZES[name], seed)
    seconds = []
    for _ in range(CALLS[implementation]):
        start = time.perf_counter()
        score = nmi(
            embeddings,
            labels,
            restarts=RESTARTS[name],
            average="arithmetic",
            seed=seed,
            implementation=implementation,
        )
        seconds.append(time.perf_counter() - start)
    return {"nmi": score, "first": seconds[0], "seconds": seconds[-1]}


def in_a_process(name: str, implementation: str, seed: int) -> dict[str, float]:
    call = (
        f"import json; from benchmarks.kmeans import measure; print(json.dumps(measure{(name, implementation, seed)}))"
    )
    program = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    if program.returncode:
        sys.exit(f"{implementation} failed: {program.stderr.strip().splitlines()[-1]}")
    return json.loads(program.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=RESTARTS, default=["cub", "sop"])
    parser.add_argument("--repeats", type=integer(COUNT), default=3)
    arguments = parser.parse_args()
    for name in arguments.sizes:
        print(f"{name}: {SIZES[name].images:,} images, {SIZES[name].classes:,} clusters, {RESTARTS[name]} restarts")
        runs = [{kind: in_a_process(name, kind, seed) for kind in CALLS} for seed in range(arguments.repeats)]
        baseline = statistics.median(run["scikit-learn"]["seconds"] for run in runs)
        for kind in CALLS:
            first, later = (statistics.median(run[kind][key] for run in runs) for key in ("first", "seconds"))
            scores = "  ".join(f"{100 * run[kind]['nmi']:.2f}" for run in runs)
            times = f"first call {first:.2f} s ({baseline / first:.1f}x), later {later:.2f} s ({baseline / later:.1f}x)"
            print(f"  {kind:13} {times}  NMI {scores}", flush=True)


if __name__ == "__main__":
    main()
