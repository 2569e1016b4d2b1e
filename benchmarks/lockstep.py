"""Trains the PyTorch network and ours side by side, from the same weights on the same batches, and compares losses.

    python -m benchmarks.lockstep [--setting cub|sop] [--steps 20] [--batch-size 8] [--output lockstep.png]

The images are glyphs at 227 pixels through our pipeline; both learning rates fall every ten steps. A third run is
PyTorch's in float64: what PyTorch itself loses to float32 is the yardstick for the distance between the two.

Measured over 20 steps, losses from 8 to 19, on a 2-core AMD EPYC, jax 0.10.2, torch 2.13.0:

    setting                    at step 1           median              largest
    cub   ours - PyTorch       3.5e-05             5.3e-03             1.6e-02
          PyTorch - float64    3.6e-05             4.4e-03             2.2e-02
    sop   ours - PyTorch       7.2e-05             4.0e-03             1.2e-02
          PyTorch - float64    7.3e-05             3.2e-03             2.0e-02

The rows of sop are from before the network's sums were reordered for speed.

The two agree as well as PyTorch agrees with itself in float64. From the second step on the distance is a hundred times
that of the first, in both comparisons alike.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import torch
from matplotlib import pyplot

from benchmarks.torch_training import make_adam, proxy_nca
from convert.bn_inception import BN_INCEPTION, from_state_dict
from proxynca_jax import steps
from proxynca_jax.config import DataConfig, LossConfig, ModelConfig, OptimConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.pipeline import Batch, training_batches
from proxynca_jax.optim import make_optimizer
from proxynca_jax.weights import flatten

EPOCH_STEPS = 10
SETTINGS = {  # loss, optimiser, classes
    "cub": (LossConfig(), OptimConfig(), 259),  # as many proxies as glyphs has training classes
    "sop": (LossConfig(embedding_scale=1.0, proxy_scale=8.0), OptimConfig(proxy_learning_rate=10.0), 11_318),
}
Losses = Iterator[float]


def flax_losses(batches: list[Batch], loss: LossConfig, optim: OptimConfig, classes: int) -> Losses:
    """Yields our loss at each step."""
    optimizer = make_optimizer(optim, steps_per_epoch=EPOCH_STEPS)
    graph, state = steps.init_state(ModelConfig(), optimizer, classes=classes, seed=0)
    train_step = steps.make_train_step(graph, loss, optimizer)
    for batch in batches:
        state, value = train_step(state, jax.tree.map(jnp.asarray, batch))
        yield float(value)


def torch_losses(
    batches: list[Batch], loss: LossConfig, optim: OptimConfig, classes: int, dtype: torch.dtype
) -> Losses:
    """Yields PyTorch's loss at each step, from the weights that `flax_losses` starts from."""
    optimizer = make_optimizer(optim, steps_per_epoch=EPOCH_STEPS)
    _, state = steps.init_state(ModelConfig(), optimizer, classes=classes, seed=0)
    leaves = flatten(state.network()._asdict())
    converted = dict(BN_INCEPTION.to_torch(name, np.asarray(leaf)) for name, leaf in leaves.items())
    network = from_state_dict({key: torch.tensor(value) for key, value in converted.items()}).to(dtype)
    proxies = torch.tensor(np.asarray(state.params["proxies"]), dtype=dtype, requires_grad=True)
    adam = make_adam(network, proxies, optim)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, optim.decay_per_epoch)
    for step, batch in enumerate(batches, 1):
        adam.zero_grad()
        embeddings = network(torch.tensor(batch["image"]))
        value = proxy_nca(embeddings, proxies, torch.tensor(batch["label"]), loss)
        value.backward()
        adam.step()
        if step % EPOCH_STEPS == 0:
            decay.step()
        yield value.item()


def draw(path: str, losses: dict[str, np.ndarray], title: str) -> None:
    """Draws the losses over one another and, below, their distances."""
    figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(7, 6), layout="constrained")
    ours, single, double = losses.values()
    step = np.arange(1, len(ours) + 1)
    for (name, values), style in zip(losses.items(), ("-", "--", ":"), strict=True):
        above.plot(step, values, style, label=name)
    below.semilogy(step, np.abs(ours - single), label="ours − PyTorch float32")
    below.semilogy(step, np.abs(single - double), ":", label="PyTorch float32 − float64")
    below.xaxis.get_major_locator().set_params(integer=True)
    above.set(title=title, ylabel="loss")
    below.set(xlabel="step", ylabel="distance of the losses")
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="cub")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", default="lockstep.png", help="the picture (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.batch_size < 2:
        parser.error("--steps needs 1 or more, --batch-size 2 or more, of which BatchNorm takes the statistics")
    data = DataConfig(dataset="glyphs", horizontal_flip=False)
    stream = training_batches(load_dataset(data).train, data, batch_size=arguments.batch_size, seed=0, epoch=0)
    batches = list(itertools.islice(stream, arguments.steps))
    stream.close()
    if len(batches) < arguments.steps:
        parser.error(f"glyphs hold {len(batches)} batches of {arguments.batch_size}, fewer than --steps")
    runs: dict[str, Callable[..., Losses]] = {
        "ours, float32": flax_losses,
        "PyTorch, float32": lambda *setting: torch_losses(*setting, torch.float32),
        "PyTorch, float64": lambda *setting: torch_losses(*setting, torch.float64),
    }
    iterators = [run(batches, *SETTINGS[arguments.setting]) for run in runs.values()]
    print(f"{'step':>4}  {'ours':>10}  {'PyTorch':>10}  {'distance':>8}  {'PyTorch float32 − float64':>26}", flush=True)
    rows = []
    for step, row in enumerate(zip(*iterators, strict=True), 1):
        ours, single, double = row
        print(
            f"{step:4}  {ours:10.6f}  {single:10.6f}  {abs(ours - single):8.1e}  {abs(single - double):26.1e}",
            flush=True,
        )
        rows.append(row)
    columns = dict(zip(runs, np.array(rows).T, strict=True))
    title = f"{arguments.setting}: jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0].device_kind}"
    draw(arguments.output, columns, title)
    print(f"drawn: {arguments.output}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
