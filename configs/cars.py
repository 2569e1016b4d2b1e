"""Cars196 with the reference's settings: 98 classes to train on, 98 others to evaluate on.

    python -m proxynca_jax.train --config configs/cars.py --config.data.root=/data/cars196

Expected from converted ImageNet weights, as the PyTorch reference reports it: R@1 72.19, NMI 62.45 at its best epoch
(15); 70.79 and 60.77 over its last five. The reference took about 35 s an epoch on a Titan X.
"""

from proxynca_jax.config import DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(data=DataConfig(dataset="cars"), optim=OptimConfig(epochs=50))
