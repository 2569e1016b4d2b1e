"""CUB-200-2011 with the reference's settings: 100 training classes and 100 other test classes.

    python -m proxynca_jax.train --config configs/cub.py --config.data.root=/data/CUB_200_2011

Expected scores, which the PyTorch reference reports, from converted ImageNet weights:

                                    R@1     NMI
    best epoch (17)                 52.63   60.64
    mean of the last five epochs    51.62   59.60

The reference took about 36 s per epoch on a Titan X.
"""

from proxynca_jax.config import DataConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(data=DataConfig(dataset="cub"))
