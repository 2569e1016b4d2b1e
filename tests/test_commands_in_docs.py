"""The shell commands of README and docs are run, or the block says what they need or which test runs them.

A block that begins with `# Needs: ...` or `# Tested by ...` is only parsed, by the parser of its command.
"""

import argparse
import importlib
import pathlib
import re
import shlex
import tomllib
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import trees
from jax.experimental.compilation_cache import compilation_cache
from test_docs import PAGES, REPOSITORY

from proxynca_jax import embed, training_options
from proxynca_jax.data.datasets import DATASETS
from proxynca_jax.losses import LOSSES
from proxynca_jax.models import BACKBONES

# ml_collections reads configuration files so; a fresh run of few images is not what is published.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

# What makes a run of the docs one of seconds.
SHORT = {
    "data.image_size": 32,
    "data.resize_size": 32,
    "optim.batch_size": 8,
    "optim.epochs": 1,
    "optim.frozen_epochs": 0,
    "optim.warmup_epochs": 0,
    "evaluation.batch_size": 8,
    "evaluation.nmi": "false",
}
GLYPHS = {"model.backbone": "tiny", "data.eval_fraction": 0.95, "data.placement": "host"}
OTHER_PROGRAMS = ("curl", "hf", "jupytext", "sbatch", "tensorboard", "twine", "wandb")  # each only in marked blocks
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
]
RUN = sorted({page for page, block in BLOCKS if not block.startswith("#")} - {REPOSITORY / "docs" / "glyphs.md"})


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yields each command of a block: the module that runs it, or the program's name, and its arguments."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"&$|^done; wait|^for .*; do$", "", line.strip()), comments=True)
        for part in " ".join(map(shlex.quote, words)).split("'&&'"):
            match shlex.split(part):
                case []:
                    pass
                case ["python", "-m", module, *arguments]:
                    yield module, arguments
                case ["proxynca", name, *arguments]:
                    yield "convert" if name == "convert" else f"proxynca_jax.{name}", arguments
                case [program, *arguments]:
                    yield program, arguments


def is_ours(module: str) -> bool:
    return module.startswith(("proxynca_jax.", "convert"))


def main_of(module: str):
    found = importlib.import_module(module)
    return importlib.import_module(f"{module}.__main__").main if hasattr(found, "__path__") else found.main


@pytest.mark.parametrize(
    ("page", "block"), BLOCKS, ids=[f"{page.stem}-{place}" for place, (page, _) in enumerate(BLOCKS)]
)
def test_commands_parse(page, block, monkeypatch):
    """Options exist and have values of their types, extras exist, and a marker says something."""

    class Parsed(Exception):
        pass

    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(*arguments: object):
        parse_args(*arguments)
        raise Parsed

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    assert not block.startswith("#") or re.match(r"# (Needs: .+|Tested by tests/\w+\.py)\.\n", block)
    for module, arguments in commands(block):
        arguments = [argument.replace("$i", "1") for argument in arguments]
        if module in ("proxynca_jax.train", "proxynca_jax.doctor"):
            training_options.parse(arguments, about="", sheet=module.endswith("doctor"))
        elif is_ours(module):
            with pytest.raises(Parsed):
                main_of(module)(arguments)
        elif module == "pip":
            extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = re.findall(r"\[(.*)\]", arguments[-1])
            assert set(",".join(named).split(",")) <= {*extras, ""}
        else:
            assert module in (*OTHER_PROGRAMS, "pytest", "build")
            assert block.startswith("# Needs:")


@pytest.fixture(scope="module")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps compiled programs from command to command, as processes of their own would."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    compilation_cache.reset_cache()
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, compiled_programs: None) -> Iterator[pathlib.Path]:
    """A folder with all that the commands name: photographs, tables, runs, embeddings and a query."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("mine", "others", "photographs"):
            trees.draw_folder(folder / "data" / name, classes=20, images_per_class=16)
        jpegs = sorted((folder / "data" / "mine").rglob("*.jpg"))
        (folder / "query.jpg").write_bytes(jpegs[0].read_bytes())
        rows = [f"{path},{path.parent.name}" for path in jpegs]
        (folder / "data" / "products.csv").write_text("\n".join(["path,label", *rows]))
        (folder / "configs").symlink_to(REPOSITORY / "configs")
        run_command("proxynca_jax.train", shlex.split("--config photos --config.data.root=data/mine --run runs/mine"))
        run_command("proxynca_jax.train", shlex.split("--config glyphs --run runs/glyphs"))
        embed.main(shlex.split("--run runs/mine --split test --output test.parquet"))
        for name in ("queries", "gallery"):
            vectors = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
            np.savez(folder / f"{name}.npz", embeddings=vectors, labels=np.arange(200) // 10)
        yield folder


def run_command(module: str, arguments: list[str]) -> None:
    """Runs a command in this process. Training is short, and on glyphs and added rows it takes a tiny network."""
    if module in ("proxynca_jax.train", "proxynca_jax.doctor"):
        short = SHORT | (GLYPHS if "glyphs" in " ".join(arguments) else {})
        kept = [
            field for field in short if "runs/added" in arguments and field in ("model.backbone", "data.eval_fraction")
        ]
        arguments = [*arguments, *(f"--config.{name}={value}" for name, value in short.items() if name not in kept)]
    main_of(module)(arguments)


def forget(*outputs: str) -> None:
    """Removes what a command of another page wrote under the same name."""
    for name in outputs:
        pathlib.Path(name).unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of few images, in the words of each command
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_commands_run(page, world, monkeypatch):
    """One page, from top to bottom. Its Python is run first: docs/extend.md adds rows that its command names."""
    for table in (BACKBONES, DATASETS, LOSSES):
        for name in list(table):
            monkeypatch.setitem(table, name, table[name])  # restores the table
    if page.stem == "extend":
        names: dict[str, object] = {}
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            exec(compile(block, str(page), "exec"), names)
    forget("mine.onnx", "mine.stablehlo", "mine.stablehlo.json", "lite0.safetensors", "mine.pt")
    for source, block in BLOCKS:
        if source != page or block.startswith("#"):
            continue
        for module, arguments in commands(block.replace("/data/", f"{world}/data/")):
            if is_ours(module):
                run_command(module, arguments)
