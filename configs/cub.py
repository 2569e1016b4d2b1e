"""CUB-200-2011 with the reference's settings: 100 classes to train on, 100 others to evaluate on.

    python -m proxynca_jax.train --config configs/cub.py --config.data.root=/data/CUB_200_2011

Expected from converted ImageNet weights, as the PyTorch reference reports it: R@1 52.63, NMI 60.64 at its best epoch
(17); 51.62 and 59.60 over its last five. The reference took about 36 s an epoch on a Titan X.
"""

from proxynca_jax.config import DataConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(data=DataConfig(dataset="cub"))
