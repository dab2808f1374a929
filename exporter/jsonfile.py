"""Reading the JSON files of checkpoints and bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.errors import BadCheckpoint


def read_json(path: Path, label: str, hint: str = "") -> dict[str, Any]:
    """Parse a JSON object; raises BadCheckpoint that calls the file `label`."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(f"{path.parent}: expected {label}{hint}, found no such file") from None
    except OSError as problem:
        raise BadCheckpoint(f"{label}: expected a readable file, found: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise BadCheckpoint(f"{label}: expected JSON, found: {problem}") from None
    if not isinstance(parsed, dict):
        raise BadCheckpoint(f"{label}: expected a JSON object, found {type(parsed).__name__}")
    return parsed
