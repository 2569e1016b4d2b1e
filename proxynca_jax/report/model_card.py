"""The model card of an exported network: what it is, how to use it, its scores with their definitions, and its limits.

The card has the form of the Hugging Face Hub: Markdown with a YAML head. It contains no path, no image and no name of a
class.
"""

import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from proxynca_jax.config import TrainConfig
from proxynca_jax.data.split import GALLERY, QUERY, TRAIN
from proxynca_jax.models import BACKBONES
from proxynca_jax.report.metric_card import KMEANS, defined_scores, versions
from proxynca_jax.runs.image_list import ListedImage
from proxynca_jax.runs.log import Record
from proxynca_jax.scores import score_names, score_title
from proxynca_jax.weights.packages import PACKAGES

TASK = "image-feature-extraction"  # the Hub's name for it
LICENCE_HINT = """\
# license: mit
# ^ Choose one before you publish. The training images and the weights that training started from have terms, too."""
PROTOCOLS = {
    "reference": (
        "The epoch was chosen by its scores on the classes that it is scored on, so these scores are optimistic."
    ),
    "validation": (
        "The epoch was chosen on {share:.0%} of the training classes, which were held out. The test classes chose "
        "nothing, and were scored once."
    ),
}


def model_card(
    name: str, config: TrainConfig, record: Record | None, images: Sequence[ListedImage] | None, step: int
) -> str:
    """Writes the card.

    Args:
        name: of the model, for the table of scores on the Hub.
        config: of the run.
        record: the log's scores of the exported state. None: it was not scored.
        images: of the run. None: an older version made the run, which kept no list.
        step: of the exported state.

    Returns:
        The text of `README.md`.
    """
    backbone, dim = BACKBONES[config.model.backbone], config.model.embedding_dim
    sections = [
        f"# {backbone.title}: {dim} numbers for an image",
        f"This network turns an image into a float32 vector of {dim} numbers and length 1. Vectors of similar images "
        "have a high cosine. It was trained with proxies (ProxyNCA) to find images of the same class, and tested on "
        "classes that it was not trained on.",
        _usage(dim),
        f"## Scores\n\n{_scores(config, record)}",
        f"## Training\n\n{_table(('', ''), _training(config, images, step))}",
        f"## Limits\n\n{_limits(config)}",
        f"## Versions\n\nExported with {', '.join(f'{name} {version}' for name, version in versions().items())}.",
    ]
    head = yaml.safe_dump(_head(name, config, record, images), sort_keys=False, allow_unicode=True)
    return f"---\n{LICENCE_HINT}\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def _head(
    name: str, config: TrainConfig, record: Record | None, images: Sequence[ListedImage] | None
) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "proxynca_jax",
        "pipeline_tag": TASK,
        "tags": ["image-retrieval", "metric-learning", "proxynca", "jax", "flax", config.model.backbone],
    }
    if record is None:
        return head
    scores = score_names(record)
    counted = f", {_count(images, (QUERY,))}" if images else ""
    result = {
        "task": {"type": TASK, "name": "Retrieval of images of unseen classes"},
        "dataset": {"type": config.data.dataset, "name": f"{config.data.dataset}{counted}", "split": "test"},
        "metrics": [
            {"type": score, "name": f"{score_title(score)} (%)", "value": round(record[score], 2)} for score in scores
        ],
    }
    return head | {"metrics": scores, "model-index": [{"name": name, "results": [result]}]}


def _usage(dim: int) -> str:
    return f"""\
## Use

```bash
pip install 'proxynca_jax[hub]'
```

```python
from proxynca_jax import Embedder

embedder = Embedder.from_pretrained("owner/name")  # this repository, or the path of this folder
vectors = embedder.embed(["a.jpg", "b.jpg"])  # paths, PIL images or uint8 arrays; shape (2, {dim})
cosine = vectors[0] @ vectors[1]
```

`ImageEmbedder` of the same package is a scikit-learn transformer. `config.json` says how images become the network's
input, for programs that do without the package."""


def _scores(config: TrainConfig, record: Record | None) -> str:
    if record is None:
        return "The run's log has no scores of this state on the test classes."
    rows = [(name, f"{value:.2f}", meaning) for name, value, meaning in defined_scores(record, config)]
    protocol = PROTOCOLS[config.evaluation.protocol].format(share=config.evaluation.validation_fraction)
    facts = [
        f"On images of classes that were not trained on, after {record['step']:,} steps. {protocol}",
        _table(("score", "%", "definition"), rows),
        "Neighbours are exact, by cosine distance. Each image searches all others, or the gallery if the data set has "
        "one. Ties go against the query.",
    ]
    if config.evaluation.nmi:
        facts[-1] += (
            f" NMI: as many clusters as classes, by {KMEANS[record['kmeans']]}, best of {record['kmeans_restarts']}, "
            f"seed {config.seed}."
        )
    return "\n\n".join(facts)


def _training(config: TrainConfig, images: Sequence[ListedImage] | None, step: int) -> Iterator[tuple[str, str]]:
    yield "data set", f"`{config.data.dataset}`"
    if images is None:
        yield "images", "not recorded: an older version made the run"
    else:
        held_out = config.evaluation.protocol == "validation"
        share = f"{config.evaluation.validation_fraction:.0%}"
        yield "training images", _count(images, (TRAIN,)) + f", {share} of the classes held out" * held_out
        yield "test images", _count(images, (QUERY, GALLERY))
    yield "started from", describe_start(config.model.weights)
    yield "loss", f"`{config.loss.name}`"
    yield "steps", f"{step:,} of {config.optim.batch_size} images"
    yield "seed", str(config.seed)


def _count(images: Sequence[ListedImage], sides: tuple[str, ...]) -> str:
    chosen = [image for image in images if image.side in sides]
    return f"{len(chosen):,} images of {len({image.class_name for image in chosen}):,} classes"


def describe_start(weights: str) -> str:
    """Names the weights that training started from, without the folders of a path, which are private."""
    if not weights:
        return "random weights"
    if weights in PACKAGES:
        return f"ImageNet's weights of the package `{PACKAGES[weights].distribution}`"
    return f"the weights `{pathlib.Path(weights).name}`"


def _limits(config: TrainConfig) -> str:
    data = config.data
    fit = "squashed to a square" if data.squash else "resized to a shorter side"
    return "\n".join(
        [
            f"- Images are {fit} of {data.resize_size} pixels (Pillow's bilinear filter), and a square of "
            f"{data.image_size} pixels in the middle is used. Smaller details, and what is outside, are not seen.",
            "- The scores hold for images like those of the data set. Measure yours with `proxynca evaluate`.",
            "- Cosines are for comparing images with each other. They are not probabilities.",
            "- The files contain weights and settings: no image, no name of a class, and no code.",
        ]
    )


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
