"""Lists of files that do not keep a rule yet. They can only get shorter (`without_allowed`).

`python tools/allowed.py` removes the entries that are out of date.
"""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def without_allowed(problems, allowed, list_name, root):
    """The problems outside the `allowed` files, and what is out of date in that list.

    `problems` maps a file's name to its problems, `allowed` holds glob patterns. Every file that
    a pattern matches must still break the rule: once it is rewritten, its entry has to go.
    """
    stale = []
    excused = set()
    for pattern in allowed:
        matched = {path.relative_to(root).as_posix() for path in root.glob(pattern)}
        excused |= matched
        if not matched and root == ROOT:   # a test's small project has few files
            stale.append(f"{list_name}: {pattern!r} matches no file: remove it from the list")
        for name in sorted(matched - problems.keys()):
            stale.append(f"{list_name}: {name} keeps the rule now: remove it from the list")
    rest = [problem for name in sorted(problems.keys() - excused) for problem in problems[name]]
    return rest + stale


def shrink():
    "Remove what is out of date from the lists in tools/lint.py and tools/docments.py."
    import docments, lint

    for module, check in ((lint, lint.lint), (docments, docments.docments)):
        path = Path(module.__file__)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        out_of_date = {problem.split()[1].strip("'") for problem in check(ROOT)
                       if problem.endswith("remove it from the list")}
        kept = [line for line in lines if line.strip().rstrip(",").strip('"') not in out_of_date]
        path.write_text("".join(kept), encoding="utf-8")
        print(f"{path.name}: {len(lines) - len(kept)} entries removed")


if __name__ == "__main__":
    shrink()
