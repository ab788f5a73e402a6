"""What git does to a notebook before it compares or adds it: outputs, counts and traces of a run are taken off.

nbstripout's work with nothing but Python, as git may ask for it where no environment was made, or is any more. `make`
copies this file into .git, so that it is there in every worktree and at every commit.
"""

import json
import sys
from pathlib import Path

KEYS = (
    "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info.version metadata.widgets"
)
MORE = "collapsed ExecuteTime heading_collapsed hidden scrolled"  # of a cell, which nbstripout takes off unasked


def stripped(text: str) -> str:
    """The notebook as it is kept; text that is no notebook stays as it is."""
    try:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
            take_off(cell, [key.removeprefix("cell.") for key in KEYS.split() if key.startswith("cell.")])
            take_off(cell, [f"metadata.{key}" for key in MORE.split()])
        take_off(notebook, [key for key in KEYS.split() if not key.startswith("cell.")])
    except (ValueError, KeyError, TypeError, AttributeError):
        return text
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def take_off(part: dict, keys: list[str]) -> None:
    """Remove what is under these keys, with dots, where it is there."""
    for key in keys:
        *path, last = key.split(".")
        inner = part
        for name in path:
            inner = inner.get(name, {})
        inner.pop(last, None)


if __name__ == "__main__":
    content = Path(sys.argv[1]).read_bytes() if sys.argv[1:] else sys.stdin.buffer.read()
    text = stripped(content.decode("utf-8", "surrogateescape"))
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
