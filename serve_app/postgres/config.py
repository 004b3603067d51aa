"""What the embedded Postgres is told: settings fitted to the machine, who may connect, and what the cluster holds at first."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from config.settings import MIB

GIB = 1 << 30

APP_ROLE = "kinlens"
"""The service's role, and the database it owns."""
SUPERUSER = "postgres"
"""For backups and repairs, and the database they start from. The same password, in a file that only the owner reads."""
EXTENSIONS = ("vector", "pg_trgm", "unaccent", "pg_prewarm")
"""Made by the superuser: the wheel does not mark `vector` as trusted, so the application's role could not."""

CREATE_DATABASE = f"CREATE ROLE {APP_ROLE} LOGIN;\n\nCREATE DATABASE {APP_ROLE} OWNER {APP_ROLE};\n\n"
CREATE_EXTENSIONS = "".join(f"CREATE EXTENSION {name};\n\n" for name in EXTENSIONS)
"""Both for single-user mode, where an empty line ends a statement."""

HOST_ACCESS = """\
# Written by Kinlens at every start.
host all all 127.0.0.1/32 scram-sha-256
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this process may use: `shm_bytes` is what is free in /dev/shm."""

    memory_bytes: int
    cores: int
    shm_bytes: int

    @classmethod
    def this(cls) -> Machine:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
            try:
                memory = min(memory, int(limit.read_text(encoding="ascii")))
            except (OSError, ValueError):  # not this version of cgroups, or `max`
                continue
        try:
            shm = os.statvfs("/dev/shm")  # noqa: S108  its size is asked for
            shm_bytes = shm.f_bavail * shm.f_frsize
        except OSError:
            shm_bytes = 0
        return cls(memory, len(os.sched_getaffinity(0)), shm_bytes)


def server_settings(machine: Machine) -> dict[str, str | int]:
    """The lines of postgresql.conf. `ALTER SYSTEM` overrides them, and survives a restart."""
    shared_mib = max(32, min(512, machine.memory_bytes // 4 // MIB))
    # A ceiling for one index build, not a reservation: HNSW over a million faces needs 1.4 GB to be built in memory.
    maintenance_mib = max(64, min(2048, machine.memory_bytes // 8 // MIB))
    # A parallel build keeps its graph in dynamic shared memory. In a container /dev/shm is often 64 MB; System V segments
    # have no such limit and, unlike `mmap`, no files that are written back to disk.
    roomy = machine.shm_bytes >= (maintenance_mib + 256) * MIB
    return {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": 100,
        # A restore makes the tables of every collection in one transaction, about 20 locks each with those it removes.
        "max_locks_per_transaction": 512,
        "password_encryption": "scram-sha-256",
        "shared_buffers": f"{shared_mib}MB",
        "effective_cache_size": f"{max(64, machine.memory_bytes // 2 // MIB)}MB",
        "work_mem": "16MB",
        "maintenance_work_mem": f"{maintenance_mib}MB",
        "autovacuum_work_mem": "64MB",
        "dynamic_shared_memory_type": "posix" if roomy else "sysv",
        "max_worker_processes": max(8, machine.cores + 4),
        "max_parallel_workers": max(1, machine.cores),
        "max_parallel_maintenance_workers": max(0, machine.cores - 1),
        "shared_preload_libraries": "pg_prewarm",
        "pg_prewarm.autoprewarm": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "wal_compression": "off",
        "max_wal_size": "4GB",
        "random_page_cost": "1.1",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Names and embeddings stay out of the log: no statements, no parameters, no DETAIL with the row in it.
        "log_line_prefix": "%m [%p] ",
        "log_min_messages": "warning",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "log_autovacuum_min_duration": -1,
        "log_checkpoints": "off",
        "log_parameter_max_length_on_error": 0,
    }


def config_text(settings: dict[str, str | int]) -> str:
    lines = (f"{name} = {value}" if isinstance(value, int) else f"{name} = '{value}'" for name, value in settings.items())
    return "# Written by Kinlens at every start; use ALTER SYSTEM for settings of your own.\n" + "\n".join(lines) + "\n"


def password_statements(password: str) -> str:
    return "".join(f"ALTER ROLE {role} PASSWORD '{password}';\n\n" for role in (SUPERUSER, APP_ROLE))
