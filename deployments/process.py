"""What a model replica sets once for its process."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import warnings

import cv2

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""mallopt(3), glibc."""


def tune_process() -> None:
    """Threads and memory for a process that decodes and computes pictures on threads of its own.

    By default glibc gives each picture's buffers back to the kernel and takes them again for the next one: 4,000 page
    faults, 10 of 25 ms a picture. Kept, they cost nothing; what a replica keeps is bounded by the trim threshold.

    OpenCV's own pool would start a second thread a replica for resizes of half a millisecond.

    Model threads are batch work to the kernel: they do not interrupt each other whenever one wakes up, and everything
    short, the ingress above all, goes first.
    """
    cv2.setNumThreads(1)
    # Pillow warns of what is odd in a picture: 13 MB of log for a TIFF of 800 kB. And Python remembers each text it has warned
    # with, so that the client's numbers in them would fill the memory.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if hasattr(os, "SCHED_BATCH"):
        # Of this thread and those it will start. Refused in some sandboxes; then it stays as it is.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    # Other C libraries have no mallopt; they keep their own ways.
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 128 << 20)
