"""The folders of modules that tests share by name alone, put on the path."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDERS = sorted(
    {
        str(file.parents[1] if (file.parent / "__init__.py").exists() else file.parent)
        for file in Path(__file__).parent.rglob("*.py")
    }
)
"""Names of files are unique, so their order does not matter."""

sys.path[:0] = FOLDERS
