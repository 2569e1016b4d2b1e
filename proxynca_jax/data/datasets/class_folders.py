"""Reads directories with one folder of images per class."""

from pathlib import Path

from proxynca_jax.data.image_files import file_split, list_images
from proxynca_jax.data.split import Split
from proxynca_jax.errors import UserError


def read_class_folders(root: Path, layout: str) -> Split:
    """Lists the images of each class folder in sorted order, with those in folders below it, as `list_images` does.

    Args:
        root: The directory that contains the class folders.
        layout: What the data set's directory must contain, for the error.

    Raises:
        UserError: If there are no class folders.
    """
    folders = sorted(path for path in root.glob("[!.]*") if path.is_dir())
    if not folders:
        raise UserError(f"{root} contains no class folders. {layout}")
    paths, labels = [], []
    for label, folder in enumerate(folders):
        images = list_images(folder)
        paths += images
        labels += [label] * len(images)
    return file_split(paths, labels, [folder.name for folder in folders])
