"""Runners of kernel jobs, one of each kind for the whole session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.kernels.runners import HERE, BrowserRunner, NodeRunner


@pytest.fixture(scope="session")
def browser_runner(browser: Browser, local_server: Callable[[Path], str]) -> Iterator[BrowserRunner]:
    runner = BrowserRunner(browser, local_server(HERE))
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def node_runner() -> Iterator[NodeRunner]:
    runner = NodeRunner()
    yield runner
    runner.close()
