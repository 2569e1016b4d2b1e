"""Worker processes that time variants of a program in turns. If a variant fails, the others continue.

Each variant has a process of its own. All processes load their libraries at the same time. Variants that compile on the
CPU alone take their first steps at the same time. Then each variant that `starts_alone` takes its first step while all
others sleep. XLA needs that, because it chooses kernels by their time on the GPU. After the warm-up the variants take
turns, while the others sleep. A turn lasts about a second or one step, whichever is longer.
"""

import contextlib
import multiprocessing
import signal
import statistics
import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from benchmarks.device_busy import Activity, Program
from proxynca_jax.config import ModelConfig
from proxynca_jax.errors import UserError

TURN_SECONDS = 1.0
WARM_UP_STEPS = 2  # after the first step; torch.compile records its CUDA graphs in the second
PROFILED_STEPS = 10
EXIT_SECONDS = 10.0  # time for a process to exit by itself
REASON_CHARACTERS = 160  # longest reason of a failure in a table


class Work(NamedTuple):
    """The work of a program, the same for all variants in a table."""

    step: str  # one of speed_table.STEPS
    batch_size: int  # images
    model: ModelConfig  # the variant decides its compute_dtype
    image_size: int  # pixels


class Variant(NamedTuple):
    """A variant of a step. All fields are sent to a new process, so functions must be importable there."""

    make: Callable[[Work], Program]
    load: Callable[[], Any]  # imports all libraries
    peak_mb: Callable[[], float]
    profile: Callable[[Program, int], Activity | None]  # profiles a number of steps
    dtype: str  # of convolutions and matrix products
    starts_alone: bool  # whether its compiler times kernels on the device, so nothing else may run there


class Timing(NamedTuple):
    """Measurements of a variant."""

    step_seconds: float  # median over the turns
    first_step_seconds: float  # including compilation; unless it starts alone, others may compile at the same time
    peak_mb: float  # minus the memory of the loaded libraries
    activity: Activity | None  # None: no GPU, or no profile


class VariantError(Exception):
    """A variant cannot be measured. The message is one line."""


