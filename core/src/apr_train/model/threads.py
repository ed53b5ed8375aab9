"""How many threads a CPU run is given where nobody says: one for each core that this process may use."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

import torch

_CPUS, _GROUPS, _OWN_GROUP = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def default_threads() -> int:
    """What torch would take, at most one a core: what a matrix product gets from the second thread of a core is waiting.

    A container's share of the processor (the quota of a control group) is a limit, too: torch counts the cores of the whole
    machine, and threads that are stopped in the middle of a product hold up all others. `OMP_NUM_THREADS` is the user's word.
    """
    chosen = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return chosen
    limits = (physical_cores(), processor_share())
    return max(1, min([chosen, *(limit for limit in limits if limit is not None)]))


def physical_cores(cpus: Path = _CPUS) -> int | None:
    """Cores among the processors that this process may use; None where the system does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        found = {(cpus / f"cpu{number}/topology/thread_siblings_list").read_text() for number in os.sched_getaffinity(0)}
    except (OSError, ValueError):
        return None
    return len(found)


def processor_share(groups: Path = _GROUPS, own: Path = _OWN_GROUP) -> int | None:
    """Processors whose time the control groups (version 2) of this process grant it, rounded up; None: there is no limit."""
    try:
        place = next(line[3:].strip() for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, ValueError, StopIteration):
        return None
    folder = groups / place.lstrip("/")
    quotas = [_quota(parent / "cpu.max") for parent in (folder, *folder.parents) if parent.is_relative_to(groups)]
    known = [quota for quota in quotas if quota is not None]
    return ceil(min(known)) if known else None


def _quota(path: Path) -> float | None:
    try:
        granted, period = path.read_text().split()
        return int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max", or no such file
        return None
