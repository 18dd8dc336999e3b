"""The cores that a process may really use, told from fake control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retro_demo.devices import allowed_memory, allowed_threads, free_memory

HALF = {"cpu.max": "50000 100000\n"}
ONE = {"cpu.max": "100000 100000\n"}
ALL = {"cpu.max": "max 100000\n"}
OLD_ONE = {"cpu.cfs_quota_us": "100000\n", "cpu.cfs_period_us": "100000\n"}
OLD_ALL = {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}


def system(root: Path, groups: str, files: dict[str, dict[str, str]]) -> Path:
    """A tree with /proc/self/cgroup and files of control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for folder, contents in files.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (root / "sys/fs/cgroup" / folder / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("groups", "files", "threads"),
    [
        ("0::/\n", {"": {"cpu.max": "300000 100000\n"}}, 3),
        ("0::/\n", {"": {"cpu.max": "250000 100000\n"}}, 2),
        ("0::/\n", {"": HALF}, 1),
        ("0::/\n", {"": ALL}, 8),
        ("0::/\n", {"": {"cpu.max": "9900000 100000\n"}}, 8),
        ("0::/jobs/one\n", {"jobs/one": ALL, "jobs": ONE}, 1),
        ("0::/jobs/one\n", {"jobs/one": ONE, "jobs": ALL}, 1),
        ("0::/docker/abc\n", {"": ONE}, 1),
        ("4:memory:/\n3:cpu,cpuacct:/docker/abc\n", {"cpu,cpuacct/docker/abc": OLD_ONE}, 1),
        ("3:cpu,cpuacct:/docker/abc\n", {"cpu": OLD_ONE}, 1),
        ("3:cpu:/\n0::/\n", {"cpu": OLD_ALL}, 8),
        ("3:cpuset:/\n", {"cpuset": OLD_ONE}, 8),
        ("0::/\n", {"": {"cpu.max": "what\n"}}, 8),
    ],
)
def test_a_quota_of_the_group_or_of_one_above_it_bounds_the_threads(tmp_path, groups, files, threads):
    assert allowed_threads(system(tmp_path, groups, files)) == threads


def test_without_control_groups_the_cores_of_the_process_count(tmp_path):
    assert allowed_threads(tmp_path) == 8


def test_a_process_bound_to_few_cores_gets_no_more_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert allowed_threads(system(tmp_path, "0::/\n", {"": {"cpu.max": "400000 100000\n"}})) == 2


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/jobs/one\n", {"jobs/one": {"memory.max": "max\n"}, "jobs": {"memory.max": "1000000\n"}}),
        ("5:memory:/slurm/job\n", {"memory/slurm/job": {"memory.limit_in_bytes": "1000000\n"}}),
    ],
)
def test_a_limit_of_the_group_or_of_one_above_it_bounds_the_memory(tmp_path, groups, files):
    assert allowed_memory(system(tmp_path, groups, files)) == 1_000_000
    assert allowed_memory(tmp_path / "nowhere") > 1_000_000


def test_free_memory_is_what_the_machine_and_each_group_leave(tmp_path):
    held = {"memory.max": "1000000\n", "memory.current": "700000\n", "memory.stat": "inactive_file 200000\n"}
    root = system(tmp_path, "0::/a\n", {"a": held})

    assert free_memory(root) == 500_000
    (root / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:        300 kB\n")
    assert free_memory(root) == 300 * 1024
