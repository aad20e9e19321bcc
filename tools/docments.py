"""Every public parameter of the package has a comment (docment): `python tools/docments.py`.

    def open_image(
        file: str, # path of an image
        size: int = 224, # side of the square in pixels
    ): ...

Each parameter has a line of its own, with the comment on it or above it: nbdev reads the comments
for its tables, and would miss others. Fields of dataclasses and named tuples count as well. `self`,
`cls`, `_private` names and `**kwargs` need no comment: what is forwarded is described where it
goes.
"""
import ast, io, sys, tokenize
from collections import Counter, defaultdict

from allowed import ROOT, without_allowed

# Not rewritten yet. When you rewrite a module, remove it: the list may not get longer.
DOCMENTS_MISSING_ALLOWED = []
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SPECIAL_METHODS = {"__init__", "__call__"}


def comment_lines(source):
    "{line number: does the comment have the line to itself} of `source`."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: not t.line[:t.start[1]].strip()
            for t in tokens if t.type == tokenize.COMMENT}


def name_of(node):
    "The last name of a decorator or base class: `dataclass` of `@dataclasses.dataclass(...)`."
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def is_public(name):
    return not name.startswith("_")


def parameters(function):
    "[(name, line number)] of the parameters that need a comment."
    args = function.args
    found = args.posonlyargs + args.args + args.kwonlyargs
    if args.vararg:
        found = found + [args.vararg]
    return [(arg.arg, arg.lineno) for arg in found
            if is_public(arg.arg) and arg.arg not in ("self", "cls")]


def fields(cls):
    "[(name, line number)] of the fields of a dataclass or a named tuple, else nothing."
    has_fields = "dataclass" in map(name_of, cls.decorator_list)
    has_fields |= "NamedTuple" in map(name_of, cls.bases)
    if not has_fields:
        return []
    annotated = [node for node in cls.body if isinstance(node, ast.AnnAssign)]
    return [(node.target.id, node.lineno) for node in annotated
            if is_public(node.target.id) and "ClassVar" not in ast.unparse(node.annotation)]


def is_described_elsewhere(function):
    "`@size.setter`: by the property; `@forwards_to(f)`: by the function that gets the arguments."
    return bool({"setter", "forwards_to"} & set(map(name_of, function.decorator_list)))


def documentable(tree):
    "[(qualified name, [(parameter, line number)])] of all public functions, methods and classes."
    found = []
    for node in tree.body:
        if isinstance(node, FUNCTIONS) and is_public(node.name):
            found.append((node.name, parameters(node)))
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            found.append((node.name, fields(node)))
            for method in node.body:
                if not isinstance(method, FUNCTIONS) or is_described_elsewhere(method):
                    continue
                if is_public(method.name) or method.name in SPECIAL_METHODS:
                    found.append((f"{node.name}.{method.name}", parameters(method)))
    return found


def missing(source):
    "[(qualified name, parameter)] of the public parameters in `source` that have no comment."
    comments = comment_lines(source)
    found = []
    for name, params in documentable(ast.parse(source)):
        on_line = Counter(line for _, line in params)
        for param, line in params:
            is_alone = on_line[line] == 1
            has_comment = line in comments or comments.get(line - 1, False)
            if not (is_alone and has_comment):
                found.append((name, param))
    return found


def docments(root, allowed=DOCMENTS_MISSING_ALLOWED):
    "Public parameters without a comment, in modules outside `allowed`."
    problems = defaultdict(list)
    for path in sorted((root / "lessonkit").rglob("*.py")):
        if path.name == "_modidx.py":
            continue
        module = path.relative_to(root).as_posix()
        for name, param in missing(path.read_text(encoding="utf-8")):
            problem = f"{module}: {name}: no comment on the line of its parameter {param!r}"
            problems[module].append(problem)
    return without_allowed(problems, allowed, "DOCMENTS_MISSING_ALLOWED", root)


if __name__ == "__main__":
    problems = docments(ROOT)
    print("\n".join(problems) or "every public parameter has a comment")
    sys.exit(bool(problems))
