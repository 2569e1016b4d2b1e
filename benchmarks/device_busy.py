"""GPU activity of a step from a profiler's trace: busy time, kernels, launches and changes of CUDA graphs.

The busy time is the union of the intervals in which the first GPU runs a kernel, a copy or a memset, so work on two
streams at once counts once. Each of them counts as a kernel, inside CUDA graphs too. A launch is a call of the host
that starts a kernel or a whole CUDA graph. A step with many more kernels than launches therefore runs from graphs, and
a step with a busy time far below its wall time waits for the host. A graph is recorded anew or changed when addresses
of arrays are not those of the step before, which costs the host more than launches do.
"""

import collections
import re
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Interval = tuple[float, float]  # start and end, nanoseconds
Program = Callable[[int], None]  # runs that many steps and waits until they are done

# Both the driver's names (cu...) and the runtime's (cuda...), with suffixes such as ExC and _ptsz.
LAUNCH = re.compile(r"cu(da)?(Launch(Cooperative)?Kernel|GraphLaunch)")
# Steps of recording a graph, or changes of one that can run already.
CHANGE = re.compile(r"cu(da)?Graph(Create|Instantiate|ExecUpdate|Exec\w*SetParams)")
# CUPTI reports these waits as events of the device.
WAITS = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")


class Activity(NamedTuple):
    """What the first GPU did in one step, on average."""

    busy_seconds: float
    kernels: float
    launches: float
    graph_changes: float


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Merges the intervals that overlap. Intervals that only touch stay apart.

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
    """Averages over the steps of a trace.

    Args:
        device: each event of the GPU.
        threads: the calls of each host thread that launch something. A runtime call that contains a driver call is one
            launch.
        graph_changes: calls of all threads that record or change a CUDA graph.
        steps: how many steps the trace contains.

    Returns:
        None if the trace has no event of a GPU.
    """
    if not device:
        return None
    busy = sum(end - start for start, end in merge(device))
    launches = sum(len(merge(calls)) for calls in threads)
    return Activity(busy / 1e9 / steps, len(device) / steps, launches / steps, graph_changes / steps)


def read_jax_profile(profile: Any, steps: int) -> Activity | None:
    """Reads a `jax.profiler.ProfileData`.

    Args:
        profile: planes with lines of events. On the GPU's plane only the lines named "Stream #..." are what ran; XLA
            derives the other lines from them.
        steps: how many steps it contains.

    Returns:
        None if it has no event of a GPU.
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
        events: `torch.autograd.profiler_util.FunctionEvent`s, in microseconds. Ranges that a program annotates appear
            on the GPU too and are left out.
        steps: how many steps they contain.

    Returns:
        None if there is no event of a GPU.
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
    """Profiles a program of JAX.

    Args:
        program: compiled and warmed up.
        steps: how many to run.

    Returns:
        None if JAX has no GPU, or if its profile cannot be read; then the reason is on standard error.
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
    except Exception:  # whatever the profiler raises, the measured times are worth keeping
        traceback.print_exc()
        return None


def profile_torch(program: Program, steps: int) -> Activity | None:
    """Profiles a program of PyTorch, as `profile_jax` does one of JAX."""
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
