"""The configurations that come with the package: `--config cars` means the preset cars."""

from pathlib import Path

from proxynca_jax.errors import UserError, nearest

PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # installed from a wheel, and in a checkout


def presets() -> dict[str, Path]:
    """The files of all presets by name."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), PACKAGE)
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def find_preset(arguments: list[str]) -> list[str]:
    """Replaces the name of a preset after `--config` by its file.

    Args:
        arguments: of the command line. A name is a word without a dot and a slash.

    Returns:
        The same arguments; a file's name stays as it is.

    Raises:
        UserError: for a name that no preset has.
    """
    found = list(arguments)
    for place, argument in enumerate(arguments):
        before, equals, name = argument.partition("=")
        if before not in ("--config", "-config"):
            continue
        if not equals:
            name = arguments[place + 1] if place + 1 < len(arguments) else ""
        if not name or "." in name or "/" in name or "\\" in name:
            continue
        if name not in (valid := presets()):
            raise UserError(f"--config {name} is no preset: {nearest(name, valid)} A file's name ends in .py.")
        if equals:
            found[place] = f"{before}={valid[name]}"
        else:
            found[place + 1] = str(valid[name])
    return found
