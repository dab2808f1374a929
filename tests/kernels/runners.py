"""The two ways to run a job of run_case.js: in a page, or in Node on the lavapipe driver."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser
from playwright.sync_api import Error as PlaywrightError

from tests.kernels import lavapipe

HERE = Path(__file__).parent


class _Runner:
    """What both have: `features` and `limits` of the adapter, and whether a job's needs are within them."""

    def __init__(self, capabilities: dict[str, Any]) -> None:
        self.features = set(capabilities["features"])
        self.limits = dict(capabilities["limits"])

    def can(self, features: tuple[str, ...], limits: dict[str, int]) -> bool:
        return set(features) <= self.features and all(self.limits.get(name, 0) >= n for name, n in limits.items())


def _decoded(outputs: dict[str, str]) -> dict[str, bytes]:
    return {name: base64.b64decode(data) for name, data in outputs.items()}


class BrowserRunner(_Runner):
    """run_case.js in a page of the test browser."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.page = browser.new_page()
        self.page.goto(f"{url}/page.html")
        self.page.evaluate(
            "async () => { globalThis.runner = (await import('./run_case.js')).createRunner(navigator.gpu) }"
        )
        super().__init__(self.page.evaluate("() => runner.capabilities()"))

    def run(self, job: dict[str, Any]) -> dict[str, bytes]:
        """The read_write buffers after the job, by name.

        Raises:
            AssertionError: the shader does not compile, or WebGPU refused something.
        """
        try:
            text = self.page.evaluate(
                "async (job) => JSON.stringify(await runner.run(JSON.parse(job)))", json.dumps(job)
            )
        except PlaywrightError as error:
            raise AssertionError(error.message) from None
        return _decoded(json.loads(text))

    def close(self) -> None:
        self.page.close()


class NodeRunner(_Runner):
    """run_case.js in a Node process."""

    def __init__(self) -> None:
        setup = lavapipe.ensure()
        self.messages = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [setup.node, str(HERE / "run_node.mjs"), str(setup.package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            env={**os.environ, **setup.environment},
            text=True,
            encoding="utf-8",
        )
        super().__init__(self._answer())

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.messages.seek(0)
            said = self.messages.read().strip().splitlines()
            raise AssertionError(f"Node with WebGPU ended: {said[-1] if said else 'no message'}")
        answer = json.loads(line)
        if "error" in answer:
            raise AssertionError(answer["error"])
        return answer

    def run(self, job: dict[str, Any]) -> dict[str, bytes]:
        """As `BrowserRunner.run`."""
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return _decoded(self._answer()["outputs"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.messages.close()
