"""What both sides share: the photographs, which of them are used, and the facts about machine and versions. Needs neither library."""
import contextlib, csv, importlib.util, json, os, platform, resource, sys, time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PAT = r"^(.+)_\d+\.jpg$"                            # the label is what stands before the number
now = time.perf_counter


def solar_table():
    "The folder of elpv-dataset's 2,624 photographs, and (file, the experts' doubt, kind of cell) for each."
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None: sys.exit("the photographs come with a package: pip install --no-deps elpv-dataset")
    source = Path(spec.origin).parent / "data"
    rows = csv.reader((source / "labels.csv").read_text().splitlines(), delimiter=" ", skipinitialspace=True)
    return source, [(name, float(doubt), kind) for name, doubt, kind in ([c for c in r if c] for r in rows)]


def solar_cells(n=None):
    "Folder, files and labels of n solar cells by lot (all: None): defective where the experts' doubt is above 1/2."
    import numpy as np
    source, rows = solar_table()
    keep = np.sort(np.random.default_rng(0).permutation(len(rows))[:n])
    return source, [rows[i][0] for i in keep], ["defective" if rows[i][1] > .5 else "good" for i in keep]


def make_photographs(folder, n=640, noise=12.):
    """n color JPEGs of 500x375, quality 90, about 80 kB, much as those of Oxford-IIIT Pets, from the solar cells of the
    package elpv-dataset: enlarged, cut, tinted, lit unevenly, with the noise of a camera. Four classes. The same ones every time."""
    folder, done = Path(folder), Path(folder) / f".complete_{n}"
    if done.exists(): return folder
    import numpy as np
    from PIL import Image
    source, rows = solar_table()
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for k, i in enumerate(rng.permutation(len(rows))[:n]):
        name, doubt, kind = rows[i]
        gray = np.asarray(Image.open(source / name).convert("L").resize((500, 500), Image.Resampling.BICUBIC))[62:437].astype("f4")
        tint, slope = rng.uniform(.5, 1., 3), rng.uniform(-40, 40, (2, 3))
        y, x = np.linspace(-1, 1, 375)[:, None, None], np.linspace(-1, 1, 500)[None, :, None]
        photo = gray[..., None] * tint + slope[0] * y + slope[1] * x + rng.normal(0, noise, (375, 500, 1)) + rng.normal(0, noise / 2, (375, 500, 3))
        label = f"{kind}_{'defect' if doubt >= .5 else 'good'}"
        Image.fromarray(photo.clip(0, 255).astype("u1")).save(folder / f"{label}_{k}.jpg", quality=90)
    done.touch()
    return folder


def pick_files(folder, n):
    "Files for n training pictures and n/4 for validation (valid_pct=.2), spread over the classes."
    files = sorted(Path(folder).glob("*.jpg"))
    total = n + n // 4
    if len(files) < total: sys.exit(f"{folder} has {len(files)} photographs; {n} for training need {total}")
    return [files[i * len(files) // total] for i in range(total)]


def cycled(files, n):
    "n files, from the first again where there are too few: for speed a picture may come twice."
    return [files[i % len(files)] for i in range(n)]


@contextlib.contextmanager
def left_behind(*folders):
    "Yields a list that holds, afterwards, the names of what has appeared in the folders meanwhile."
    before, found = {f: set(os.listdir(f)) for f in folders}, []
    yield found
    found += sorted(name for f in folders for name in set(os.listdir(f)) - before[f])


def peak_mb(who=resource.RUSAGE_SELF):
    "The most memory this process (or its largest child) has held at once, MiB."
    return round(resource.getrusage(who).ru_maxrss / 1024)


def versions(*names):
    found = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "pillow", *names):
        try: found[name] = version(name)
        except PackageNotFoundError: found[name] = None
    return found


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in open("/proc/cpuinfo") if line.startswith("flags")), [])
    memory = int(next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal")))
    return dict(cpu=cpu, cores=os.cpu_count(), memory_gb=round(memory / 2**20, 1), bf16=[f for f in ("avx512_bf16", "amx_bf16") if f in flags],
                system=f"{platform.system()} {platform.release()}")


def emit(**values): print(json.dumps(values), flush=True)
