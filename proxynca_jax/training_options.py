"""The command line of training: its options, and presets by name (`--config cars`)."""

import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from proxynca_jax.config import TrainConfig, flatten
from proxynca_jax.errors import UserError, nearest
from proxynca_jax.machine.arguments import NO_GRAPHS, path

PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # installed from a wheel, and in a checkout


def parse(arguments: list[str], *, about: str, sheet: bool = False) -> flags.FlagValues:
    """Reads the command line of `train`, and of `doctor`, which has one option more.

    Args:
        arguments: of the command line, without the command's name.
        about: what --help prints above the options.
        sheet: whether there is an option `--sheet`.

    Returns:
        The options. `config` is a `TrainConfig`.

    Raises:
        UserError: for anything in it that the user can correct.
    """
    valid = flatten(TrainConfig())
    for argument in arguments:
        if (match := re.match(r"--?(?:no)?config\.([^=]+)", argument)) and match[1] not in valid:
            raise UserError(f"the configuration has no field {match[1]!r}: {nearest(match[1], valid)}")
    words = ["train", *find_preset(arguments)]
    options = _define_options(words)
    if sheet:
        flags.DEFINE_string("sheet", None, "Draw samples as the network sees them: a .png file.", flag_values=options)
    try:
        rest = options(words)
    except flags.Error as error:
        raise UserError(str(error).strip().splitlines()[-1]) from error  # above it, the traceback of a config file
    except (OSError, ImportError, SyntaxError, NameError, AttributeError) as error:
        raise UserError(f"--config cannot be read: {error}") from error
    if options.help:
        print(f"{about}\n{options.get_help()}")
        sys.exit()
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not an option; options start with --, as in --config configs/glyphs.py.")
    if not isinstance(options.config, TrainConfig):
        raise UserError("--config needs a preset or a file whose get_config() returns a TrainConfig: --config glyphs.")
    return options


def _define_options(words: list[str]) -> flags.FlagValues:
    """The command's options, which belong to this call and to no other code that uses absl's flags."""
    options = flags.FlagValues()
    mine: dict[str, Any] = {"flag_values": options}
    config_help = "A preset, a file such as those in configs/, or the config.py of an earlier run."
    config_flags.DEFINE_config_file("config", None, config_help, flag_values=options, sys_argv=words)
    flags.DEFINE_bool("help", False, "Show this.", short_name="h", **mine)
    flags.DEFINE_string("run", None, "The run's folder. By default a new one: runs/<data set>-<date>-<time>.", **mine)
    flags.DEFINE_bool("no_graphs", False, NO_GRAPHS, **mine)
    flags.DEFINE_bool("distributed", False, "Run as one of many processes that train together.", **mine)
    address = "With --distributed outside Slurm and Kubernetes: host:port of the first process."
    flags.DEFINE_string("coordinator_address", None, address, **mine)
    flags.DEFINE_integer("num_processes", None, "Likewise: how many processes there are.", lower_bound=1, **mine)
    flags.DEFINE_integer("process_id", None, "Likewise: the number of this one, from 0.", lower_bound=0, **mine)
    return options


def presets() -> dict[str, Path]:
    """The files of all presets by name."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), PACKAGE)
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def find_preset(arguments: list[str]) -> list[str]:
    """Replaces the name of a preset after `--config` by its file.

    Args:
        arguments: of the command line. A name is a word without a dot and a slash.

    Returns:
        The same arguments; `~` in a file's name is the home folder.

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
        if not name:
            continue
        if "." in name or "/" in name or "\\" in name:
            file = path(name)
        elif name in (valid := presets()):
            file = valid[name]
        else:
            raise UserError(f"--config {name} is no preset: {nearest(name, valid)} A file's name ends in .py.")
        if equals:
            found[place] = f"{before}={file}"
        else:
            found[place + 1] = str(file)
    return found
