"""Computes Recall@K by the methods of `benchmarks.metrics`, one per process: `metrics_methods METHOD FOLDER`.

Each method is a function from unit vectors and labels to the recalls at KS. Each imports its own library, so its memory
and threads do not affect other methods.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

KS = (1, 2, 4, 8)
WARM_UP_IMAGES = 512
PACKAGES = {"ours": "jax", "torch": "torch", "faiss": "faiss", "sklearn": "sklearn"}


def ours(embeddings: np.ndarray, labels: np.ndarray) -> list[float]:
    from proxynca_jax.metrics.retrieval import ranks, recall_at_k

    # `ranks` returns a NumPy array, so the device has finished.
    return list(recall_at_k(ranks(embeddings, labels), KS).values())


def torch(embeddings: np.ndarray, labels: np.ndarray) -> list[float]:
    import torch

    vectors = torch.from_numpy(embeddings)
    distances = torch.cdist(vectors, vectors)
    distances.fill_diagonal_(torch.inf)
    return recalls(distances.topk(max(KS), largest=False).indices.numpy(), labels)


def faiss(embeddings: np.ndarray, labels: np.ndarray) -> list[float]:
    import faiss

    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    _, found = index.search(embeddings, max(KS) + 1)
    # Excludes the query by its row. If duplicates have displaced it, the last neighbour is excluded instead.
    keep = found != np.arange(len(found))[:, None]
    keep[keep.all(1), -1] = False
    return recalls(found[keep].reshape(-1, max(KS)), labels)


def sklearn(embeddings: np.ndarray, labels: np.ndarray) -> list[float]:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=max(KS), algorithm="brute").fit(embeddings)
    return recalls(search.kneighbors(return_distance=False), labels)


def recalls(neighbours: np.ndarray, labels: np.ndarray) -> list[float]:
    hits = labels[neighbours] == labels[:, None]
    return [float(hits[:, :k].any(1).mean()) for k in KS]


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], list[float]]] = {
    "ours": ours,
    "torch": torch,
    "faiss": faiss,
    "sklearn": sklearn,
}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Prints JSON: recalls, seconds of the search, seconds of the warm-up, peak memory and version."""
    name, folder = sys.argv[1:]
    embeddings, labels = (np.load(Path(folder, f"{array}.npy")) for array in ("embeddings", "labels"))
    package, method = importlib.import_module(PACKAGES[name]), METHODS[name]
    first = slice(None if name == "ours" else WARM_UP_IMAGES)  # our programs are compiled per number of images
    before_mb, start = peak_mb(), time.perf_counter()
    method(embeddings[first], labels[first])
    first_seconds, start = time.perf_counter() - start, time.perf_counter()
    found = method(embeddings, labels)
    seconds = time.perf_counter() - start
    memory = {"peak_mb": peak_mb() - before_mb, "version": package.__version__}
    print(json.dumps({"recalls": found, "seconds": seconds, "first_seconds": first_seconds, **memory}))


if __name__ == "__main__":
    main()
