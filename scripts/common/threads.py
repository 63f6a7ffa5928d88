"""Tells how many threads can work at a time."""

import os

# Those that this process may use: `taskset` can take some away.
THREADS = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 4
)