def describe(error: Exception) -> str:
    """Describes an error in one line: its type, except for a `UserError`, and the beginning of its message."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return textwrap.shorten(text, REASON_CHARACTERS, placeholder=" ...")


def seconds(program: Program, steps: int) -> float:
    start = time.perf_counter()
    program(steps)
    return time.perf_counter() - start


def serve(connection: Connection, variant: Variant, work: Work) -> None:
    """Runs a variant in this process and answers requests.

    Sends None when the program is made. Then it answers each request, until a request is None. A request is a tuple of
    the name of an answer and arguments. If the variant fails, it sends a `VariantError` and returns. The traceback goes
    to standard error, unless the error is a `UserError`.
    """
    try:
        variant.load()
        before_mb = variant.peak_mb()
        program = variant.make(work)
        connection.send(None)

        def first_step() -> float:
            first_step_seconds = seconds(program, 1)
            program(WARM_UP_STEPS)
            return first_step_seconds

        answers: dict[str, Callable[..., Any]] = {
            "first step": first_step,
            "turn": lambda steps: seconds(program, steps),
            "memory": lambda: variant.peak_mb() - before_mb,
            "activity": lambda: variant.profile(program, PROFILED_STEPS),
        }
        for name, *arguments in iter(connection.recv, None):
            connection.send(answers[name](*arguments))
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        connection.send(VariantError(describe(error)))


class Worker:
    """A variant in a process of its own, which sleeps between its turns.

    Call the methods in the order of their definition. Methods that wait for an answer raise a `VariantError` if the
    variant fails or takes too long.
    """

    def __init__(self, variant: Variant, work: Work, timeout_seconds: float):
        """Does not start the process yet.

        Args:
            variant: the variant to run.
            work: of its program.
            timeout_seconds: for loading, for the first step and for each later answer.
        """
        self._timeout_seconds = timeout_seconds
        context = multiprocessing.get_context("spawn")
        self._connection, self._other = context.Pipe()
        self._process = context.Process(target=serve, args=(self._other, variant, work), daemon=True)
        self._first_step_seconds = 0.0
        self._steps_per_turn = 1
        self._turns: list[float] = []  # seconds of a step

    def begin_load(self) -> None:
        """Starts the process, which loads libraries and makes its program. Does not wait."""
        self._process.start()
        self._other.close()

    def end_load(self) -> None:
        """Waits until the program is made."""
        self._answer("program")

    def begin_first_step(self) -> None:
        """Makes the process compile, take its first step and warm up. Does not wait."""
        self._request(("first step",))

    def end_first_step(self) -> None:
        """Waits until the process has warmed up."""
        self._first_step_seconds = self._answer("first step")

    def take_first_step(self) -> None:
        """Begins the first step and waits for it."""
        self.begin_first_step()
        self.end_first_step()

    def measure_turn(self) -> None:
        """Determines the number of steps in a turn."""
        self._steps_per_turn = max(1, round(TURN_SECONDS / self._ask("turn", 1)))

    def take_turn(self) -> None:
        self._turns.append(self._ask("turn", self._steps_per_turn) / self._steps_per_turn)

    def end(self) -> Timing:
        """Reads memory and profile, then ends the process to free its memory for the others."""
        peak_mb = self._ask("memory")
        try:
            activity = self._ask("activity")
        except VariantError:  # if the profiler ends or blocks the process, the times must not be lost
            activity = None
        self._request(None)
        self._process.join(EXIT_SECONDS)
        self.kill()
        return Timing(statistics.median(self._turns), self._first_step_seconds, peak_mb, activity)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _request(self, request: tuple[str | int, ...] | None) -> None:
        with contextlib.suppress(OSError):  # if the process has ended, `_answer` reports how
            self._connection.send(request)

    def _ask(self, name: str, *arguments: int) -> Any:
        self._request((name, *arguments))
        return self._answer(name)

    def _answer(self, name: str) -> Any:
        if not self._connection.poll(self._timeout_seconds):
            raise VariantError(f"no {name} within {self._timeout_seconds:g} seconds")
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(EXIT_SECONDS)
            raise VariantError(f"the process {ending(self._process.exitcode)}") from None
        if isinstance(answer, VariantError):
            raise answer
        return answer


def ending(exit_code: int | None) -> str:
    """Describes how a process ended.

    Args:
        exit_code: of `multiprocessing.Process`: negative for a signal, None if the process still runs.
    """
    if exit_code is None:
        return "stopped answering"
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exited with status {exit_code}"


def measure_in_turns(
    variants: Mapping[str, Variant], work: Work, repeats: int, timeout_seconds: float
) -> dict[str, Timing | VariantError]:
    """Measures the variants of a step in turns. The module's docstring describes the order.

    Args:
        variants: by name.
        work: of all variants.
        repeats: turns of each variant.
        timeout_seconds: a variant fails if loading, its first step, or a turn takes longer.

    Returns:
        For each variant its measurements, or the error that it failed with.
    """
    workers = {name: Worker(variant, work, timeout_seconds) for name, variant in variants.items()}
    together = [name for name, variant in variants.items() if not variant.starts_alone]
    stages: list[tuple[Callable[[Worker], Timing | None], Iterable[str]]] = [
        (Worker.begin_load, variants),
        (Worker.end_load, variants),
        (Worker.begin_first_step, together),
        (Worker.end_first_step, together),
        (Worker.take_first_step, [name for name, variant in variants.items() if variant.starts_alone]),
        (Worker.measure_turn, variants),
        *repeats * [(Worker.take_turn, variants)],
        (Worker.end, variants),
    ]
    results: dict[str, Timing | VariantError] = {}
    for stage, names in stages:
        for name in names:
            if name in results:
                continue
            try:
                if timing := stage(workers[name]):
                    results[name] = timing
            except VariantError as error:
                workers[name].kill()
                results[name] = error
    return {name: results[name] for name in variants}
