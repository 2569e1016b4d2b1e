"""Stanford Online Products with the reference's settings: 11,318 classes to train on, 11,316 others to evaluate on.

    python -m proxynca_jax.train --config configs/sop.py --config.data.root=/data/Stanford_Online_Products

Expected from converted ImageNet weights, as the PyTorch reference reports it: R@1 74.07 at its best epoch (16); 73.22
over its last five. The reference took about 194 s an epoch on a Titan X, and does not compute NMI here; ours clusters
on the device, once, since scikit-learn's k-means takes minutes for so many classes.
"""

from proxynca_jax.config import DataConfig, EvaluationConfig, LossConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        data=DataConfig(dataset="sop"),
        loss=LossConfig(embedding_scale=1.0, proxy_scale=8.0),
        optim=OptimConfig(epochs=50, proxy_learning_rate=10.0),
        evaluation=EvaluationConfig(kmeans="device", kmeans_restarts=1),
    )
