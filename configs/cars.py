"""Cars196 with the reference's settings: 98 training classes and 98 other test classes.

    python -m proxynca_jax.train --config configs/cars.py --config.data.root=/data/cars196

Expected scores, which the PyTorch reference reports, from converted ImageNet weights:

                                    R@1     NMI
    best epoch (15)                 72.19   62.45
    mean of the last five epochs    70.79   60.77

The reference took about 35 s per epoch on a Titan X.
"""

from proxynca_jax.config import DataConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(data=DataConfig(dataset="cars"), optim=OptimConfig(epochs=50))
