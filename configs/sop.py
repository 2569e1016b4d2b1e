"""Stanford Online Products with the reference's settings: 11,318 training classes and 11,316 other test classes.

    python -m proxynca_jax.train --config configs/sop.py --config.data.root=/data/Stanford_Online_Products

Expected scores, which the PyTorch reference reports, from converted ImageNet weights:

                                         R@1
    epoch 16, which its README quotes    74.07
    mean of the last five epochs         73.22

The reference took about 194 s per epoch on a Titan X. It does not compute NMI on this data set. We compute NMI from one
k-means run on the device, because scikit-learn's k-means takes minutes for so many classes.
"""

from proxynca_jax.config import DataConfig, EvaluationConfig, LossConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        data=DataConfig(dataset="sop"),
        loss=LossConfig(embedding_scale=1.0, proxy_scale=8.0),
        optim=OptimConfig(epochs=50, proxy_learning_rate=10.0),
        evaluation=EvaluationConfig(kmeans="device", kmeans_restarts=1),
    )
