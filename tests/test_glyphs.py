"""The built-in set: the same bytes everywhere, characters that can be told apart, and what raw pixels retrieve."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from proxynca_jax.config import DataConfig
from proxynca_jax.data.datasets import glyphs, load_dataset
from proxynca_jax.data.split import Split
from proxynca_jax.metrics.retrieval import ranks, recall_at_k


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    dataset = load_dataset(DataConfig(dataset="glyphs"))
    return dataset.train, dataset.evaluation.queries


def test_a_class_is_a_character_and_an_instance_is_a_typeface(splits):
    train, evaluation = splits
    assert not set(train.class_names) & set(evaluation.class_names)
    assert sorted(train.class_names + evaluation.class_names) == sorted(glyphs.CHARACTERS)
    for split in splits:
        assert len(split.images) == len(split.names) == 16 * len(split.class_names)
        assert (np.bincount(split.labels) == 16).all()
        assert {np.shape(image) for image in split.images} == {(64, 64, 3)}
    character = train.class_names[3]
    assert train.names[3 * 16] == f"U+{ord(character):04X}/DejaVuSans"
    np.testing.assert_array_equal(train.images[3 * 16 + 12], glyphs.draw(character, "STIXGeneral"))


def test_the_same_images_on_every_machine(splits):
    """Their colours, sizes and places; another version of FreeType may round an edge differently."""
    means = [np.asarray(splits[0].images[row]).mean((0, 1)) for row in range(3)]
    np.testing.assert_allclose(means, [[234.6, 180.4, 213.6], [164.2, 190.1, 147.1], [229.2, 164.2, 191.6]], atol=0.5)


def test_fraction_and_seed_choose_the_evaluation_characters():
    def evaluated(**options) -> tuple[str, ...]:
        return load_dataset(DataConfig(dataset="glyphs", **options)).evaluation.queries.class_names

    few = evaluated(eval_fraction=0.02)
    assert len(few) == 10
    assert few == evaluated(eval_fraction=0.02) != evaluated(eval_fraction=0.02, split_seed=1)


def test_no_two_characters_look_alike():
    """The rule beside CHARACTERS, on shapes brought to 28 pixels in the middle of 32."""

    def vector(character: str, face: str) -> np.ndarray:
        ink = glyphs.shape(character, face, 28)
        canvas = Image.new("L", (32, 32))
        canvas.paste(ink, ((32 - ink.width) // 2, (32 - ink.height) // 2))
        flat = np.asarray(canvas, np.float32).ravel()
        return flat / np.linalg.norm(flat)

    def similarity(characters: str) -> np.ndarray:
        shapes = np.stack([np.concatenate([vector(c, face) for face in glyphs.FACES]) for c in characters])
        return shapes @ shapes.T / len(glyphs.FACES)

    assert similarity("AΑА").min() > 0.99  # Latin, Greek and Cyrillic: what the rule is for
    assert similarity("cC").min() > 0.8
    among = similarity(glyphs.CHARACTERS) - 2 * np.eye(len(glyphs.CHARACTERS))
    folded = [unicodedata.normalize("NFKC", character).casefold() for character in glyphs.CHARACTERS]
    same_letter = np.equal.outer(np.array(folded), np.array(folded))
    assert among.max() < 0.935  # 0.93 and a margin for another version of FreeType
    assert among[same_letter].max() < 0.81


def test_raw_pixels_retrieve_few_unseen_characters(splits):
    pixels = np.stack([image.ravel() for image in splits[1].images]).astype(np.float32)
    recall = recall_at_k(ranks(pixels, splits[1].labels), [1])[1]
    assert recall == pytest.approx(0.300, abs=0.005)
