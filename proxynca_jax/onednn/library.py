"""Finds oneDNN, compiles the handlers in `handlers/`, and registers them with XLA.

The handlers are C++: XLA calls them from its own threads, and no such thread may enter Python. They are compiled and
tested once per machine, and kept in the user's cache folder.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile

import jax

from proxynca_jax.machine.cache_folder import cache_folder

PACKAGE = "onednn-cpu-gomp"
TESTED = ("2023.2",)  # versions of the package, by their first two numbers
INSTALL = "pip install 'proxynca_jax[cpu]'"
SOURCES = pathlib.Path(__file__).parent / "handlers"
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp", "-w")
COMPILE_SECONDS = 300
TEST_SECONDS = 120
HANDLERS = (
    "convolution",
    "convolutions_image_by_image",
    "fingerprint",
    "gradient_of_images",
    "gradient_of_kernel",
    "gradient_of_depthwise_kernel",
    "max_pool",
    "gradient_of_max_pool",
    "average_pool",
    "sums_of_distances",
    "sums_of_gradients",
)


class Unavailable(Exception):
    """Why oneDNN cannot be used. The message is half a sentence for the user."""


def target(handler: str) -> str:
    """Returns the name under which XLA knows one of `HANDLERS`.

    It contains a digest of the sources, so a compiled program on disk never calls a handler of another version.
    """
    return f"proxynca_jax.{handler}.{_sources_digest()}"


@functools.cache
def register() -> str:
    """Loads the library and registers the handlers.

    Returns:
        The version of the package.

    Raises:
        Unavailable: something is missing.
    """
    version, onednn = _find()
    try:
        compiled = _compiled(onednn, version)
    except OSError as error:  # also of a folder that cannot be written
        raise Unavailable(f"{error.filename or PACKAGE}: {error.strerror or error}") from error
    try:
        load(onednn, compiled)
    except (OSError, AttributeError) as error:
        compiled.unlink(missing_ok=True)
        raise Unavailable(f"its compiled handlers are damaged, and the next start makes them again: {error}") from error
    return version


def load(onednn: pathlib.Path, compiled: pathlib.Path) -> None:
    """Registers compiled handlers with XLA.

    Args:
        onednn: the shared library.
        compiled: the handlers.

    Raises:
        OSError: one of the files cannot be loaded.
        AttributeError: a handler is missing.
    """
    ctypes.CDLL(str(onednn), ctypes.RTLD_GLOBAL)
    handlers = ctypes.CDLL(str(compiled))
    for name in HANDLERS:
        jax.ffi.register_ffi_target(target(name), jax.ffi.pycapsule(getattr(handlers, name)), platform="cpu")


def _find() -> tuple[str, pathlib.Path]:
    """Returns the version of the installed package and the path of its shared library."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Unavailable(f"it is used on Linux with x86-64, and this is {sys.platform} with {platform.machine()}")
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable(f"it is not installed: {INSTALL}") from None
    if ".".join(package.version.split(".")[:2]) not in TESTED:
        raise Unavailable(f"{PACKAGE} {package.version} was not tested, {TESTED[0]} was: {INSTALL}")
    for file in package.files or ():
        if file.name == "libdnnl.so.3":
            return package.version, pathlib.Path(str(package.locate_file(file))).resolve()
    raise Unavailable(f"{PACKAGE} {package.version} contains no libdnnl.so.3")


def _compiled(onednn: pathlib.Path, version: str) -> pathlib.Path:
    """Returns the path of the compiled handlers. Compiles and tests them if no earlier process of this machine has."""
    compiler = next(
        (found for name in (os.environ.get("CXX"), "c++", "g++") if name and (found := shutil.which(name))), None
    )
    folder = cache_folder()
    if folder is None:
        raise Unavailable("there is no home folder to keep its compiled handlers in: set XDG_CACHE_HOME")
    parts = _sources_digest(), version, importlib.metadata.version("jaxlib"), _processor(), *FLAGS
    library = folder / f"handlers-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    failure = library.with_suffix(".failed")
    if failure.exists():
        raise Unavailable(f"its handlers {failure.read_text()} on this machine; to try again, remove {failure}")
    if compiler is None:
        raise Unavailable("its handlers need a C++ compiler once, and there is none: apt install g++")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".handlers-") as place:
        partial = pathlib.Path(place) / library.name
        command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", *map(str, sorted(SOURCES.glob("*.cpp")))]
        try:
            done = subprocess.run(
                [*command, str(onednn), "-o", str(partial)], capture_output=True, text=True, timeout=COMPILE_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{compiler} took more than {COMPILE_SECONDS} s for its handlers") from None
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise Unavailable(f"{compiler} cannot compile its handlers: {first}")
        if reason := _failure(onednn, partial):
            failure.write_text(reason)
            raise Unavailable(f"its handlers {reason}")
        partial.replace(library)
    return library


def _failure(onednn: pathlib.Path, compiled: pathlib.Path) -> str | None:
    """Tests handlers in a process of its own, because what they do wrong may end a process.

    Returns:
        What happened, or None if all is well.
    """
    command = [sys.executable, "-m", "proxynca_jax.onednn.probe", str(onednn), str(compiled)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(__file__).parents[2]  # the package need not be installed
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TEST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"did not pass their test within {TEST_SECONDS} s"
    if done.returncode < 0:
        return f"ended their test by {signal.Signals(-done.returncode).name}"
    return f"failed their test: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


@functools.cache
def _sources_digest() -> str:
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".cpp", ".h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def _processor() -> str:
    """Returns the processor's features: `-march=native` compiles for them, and machines may share a home folder."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith("flags")), "")
