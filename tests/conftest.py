"""What every test needs before torch is imported, and the order in which two workers take the files."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what tests start

import pytest

from tests.warm import WarmPython

pytest_plugins = ["tests.running"]

# A worker takes a file when it is free: a long file that is taken last would leave the other one idle.
LONG = [
    "test_readme.py",
    "test_sweeps.py",
    "test_tracking_faults.py",
    "test_faults_kill.py",
    "test_processes.py",
    "test_resuming.py",
    "test_cuda_kernel.py",
    "test_page_browser.py",
    "test_commands.py",
    "test_tracking.py",
    "test_finished.py",
]
# These take twenty seconds or more, as do the studies: `pytest -m "not slow"` leaves them out.
SLOW = {
    *LONG,
    "test_beside.py",
    "test_command.py",
    "test_config.py",
    "test_faults.py",
    "test_faults_damage.py",
    "test_faults_data.py",
    "test_figures.py",
    "test_job.py",
    "test_page.py",
    "test_recollection.py",
    "test_terminal.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others in the order in which they were found; and the mark of slow ones."""
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))
    for item in items:
        if item.path.name in SLOW or item.path.parent.name == "studies":
            item.add_marker("slow")


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """A Python that has imported torch already, for commands."""
    python = WarmPython()
    yield python
    python.close()
