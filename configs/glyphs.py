"""glyphs"""

from proxynca_jax.config import DataConfig, EvaluationConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            dataset="glyphs",
            image_size=32,
            resize_size=32,
            crop_area_min=0.7,
            crop_aspect_max=1.15,
            horizontal_flip=False,
            threads=2,
        ),
        model=ModelConfig(batch_norm_momentum=0.9),
        loss=LossConfig(label_smoothing=0.0),
        optim=OptimConfig(epochs=22, learning_rate=0.002, proxy_learning_rate=0.1, decay_per_epoch=0.9, epsilon=0.01),
        evaluation=EvaluationConfig(batch_size=256, kmeans_restarts=1),
    )
