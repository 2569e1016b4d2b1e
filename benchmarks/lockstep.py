"""Compares training losses step by step: ours and PyTorch's, from the same weights on the same batches.

    python -m benchmarks.lockstep [--setting cub|sop] [--steps 20] [--batch-size 8] [--output lockstep.png]

The images are glyphs at 227 pixels through our pipeline. Both learning rates decay every ten steps. A third run is
PyTorch in float64. Its difference from PyTorch in float32 shows the effect of rounding, which is the baseline for our
difference from PyTorch.

Absolute differences of the losses, measured over 20 steps on a 2-core AMD EPYC with jax 0.10.2 and torch 2.13.0. The
losses themselves are from 8 to 19.

    setting                    at step 1           median              largest
    cub   ours - PyTorch       3.5e-05             4.4e-03             1.6e-02
          PyTorch - float64    3.6e-05             4.4e-03             2.2e-02
    sop   ours - PyTorch       7.2e-05             4.0e-03             1.2e-02
          PyTorch - float64    7.3e-05             3.2e-03             2.0e-02

The rows of sop were measured before the network's sums were reordered for speed.

Our losses agree with PyTorch's as well as PyTorch's float32 losses agree with its float64 losses. From the second step
on, the differences of both comparisons are a hundred times those of the first step.
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
from convert.bn_inception import from_state_dict
from proxynca_jax import steps
from proxynca_jax.config import DataConfig, LossConfig, ModelConfig, OptimConfig
from proxynca_jax.data.datasets import load_dataset
from proxynca_jax.data.pipeline import Batch, training_batches
from proxynca_jax.optim import make_optimizer
from proxynca_jax.weights import NAMES
from proxynca_jax.weights.converted_file import flatten

EPOCH_STEPS = 10
SETTINGS = {  # loss, optimiser, classes
    "cub": (LossConfig(), OptimConfig(), 259),  # as many proxies as glyphs has training classes
    "sop": (LossConfig(embedding_scale=1.0, proxy_scale=8.0), OptimConfig(proxy_learning_rate=10.0), 11_318),
}
Losses = Iterator[float]


def flax_losses(batches: list[Batch], loss: LossConfig, optim: OptimConfig, classes: int) -> Losses:
    """Trains our network and yields its loss at each step."""
    optimizer = make_optimizer(optim, steps_per_epoch=EPOCH_STEPS)
    graph, state = steps.init_state(ModelConfig(), optimizer, classes=classes, seed=0)
    train_step = steps.make_train_step(graph, loss, optimizer)
    for batch in batches:
        state, value = train_step(state, jax.tree.map(jnp.asarray, batch))
        yield float(value)


def torch_losses(
    batches: list[Batch], loss: LossConfig, optim: OptimConfig, classes: int, dtype: torch.dtype
) -> Losses:
    """Trains PyTorch's network, from the same weights as `flax_losses`, and yields its loss at each step."""
    optimizer = make_optimizer(optim, steps_per_epoch=EPOCH_STEPS)
    _, state = steps.init_state(ModelConfig(), optimizer, classes=classes, seed=0)
    leaves = flatten(state.network()._asdict())
    converted = dict(NAMES["bn_inception"].to_torch(name, np.asarray(leaf)) for name, leaf in leaves.items())
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
    """Plots the losses in one panel and their absolute differences in the panel below."""
    figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(7, 6), layout="constrained")
    ours, single, double = losses.values()
    step = np.arange(1, len(ours) + 1)
    for (name, values), style in zip(losses.items(), ("-", "--", ":"), strict=True):
        above.plot(step, values, style, label=name)
    below.semilogy(step, np.abs(ours - single), label="ours − PyTorch float32")
    below.semilogy(step, np.abs(single - double), ":", label="PyTorch float32 − float64")
    below.xaxis.get_major_locator().set_params(integer=True)
    above.set(title=title, ylabel="loss")
    below.set(xlabel="step", ylabel="difference of the losses")
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="cub")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", default="lockstep.png", help="the plot (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.batch_size < 2:
        parser.error("--steps must be at least 1, and --batch-size at least 2 for the statistics of BatchNorm")
    data = DataConfig(dataset="glyphs", horizontal_flip=False)
    stream = training_batches(load_dataset(data).train, data, batch_size=arguments.batch_size, seed=0, epoch=0)
    batches = list(itertools.islice(stream, arguments.steps))
    stream.close()
    if len(batches) < arguments.steps:
        parser.error(f"glyphs has {len(batches)} batches of {arguments.batch_size}, fewer than --steps")
    runs: dict[str, Callable[..., Losses]] = {
        "ours, float32": flax_losses,
        "PyTorch, float32": lambda *setting: torch_losses(*setting, torch.float32),
        "PyTorch, float64": lambda *setting: torch_losses(*setting, torch.float64),
    }
    iterators = [run(batches, *SETTINGS[arguments.setting]) for run in runs.values()]
    titles = f"{'ours':>10}  {'PyTorch':>10}  {'difference':>10}  {'PyTorch float32 − float64':>26}"
    print(f"{'step':>4}  {titles}", flush=True)
    rows = []
    for step, row in enumerate(zip(*iterators, strict=True), 1):
        ours, single, double = row
        print(
            f"{step:4}  {ours:10.6f}  {single:10.6f}  {abs(ours - single):10.1e}  {abs(single - double):26.1e}",
            flush=True,
        )
        rows.append(row)
    columns = dict(zip(runs, np.array(rows).T, strict=True))
    title = f"{arguments.setting}: jax {jax.__version__}, torch {torch.__version__}, {jax.devices()[0].device_kind}"
    draw(arguments.output, columns, title)
    print(f"plot: {arguments.output}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()
