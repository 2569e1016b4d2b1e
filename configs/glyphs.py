"""glyphs"""

from proxynca_jax.config import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)


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
        loss=LossConfig(embedding_scale=4.0, proxy_scale=4.0),
        optim=OptimConfig(
            epochs=20, batch_size=64, learning_rate=0.001, proxy_learning_rate=0.03, decay_per_epoch=0.85, epsilon=1e-3
        ),
        evaluation=EvaluationConfig(batch_size=256),
    )
