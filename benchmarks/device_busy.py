"""GPU activity of a step from a profiler's trace: busy time, kernels, launches and changes of CUDA graphs.

- Busy time is the union of the intervals in which the first GPU runs a kernel, a copy or a memset. Overlapping work on
  two streams counts once. If it is far below the step's wall time, the step waits for the host.
- Kernels are kernels, copies and memsets, including those inside CUDA graphs.
- A launch is a call of the host that starts a kernel or a whole CUDA graph. If a step has many more kernels than
  launches, it runs from graphs.
- A graph change is a call that records or updates a CUDA graph. It happens if arrays have other addresses than in the
  step before, and costs the host more than a launch.
"""

import collections
import re
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Interval = tuple[float, float]  # start and end, nanoseconds
Program = Callable[[int], None]  # runs the given number of steps and waits until they are done

# Names of the driver API (cu...) and of the runtime API (cuda...), with suffixes such as ExC and _ptsz.
LAUNCH = re.compile(r"cu(da)?(Launch(Cooperative)?Kernel|GraphLaunch)")
# Calls that record a graph, or update an executable graph.
CHANGE = re.compile(r"cu(da)?Graph(Create|Instantiate|ExecUpdate|Exec\w*SetParams)")
# CUPTI reports these waits as device events.
WAITS = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")


class Activity(NamedTuple):
    """Activity of the first GPU per step, on average."""

    busy_seconds: float
    kernels: float
    launches: float
    graph_changes: float


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Merges overlapping intervals. Intervals that only touch stay separate.

    Args:
        intervals: in any order and unit.
    """
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def summarise(
    device: Sequence[Interval], threads: Iterable[Iterable[Interval]], graph_changes: int, steps: int
) -> Activity | None:
    """Averages a trace over its steps.

    Args:
        device: the events of the GPU, in nanoseconds.
        threads: for each host thread, the calls that launch something. A driver call inside a runtime call does not
            count as a second launch.
        graph_changes: number of calls in all threads that record or update a CUDA graph.
        steps: number of steps in the trace.

    Returns:
        The averages, or None if the trace has no GPU events.
    """
    if not device:
        return None
    busy = sum(end - start for start, end in merge(device))
    launches = sum(len(merge(calls)) for calls in threads)
    return Activity(busy / 1e9 / steps, len(device) / steps, launches / steps, graph_changes / steps)


def read_jax_profile(profile: Any, steps: int) -> Activity | None:
    """Reads a `jax.profiler.ProfileData`.

    Args:
        profile: planes with lines of events. On the GPU's plane only the lines named "Stream #..." are measured; XLA
            derives the other lines from them.
        steps: number of steps in the profile.

    Returns:
        The averages, or None if the profile has no GPU events.
    """
    device: list[Interval] = []
    threads: list[list[Interval]] = []
    graph_changes = 0
    for plane in profile.planes:
        for line in plane.lines:
            if plane.name == "/device:GPU:0" and line.name.startswith("Stream"):
                device += [(event.start_ns, event.end_ns) for event in line.events]
            elif plane.name.startswith("/host:"):
                calls = list(line.events)
                threads.append([(event.start_ns, event.end_ns) for event in calls if LAUNCH.match(event.name)])
                graph_changes += sum(bool(CHANGE.match(event.name)) for event in calls)
    return summarise(device, threads, graph_changes, steps)


def read_torch_profile(events: Iterable[Any], steps: int) -> Activity | None:
    """Reads the `events()` of a `torch.profiler.profile`.

    Args:
        events: `torch.autograd.profiler_util.FunctionEvent`s, in microseconds. User annotations also appear on the GPU
            and are ignored.
        steps: number of steps in the profile.

    Returns:
        The averages, or None if the profile has no GPU events.
    """
    device: list[Interval] = []
    threads: dict[int, list[Interval]] = collections.defaultdict(list)
    graph_changes = 0
    for event in events:
        interval = (1000 * event.time_range.start, 1000 * event.time_range.end)
        if event.device_type.name == "CUDA":
            if event.device_index == 0 and not event.is_user_annotation and event.name not in WAITS:
                device.append(interval)
        elif LAUNCH.match(event.name):
            threads[event.thread].append(interval)
        elif CHANGE.match(event.name):
            graph_changes += 1
    return summarise(device, threads.values(), graph_changes, steps)


def profile_jax(program: Program, steps: int) -> Activity | None:
    """Profiles a JAX program.

    Args:
        program: a compiled and warmed-up program.
        steps: number of steps to run.

    Returns:
        The averages. None if JAX has no GPU, or if the profile cannot be read; the reason is then on standard error.
    """
    import jax

    if jax.default_backend() != "gpu":
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                program(steps)
            (path,) = Path(folder).rglob("*.xplane.pb")
            return read_jax_profile(jax.profiler.ProfileData.from_file(str(path)), steps)
    except Exception:  # a profiler's error must not discard the measured times
        traceback.print_exc()
        return None


def profile_torch(program: Program, steps: int) -> Activity | None:
    """Profiles a PyTorch program. Arguments and result are those of `profile_jax`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return None
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
            program(steps)
        return read_torch_profile(profiler.events() or [], steps)
    except Exception:  # as above
        traceback.print_exc()
        return None
