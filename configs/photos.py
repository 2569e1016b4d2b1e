"""Your own photographs: one folder per class, 20 to 200 classes, on a CPU or a GPU.

    pip install -e '.[photos]'
    python -m proxynca_jax.train --config configs/photos.py --config.data.root=/data/mine

Half of the classes are for testing. A fifth of the others is held out to choose the epoch (the validation protocol), so
the test classes choose nothing. The network is EfficientNet-Lite0 with ImageNet's weights.

Measured on 5,421 photographs of 81 kinds of groceries, of which 40 test: see docs/photographs.md.

The settings are those of `cars_lite0.py`, which were chosen on training classes of Cars196. Six epochs are fewer,
because on training classes of the groceries ten were no better.
"""

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
