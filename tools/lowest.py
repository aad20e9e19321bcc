"""The lowest versions that pyproject.toml promises, as constraints for pip.

    python tools/lowest.py > lowest.txt
    python -m pip install -c lowest.txt -e ".[dev]"

Only what users install counts: the package's own dependencies and the extras solar, lab and heic.
The tools of developers are as new as elsewhere.
"""
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ["solar", "lab", "heic"]


def lowest(root):
    "['package==version'] for every requirement, whose lowest version has to be given by >=."
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in EXTRAS:
        requirements += project["optional-dependencies"][extra]
    constraints = []
    for requirement in map(Requirement, requirements):
        bounds = [spec.version for spec in requirement.specifier if spec.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"{requirement}: give its lowest version, as in {requirement.name}>=1")
        constraints.append(f"{requirement.name}=={bounds[0]}")
    return constraints


if __name__ == "__main__":
    print("\n".join(lowest(ROOT)))
