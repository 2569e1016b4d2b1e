"""The reference's input pipeline for `benchmarks.input`: torchvision transforms in a torch DataLoader.

The steps are the reference's. Each decoded image is split into its bands, to find out whether it is grey. Training
takes a random resized crop and flips it at random; evaluation resizes and takes the centre crop. Then the host scales
each image in float32 to 0-1, scales it to 0-255, subtracts the mean and converts it to BGR.
"""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset

from proxynca_jax.data.transforms import Box

SIZE, SHORTER_SIDE = 227, 256  # pixels
MEAN = (128.0, 117.0, 104.0)  # RGB


def _import_transforms():
    # PyTorch's CPU build and PyPI's torchvision are incompatible: torchvision's operators are missing, and its import
    # needs two of them by name. Transforms of Pillow images use none.
    try:
        from torchvision import transforms
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        from torchvision import transforms
    return transforms


transforms = _import_transforms()


def _to_tensor() -> list:
    scale = transforms.Lambda(lambda x: (x - 0) / (1 - 0) * (255 - 0) + 0)
    to_bgr = transforms.Lambda(lambda x: x[[2, 1, 0], ...])
    return [transforms.ToTensor(), scale, transforms.Normalize(MEAN, (1.0, 1.0, 1.0)), to_bgr]


TRAINING = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), *_to_tensor()])
EVALUATION = transforms.Compose([transforms.Resize(SHORTER_SIDE), transforms.CenterCrop(SIZE), *_to_tensor()])


def _open(path: Path) -> PIL.Image.Image:
    image = PIL.Image.open(path)
    return image.convert("RGB") if len(image.split()) == 1 else image


class Images(Dataset):
    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return TRAINING(_open(self.paths[index])), 0, index


def training_loader(paths: list[Path], *, batch_size: int, workers: int) -> DataLoader:
    return DataLoader(Images(paths), batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True)


def evaluation_pixels(path: Path) -> np.ndarray:
    """Returns the result of the evaluation transform as RGB uint8."""
    tensor = EVALUATION(_open(path))[[2, 1, 0]] + torch.tensor(MEAN)[:, None, None]
    return tensor.round().to(torch.uint8).permute(1, 2, 0).numpy()


def crop(path: Path, box: Box) -> np.ndarray:
    """Returns a training crop as RGB uint8."""
    return np.asarray(transforms.functional.resized_crop(_open(path), *box, [SIZE, SIZE]))
