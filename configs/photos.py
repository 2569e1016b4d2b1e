"""draft"""

from proxynca_jax.config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        data=DataConfig(dataset="folder", image_size=128, resize_size=146, squash=True, crop_area_min=0.3),
        model=ModelConfig(backbone="efficientnet_lite0", weights="efficientnet_lite0", fixed_batch_norm=True),
        optim=OptimConfig(
            epochs=6,
            frozen_epochs=1,
            warmup_epochs=2,
            learning_rate=2e-3,
            embedding_learning_rate=1e-3,
            proxy_learning_rate=3e-2,
            schedule="cosine",
            weight_decay=0.1,
            epsilon=1e-8,
        ),
        evaluation=EvaluationConfig(protocol="validation", kmeans_restarts=1),
    )
