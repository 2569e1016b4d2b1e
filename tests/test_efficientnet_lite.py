"""EfficientNet-Lite with its published weights, against PyTorch: shapes, FLOP, outputs, gradients, and ImageNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.flop_counter import FlopCounterMode

from convert.efficientnet_lite import TorchEfficientNetLite
from convert.twins import TWINS
from proxynca_jax.config import ModelConfig
from proxynca_jax.models import BACKBONES
from proxynca_jax.models.backbone import normalise
from proxynca_jax.models.efficientnet_lite import Block, blocks
from proxynca_jax.models.network import Tree, Variables, forward_flops, init_network
from proxynca_jax.weights import NAMES
from proxynca_jax.weights.converted_file import flatten
from proxynca_jax.weights.pretrained import fill, read_weights

SIZES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
PALACE = 698  # ImageNet's class of scikit-learn's photograph of the Summer Palace


@functools.cache
def loaded(name: str) -> tuple[nnx.GraphDef, Variables, dict[str, torch.Tensor]]:
    """The network with the published weights, and its state dict."""
    weights = read_weights(name)
    graph, fresh = init_network(ModelConfig(backbone=name), np.random.default_rng(0))
    state = dict(NAMES[name].to_torch(path, value) for path, value in weights.tensors.items())
    return graph, fill(fresh, weights, name), {key: torch.tensor(np.array(value)) for key, value in state.items()}


def photographs(size: int) -> np.ndarray:
    """Four crops of each of two photographs, RGB bytes."""
    crops = [image[:400, left : left + 400] for image in load_sample_images().images for left in (0, 80, 160, 240)]
    return np.stack([np.asarray(Image.fromarray(crop).resize((size, size))) for crop in crops])


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_blocks_of_the_smallest_network():
    assert blocks(1.0, 1.0)[:4] == [
        Block(32, 32, 16, 3, 1),
        Block(16, 96, 24, 3, 2),
        Block(24, 144, 24, 3, 1),
        Block(24, 144, 40, 5, 2),
    ]
    # The shapes of the weights do not show strides.
    assert [block.stride for block in blocks(1.0, 1.0)] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    assert [len(blocks(*size)) for size in SIZES.values()] == [16, 21, 21]
    assert blocks(*SIZES["efficientnet_lite2"])[-1] == Block(208, 1248, 352, 3, 1)


@pytest.mark.parametrize("image_size", [97, 128])
@pytest.mark.parametrize("name", SIZES)
def test_forward_flops_are_what_pytorch_counts(name, image_size):
    network = TorchEfficientNetLite(*SIZES[name], {"embedding_layer": 64}).to("meta").eval()
    images = torch.empty(1, image_size, image_size, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert forward_flops(ModelConfig(backbone=name, embedding_dim=64), image_size) == counter.get_total_flops()


def ours_and_theirs(name: str, size: int, *, train: bool) -> tuple[Tree, Tree, dict, dict]:
    """Outputs of every stage and gradients by key of the state dict: ours in float32, PyTorch's in float64."""
    graph, variables, state = loaded(name)
    images, weights = jnp.array(photographs(size)), np.random.default_rng(0).standard_normal((8, 1280))

    def loss(params: Tree) -> tuple[jax.Array, Tree]:
        model = nnx.merge(graph, params, variables.batch_stats)
        stages = dict(model.backbone.stages(normalise(images, model.preprocessing), train=train))
        return jnp.sum(stages["global_pool"] * weights), stages

    (_, stages), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables.params)
    leaves = flatten({"params": {"backbone": gradients["backbone"]}})
    ours = dict(NAMES[name].to_torch(path, np.asarray(leaf)) for path, leaf in leaves.items())

    twin = TWINS[name](state).double().train(train)
    expected = dict(twin.stages(torch.tensor(np.array(images))))
    (expected["global_pool"] * torch.tensor(weights)).sum().backward()
    theirs = {key: leaf.grad.numpy() for key, leaf in twin.named_parameters() if leaf.grad is not None}
    return stages, {key: x.detach().movedim(1, -1).numpy() for key, x in expected.items()}, ours, theirs


@pytest.mark.slow
@pytest.mark.parametrize(("size", "train", "stage_bound"), [(128, False, 1e-5), (97, True, 5e-5)])
def test_published_weights_give_pytorchs_outputs_and_gradients(size, train, stage_bound):
    stages, expected, ours, theirs = ours_and_theirs("efficientnet_lite0", size, train=train)
    assert stages.keys() == expected.keys()
    for name, values in expected.items():
        assert relative(np.asarray(stages[name]), values) < stage_bound, name
    assert ours.keys() == theirs.keys()
    # ReLU6 passes or stops a gradient at its limits, where float32 decides by its last bit. And in training the next
    # BatchNorm cancels the bias of a projection, whose gradient then is rounding alone. Processors differ: the largest
    # error was below 1e-2 on an AMD EPYC, and 1.1e-2 on an Intel Xeon with XLA's convolutions and with oneDNN's.
    for key, gradient in theirs.items():
        assert np.linalg.norm(ours[key] - gradient) < 2e-2 * (np.linalg.norm(gradient) + 0.01), key
    assert relative(ours["_conv_head.weight"], theirs["_conv_head.weight"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_lite1", "efficientnet_lite2"])
def test_larger_networks_give_pytorchs_outputs(name):
    graph, variables, state = loaded(name)
    images = photographs(96)
    model = nnx.merge(graph, *variables)
    found = model.backbone(normalise(jnp.array(images), model.preprocessing), train=False)
    with torch.no_grad():
        *_, (_, expected) = TWINS[name](state).double().eval().stages(torch.tensor(images))
    assert relative(np.asarray(found), expected.numpy()) < 1e-5


@pytest.mark.parametrize("name", SIZES)
def test_the_classifier_recognises_a_photograph(name):
    graph, variables, state = loaded(name)
    size = BACKBONES[name].preprocessing.image_size
    model = nnx.merge(graph, *variables)
    images = jnp.array(photographs(size)[:3])
    features = jax.jit(lambda images: model.backbone(normalise(images, model.preprocessing), train=False))(images)
    scores = np.asarray(features) @ state["_fc.weight"].numpy().T + state["_fc.bias"].numpy()
    np.testing.assert_array_equal(np.argmax(scores, 1), PALACE)


def test_folding_keeps_features_and_gradients():
    graph, variables, _ = loaded("efficientnet_lite0")
    images = jnp.array(photographs(32))

    def features(params: Tree, folded: bool) -> jax.Array:
        model = nnx.merge(graph, params, variables.batch_stats)
        if folded:
            model.fold()
        return model.backbone(normalise(images, model.preprocessing), train=False)

    plain, folded = (jax.jit(features, static_argnums=1)(variables.params, each) for each in (False, True))
    assert relative(np.asarray(folded), np.asarray(plain)) < 1e-5
    of_head = [
        jax.jit(jax.grad(lambda params, each: jnp.sum(features(params, each)[:, ::3]), 0), static_argnums=1)(
            variables.params, each
        )["backbone"]["head_bn"]
        for each in (False, True)
    ]
    for leaf in ("scale", "bias"):
        assert relative(np.asarray(of_head[1][leaf]), np.asarray(of_head[0][leaf])) < 1e-4
