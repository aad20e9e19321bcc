"""A notebook's cells as text, for `git diff`: `python tools/notebook_text.py FILE`."""
import json, sys
from pathlib import Path


def text(path):
    "All cells, each under a line with its number and type; outputs are left out."
    content = Path(path).read_text(encoding="utf-8")
    try:
        cells = json.loads(content)["cells"]
    except (ValueError, KeyError):   # in the middle of a merge, or empty
        return content
    parts = []
    for i, cell in enumerate(cells):
        source = "".join(cell["source"])
        parts.append(f"--- cell {i}: {cell['cell_type']}\n{source}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    print(text(sys.argv[1]), end="")
