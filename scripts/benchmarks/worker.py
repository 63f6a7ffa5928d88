"""Runs a contender in a process of its own."""

import multiprocessing
import os
import pathlib
import statistics
import sys
import threading
import time

_running, _loaded = None, None


def start(contender, task):
    """Makes a contender ready; returns the result of its first call."""
    global _running, _loaded
    set_up(contender.backend)
    _running = contender.make(task, **contender.options)
    _loaded = _resident()
    return _running()


def _resident():
    """Returns the megabytes that this process has in memory, on Linux."""
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    pages = int(statm.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak():
    """Returns the most megabytes that it has had; Windows does not tell.

    The parent's are in it, hence its few imports.
    """
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def turn(seconds):
    """Times calls for so many seconds, after one to warm up.

    Returns:
        Milliseconds, the median of the calls; megabytes of memory that this
        process had before its first call, and the most it has had; and the
        processors that it kept busy.
    """
    _running()
    times, begin, work = [], time.perf_counter(), time.process_time()
    while not times or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        _running()
        times.append(1000 * (time.perf_counter() - before))
    work = time.process_time() - work
    return {
        "ms": statistics.median(times),
        "loaded_mb": _loaded,
        "peak_mb": _peak(),
        "processors": work / (time.perf_counter() - begin),
    }


def set_up(backend):
    """Readies a process in which Keras will run on that backend."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    os.environ["KERAS_BACKEND"] = backend
    # Several of these processes share a GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # In float32, NVIDIA's libraries would else round factors to ten bits.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")


def _end_with(parent):
    """Ends this process with its parent; a killed one could not do so."""
    parent.join()
    os._exit(1)
