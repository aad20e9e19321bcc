"""Split a student's file into the parts that the kit carries, and list their SHA-256.

    python split.py student.safetensors

The file is one that make.py wrote, with its classifier. The parts go into lessonkit/assets/, and
the list into weights.json beside them, where `weights="lessonkit"` finds both. Parts of the same
network that were there before are replaced. The same file always gives the same parts.
"""
import argparse
import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torchvision import models

from lessonkit.core.files import load_tensors, save_tensors, write_atomic
from lessonkit.model.weights import bundled_weights, load_state

ASSETS = Path(__file__).resolve().parents[2] / "lessonkit/assets"
AT_MOST = 12_000_000  # bytes of a part


def read_student(path):
    "The tensors and metadata of a student's file, if the kit could use it."
    tensors, metadata = load_tensors(path)
    if missing := {"arch", "stats", "head"} - metadata.keys():
        raise ValueError(f"{path.name} doesn't say what it is: no {', '.join(sorted(missing))} in "
                         "its metadata. Make it with make.py")
    if not metadata["head"]:
        raise ValueError(f"{path.name} has no classifier: make it without --body-only")
    load_state(models.get_model(metadata["arch"], weights=None), tensors, path.name)
    return tensors, metadata


def assign(sizes, parts):
    "Names for each part: the largest tensor first, into the part that is emptiest so far."
    names, filled = [[] for _ in range(parts)], [0] * parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        emptiest = filled.index(min(filled))
        names[emptiest].append(name)
        filled[emptiest] += sizes[name]
    return names


def make_parts(tensors, metadata, parts):
    "{file name: content} of the parts."
    made = {}
    sizes = {name: t.nbytes for name, t in tensors.items()}
    for i, names in enumerate(assign(sizes, parts), start=1):
        name = f"{metadata['arch']}-distilled-{i}-of-{parts}.safetensors"
        with TemporaryDirectory() as tmp:
            part = {k: tensors[k] for k in sorted(names)}
            made[name] = save_tensors(Path(tmp, name), part, metadata).read_bytes()
        if len(made[name]) > AT_MOST:
            raise ValueError(f"{name} would have {len(made[name])} bytes, and {AT_MOST} are "
                             "allowed: make more --parts")
    return made


def split(path, folder=ASSETS, parts=2):
    "Write the parts and the index. Returns the names of the parts, with their SHA-256."
    tensors, metadata = read_student(path)
    arch = metadata["arch"]
    index_file = folder / "weights.json"
    index = json.loads(index_file.read_text("utf-8")) if index_file.exists() else {}
    student = hashlib.sha256(path.read_bytes()).hexdigest()
    made = make_parts(tensors, metadata | dict(student=student), parts)
    old_names = index.get(arch, {}).keys()
    index[arch] = {k: hashlib.sha256(content).hexdigest() for k, content in made.items()}
    for name, content in made.items(): write_atomic(folder / name, content)
    write_atomic(index_file, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())
    for name in old_names - made.keys(): (folder / name).unlink(missing_ok=True)
    return index[arch]


def check(path, folder):
    "Is what the kit reads what the file holds? Returns the source, in words."
    tensors, metadata = load_tensors(path)
    found, _, source = bundled_weights(metadata["arch"], folder)
    same = tensors.keys() == found.keys()
    if not same or not all(torch.equal(t, found[name]) for name, t in tensors.items()):
        raise ValueError("the parts don't hold what the file does")
    return source


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, help="file that make.py wrote, .safetensors")
    parser.add_argument("--folder", type=Path, default=ASSETS, help="where the parts go")
    parser.add_argument("--parts", type=int, default=2)
    args = parser.parse_args()
    for name, digest in split(args.student, args.folder, args.parts).items():
        print(f"{name}: {(args.folder / name).stat().st_size} bytes, SHA-256 {digest}")
    print(check(args.student, args.folder))


if __name__ == "__main__": main()
