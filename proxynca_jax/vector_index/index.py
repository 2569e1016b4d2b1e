"""The index as Python and the commands use it: opened by its address, with the network that made its vectors."""

import contextlib
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from proxynca_jax.data.given_images import GivenImage
from proxynca_jax.embedder import Embedder
from proxynca_jax.errors import UserError
from proxynca_jax.machine.interrupt import never
from proxynca_jax.metrics.verification import threshold_at
from proxynca_jax.runs import verification_file
from proxynca_jax.runs.lock import only_writer
from proxynca_jax.vector_index import is_folder, open_engine
from proxynca_jax.vector_index.approximate import Measured, build_approximate
from proxynca_jax.vector_index.duplicates import Duplicate, default_min_score, find_duplicates
from proxynca_jax.vector_index.engine import About, Engine, Match, check_width, columns, differences
from proxynca_jax.vector_index.update import Changes, embed_again, list_files, update

FORMAT = 1  # of what an index says of itself


class Index:
    """Images that are searched by example.

    index = Index.open("photos.lance", "runs/mine")
    index.add("/data/photographs")
    [matches] = index.search(["query.jpg"], k=10)
    """

    def __init__(self, engine: Engine, about: About, embedder: Embedder | None = None, *, rebuild: bool = False):
        """Call `open` instead.

        Args:
            engine: its rows.
            about: what its vectors are made with.
            embedder: the network. None: load it when it is needed.
            rebuild: let the next `add` embed the images of another network's rows again.
        """
        self.about, self._engine, self._embedder, self._rebuild = about, engine, embedder, rebuild

    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str],
        model: str | os.PathLike[str] | None = None,
        *,
        checkpoint: str = "best",
        rebuild: bool = False,
    ) -> "Index":
        """Opens an index.

        Args:
            address: a folder, a URI of object storage such as `s3://bucket/photos.lance`, or `postgresql://…`.
            model: makes the vectors, as for `Embedder.load`. None: the network that the index was made with. A new
                index needs one. The index takes the thresholds of a run, which `evaluate --verification` measures.
            checkpoint: of a run: "best" or "latest".
            rebuild: if the index was made with another network, let the next `add` embed all its images again.
                Until then, searches find the old vectors.

        Raises:
            UserError: if there is no index and no model, or if the index was made with another network.
        """
        engine = open_engine(os.fspath(address))
        address = engine.address  # without a password
        described = engine.describe()
        if model is None:
            if described is None:
                make = f"proxynca index FOLDER -o {address} --model RUN"
                raise UserError(f"there is no index at {address}. Make one: {make}")
            return cls(engine, described[0])
        embedder = Embedder.load(model, checkpoint=checkpoint)
        about = {"format": FORMAT, **embedder.about}
        faults = differences(described[0], about) if described else []
        if described and faults and not rebuild:
            raise UserError(
                f"{address} was made with another network, {described[0].get('model')}: {'; '.join(faults)}. "
                "Vectors of two networks cannot be compared. Use the network of the index, choose another address, or "
                "add --rebuild to embed its images again."
            )
        points = verification_file.operating_points(Path(model).expanduser(), about["weights"])
        if points is None and described and not faults:  # those of before are of the same network
            points = described[0].get("operating_points")
        if points is not None:
            about["operating_points"] = points
        return cls(engine, about, embedder, rebuild=bool(faults))

    @property
    def address(self) -> str:
        """Where the index is, without a password."""
        return self._engine.address

    def __len__(self) -> int:
        """The number of images that searches see."""
        described = self._engine.describe()
        return described[1] if described else 0

    @property
    def engine(self) -> Engine:
        """The rows, for reads and for searches by a vector."""
        return self._engine

    @property
    def embedder(self) -> Embedder:
        """The network that made the vectors.

        Raises:
            UserError: if it is not where it was, or has changed.
        """
        if self._embedder is None:
            model = self.about["model"]
            embedder = Embedder.load(model, checkpoint=self.about.get("checkpoint", "best"))
            if faults := differences(self.about, embedder.about):
                raise UserError(
                    f"{model} is not the network any more that made {self._engine.address}: {'; '.join(faults)}. "
                    f"Update the index: proxynca index FOLDER -o {self._engine.address} --model {model} --rebuild"
                )
            self._embedder = embedder
        return self._embedder

    def add(
        self,
        folder: str | os.PathLike[str],
        check: Callable[[], None] = never,
        *,
        share: tuple[int, int] = (0, 1),
        progress: bool = False,
    ) -> Changes:
        """Adds the new and changed images of a folder, and removes those that are gone from it.

        Args:
            folder: of images, at any depth. The first folder on the way to an image is its label.
            check: called often; raises to stop. What is embedded by then stays, and the next call goes on.
            share: the number of this process, from 0, and how many processes share the files of the folder.
            progress: show a bar on a terminal.

        Returns:
            What was done.

        Raises:
            UserError: if the folder has no images, or another process writes to the index.
        """
        alone = share == (0, 1)
        if self._rebuild and not alone:
            raise UserError("--rebuild is for one process: the new vectors replace the old ones all at once.")
        listed = list_files(Path(folder))
        local = is_folder(self._engine.address)
        lock = only_writer(Path(self._engine.address), doing="written to", option="index", among_others=not alone)
        with lock if local else contextlib.nullcontext():
            before = dict(columns(self._engine, ("path", "label"))) if self._rebuild else {}
            self._engine.begin(self.about)
            if self._engine.describe() is None:  # searches see a new index grow
                self._engine.publish(self.about)
            if before:
                embed_again(self._engine, before, self.embedder, check, progress=progress)
            changes = update(self._engine, listed.share(*share), self.embedder, check, progress=progress)
            self._engine.publish(self.about)
            self._rebuild = False
        return changes

    def threshold(self, max_far: float) -> float:
        """Returns the cosine similarity from which on two images count as the same.

        Args:
            max_far: the share of pairs of two classes that are taken for the same, one of the measured ones.

        Raises:
            UserError: if the index has no threshold for it.
        """
        model, address = self.about.get("model"), self._engine.address
        make = (
            f"Measure thresholds with proxynca evaluate --run {model} --verification, then update the index: "
            f"proxynca index FOLDER -o {address} --model {model}"
        )
        if "operating_points" not in self.about:
            raise UserError(f"{address} has no thresholds. {make}")
        try:
            return threshold_at(self.about, max_far)
        except UserError as error:
            raise UserError(f"{address}: {error} Choose one of these, or evaluate more images. {make}") from error

    def approximate(self) -> Measured:
        """Builds an approximate index of the vectors for `search(..., exact=False)`, and measures it.

        Raises:
            UserError: if exact search is fast enough.
        """
        return build_approximate(self._engine)

    def duplicates(self, min_score: float | None = None, *, progress: bool = False) -> list[list[Duplicate]]:
        """Finds groups of images that are the same or nearly so, as `find_duplicates` does.

        Args:
            min_score: the cosine similarity from which on two images are similar. None: `default_min_score`.
            progress: show a bar on a terminal.
        """
        score = default_min_score(self.about) if min_score is None else min_score
        return find_duplicates(self._engine, score, progress=progress)

    def search(
        self,
        images: Iterable[GivenImage],
        k: int = 10,
        *,
        where: str | None = None,
        exact: bool = True,
        max_far: float | None = None,
    ) -> list[list[Match]]:
        """Finds the images that are most similar to each query.

        Args:
            images: the queries, as for `Embedder.embed`.
            k: how many to find; there are fewer if the index has fewer.
            where: a condition in SQL on path, label, size, modified_ns and digest, such as `label = 'cat'`.
            exact: compare all. Otherwise use the approximate index.
            max_far: find only images that are similar enough for this false accept rate, as in `threshold`.

        Returns:
            For each query its matches, the most similar first.

        Raises:
            UserError: for what is not an image, a condition that is no SQL, a rate without a threshold, or if there is
                no approximate index.
        """
        if not exact and not self._engine.is_approximate():
            raise UserError(
                f"{self._engine.address} has no approximate index. Build one: proxynca index FOLDER -o "
                f"{self._engine.address} --approximate"
            )
        least = -math.inf if max_far is None else self.threshold(max_far)
        vectors = self.embedder.embed(images)
        check_width(self._engine.address, self.about, vectors)
        found = self._engine.search(vectors, k, where, exact=exact)
        return [[match for match in matches if match.score >= least] for matches in found]
