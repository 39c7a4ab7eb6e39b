"""Fixtures that every folder of tests uses."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.net_support import Link, veth

# The same examples in every run of the small size; the full size looks for new ones.
# No deadline: tests assert no time, and a busy machine takes its own.
settings.register_profile(
    "chronicle", deadline=None, derandomize=os.environ.get("CHRONICLE_FIRE") != "full"
)
settings.load_profile("chronicle")

# A shell that starts a job in the background has it ignore the interrupt, and so all that the job
# starts: the tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the test's own, in memory where there is a ``/dev/shm``.

    Queues allocate whole segments, and on a disk that would be most of what the tests do.
    """
    shm = Path("/dev/shm")
    in_memory = shm.is_dir() and os.access(shm, os.W_OK)
    with tempfile.TemporaryDirectory(
        prefix="chronicle-test-", dir=shm if in_memory else None, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_handlers() -> Iterator[None]:
    """Compiled handlers are cached in a folder of this run, and not in the user's."""
    with tempfile.TemporaryDirectory(prefix="chronicle-cache-") as name:
        before = os.environ.get("CHRONICLE_CACHE_DIR")
        os.environ["CHRONICLE_CACHE_DIR"] = name
        yield
        if before is None:
            del os.environ["CHRONICLE_CACHE_DIR"]
        else:
            os.environ["CHRONICLE_CACHE_DIR"] = before


@pytest.fixture
def path(folder: Path) -> Path:
    """Where the test's queue will be. Nothing is there yet."""
    return folder / "queue"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    """A veth pair, shared by the tests of a module."""
    with veth() as made:
        yield made


@pytest.fixture(params=["packet", "xdp"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Each way in which a packet ring may get its packets."""
    return request.param


@pytest.fixture(autouse=True)
def sidecars_stop_cleanly(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A sidecar whose shutdown is not complete has logged so; a test that wants that clears it."""
    yield
    found = [r.getMessage() for r in caplog.get_records("call") if r.name == "chronicle.sidecar"]
    assert not [line for line in found if line.startswith("the shutdown is not complete")]
