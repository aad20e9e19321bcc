"""On a GPU: images per second of unfrozen epochs, against a bare loop on data in GPU memory.

    gpu.py --seconds 75 --out out/gpu.jsonl
    gpu.py --device cpu --images 64 --size 64 --archs resnet18 --seconds 60    # does it run?
    gpu.py --device cpu --only launching --images 512     # threads and processes, without a GPU

Most important first, one JSON line for each result as soon as it is known. What doesn't fit into
`--seconds` is skipped, and said to be. Every epoch of the kit is followed by a chunk of the bare
loop, so both see the same machine. Photographs of 480x360 are drawn once; then they are in the page
cache. Weights are random: only speed counts here.
"""
import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from common import machine, now, versions

WIDTH, HEIGHT, UNIQUE, N_VALID = 480, 360, 512, 128


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=75, help="all of it, imports included")
    parser.add_argument("--out", help="file for the JSON lines")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--archs", default="resnet18,resnet34,resnet50")
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--bs", type=int, default=64)
    parser.add_argument("--images", type=int, default=2048, help="training images in an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="the first one is a warm-up")
    parser.add_argument("--threads", type=int, help="that open images; default: the kit's")
    parser.add_argument("--workers", type=int, help="processes that do it; default: the kit's")
    parser.add_argument("--gpu-ms", type=float, default=0,
                        help="of one step of the GPU that `launching` pretends to have, at least")
    parser.add_argument("--only", default="epochs,workers,threads,stages,features,searched",
                        help="parts; also: launching")
    return parser.parse_args()


# Photographs

def draw_photograph(number):
    "The bytes of a JPEG of about 35 kB: soft shapes, finer ones, and a camera's noise."
    rng = np.random.default_rng(number)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells, strength in ((4, 90), (12, 45), (40, 18), (120, 6)):
        coarse = rng.normal(128, 40, (cells * 3 // 4, cells, 3)).clip(0, 255).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture += (np.asarray(smooth, np.float32) - 128) * (strength / 40)
    picture += 128 + rng.normal(0, 5, (HEIGHT, WIDTH, 1))
    path = Path(tempfile.gettempdir()) / f"photograph_{os.getpid()}.jpg"
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    content = path.read_bytes()
    path.unlink()
    return content


def make_folder(folder, n):
    "n files in 8 folders, one for each class; some are equal. Returns their mean size in bytes."
    unique, context = min(n, UNIQUE), multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), context) as pool:
        contents = list(pool.map(draw_photograph, range(unique), chunksize=8))
    for c in range(8): (folder / f"class_{c}").mkdir(parents=True)
    for i in range(n):
        (folder / f"class_{i % 8}" / f"{i:05d}.jpg").write_bytes(contents[i % unique])
    return statistics.mean(map(len, contents))


# Results and time

class OutOfTime(Exception):
    "The time is up."


def rounded(value):
    if isinstance(value, dict): return {k: rounded(v) for k, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


class Report:
    "Lines of JSON, on the screen and in a file; and a clock that says when to stop."
    def __init__(self, seconds, out):
        self.begun, self.seconds = now(), seconds
        self.file = open(out, "w") if out else None

    @property
    def left(self): return self.seconds - (now() - self.begun)

    def check(self, needed=0.):
        if self.left < needed: raise OutOfTime

    def __call__(self, what, **values):
        line = json.dumps(dict(what=what, at=round(now() - self.begun, 1), **rounded(values)))
        print(line, flush=True)
        if not self.file: return
        self.file.write(line + "\n")
        self.file.flush()

    def part(self, needed, f, *arguments):
        "A part that is skipped if time is up; an error in it ends it, but not the others."
        what = " ".join([f.__name__, *(a for a in arguments if isinstance(a, str))])
        try:
            self.check(needed)
            f(*arguments)
        except OutOfTime: self("skipped", part=what, seconds_left=self.left)
        except Exception as e:
            self("failed", part=what, error=f"{type(e).__name__}: {e}"[:500])
            failures.append(what)


failures = []
args = arguments()
report = Report(args.seconds, args.out)
if __name__ == "__main__":  # before torch is imported: processes are forked
    scratch = Path(tempfile.mkdtemp())
    os.environ["LESSONKIT_CACHE"] = str(scratch / "cache")
    started = now()
    mean_bytes = make_folder(scratch / "photos", args.images + N_VALID)
    report("photographs", files=args.images + N_VALID, mean_kb=mean_bytes / 1000,
           seconds=now() - started)

import torch  # noqa: E402
import torchvision  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from lessonkit.core.processes import usable_cores  # noqa: E402
from lessonkit.core.rng import seeded_rng  # noqa: E402
from lessonkit.data.augment import augmentations, to_inputs  # noqa: E402
from lessonkit.data.image_data import ImageData  # noqa: E402
from lessonkit.data.images import open_pixels  # noqa: E402
from lessonkit.data.loader import Loader  # noqa: E402
from lessonkit.learner import Learner  # noqa: E402
from lessonkit.train.features import precompute  # noqa: E402
from lessonkit.train.history import FitRecord  # noqa: E402
from lessonkit.train.loop import backward_batch, Phase, train_steps  # noqa: E402
from lessonkit.train.progress import ProgressTable  # noqa: E402
from lessonkit.train.run import run_phase  # noqa: E402

warnings.filterwarnings("ignore")
DTYPES = dict(bf16=torch.bfloat16, fp32=torch.float32)


def synchronize():
    if args.device == "cuda": torch.cuda.synchronize()


def timed(f, *arguments):
    "Seconds, with everything done that was asked of the GPU before and in it."
    synchronize()
    start = now()
    f(*arguments)
    synchronize()
    return now() - start


def repeated(f, per_call, seconds=.5, least=3, most=200):
    "Images per second of calls that handle `per_call` images each: median, lowest, highest."
    f()
    rates, begun = [], now()
    while len(rates) < least or (now() - begun < seconds and len(rates) < most):
        report.check()
        rates.append(per_call / timed(f))
    return spread(rates)


def spread(rates):
    return dict(img_s=statistics.median(rates), low=min(rates), high=max(rates), n=len(rates))


# The bare loop

class Bare:
    "Forward, backward and AdamW on one batch in the device's memory, and nothing else."
    def __init__(self, arch, precision, n_classes):
        torch.manual_seed(0)
        model = getattr(torchvision.models, arch)(weights=None, num_classes=n_classes)
        self.model = model.to(args.device, memory_format=torch.channels_last).train()
        x = torch.randn(args.bs, 3, args.size, args.size)
        self.x = x.to(args.device, memory_format=torch.channels_last)
        self.y = torch.randint(0, n_classes, (args.bs,)).to(args.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.dtype = DTYPES[precision]

    def step(self):
        enabled = self.dtype != torch.float32
        with torch.autocast(args.device, self.dtype, enabled=enabled):
            loss = cross_entropy(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def steps(self, n):
        for _ in range(n): self.step()

    def rate(self, n):
        "Images per second over n steps, also within the kit's validation."
        with torch.inference_mode(False), torch.enable_grad():
            return n * args.bs / timed(self.steps, n)


# Epochs through the whole pipeline

class Watched(Loader):
    "A loader that notes when an epoch of it was asked for, and how long the loop waited for it."
    def batches(self, *key, **options):
        synchronize()
        requests.append((now(), time.process_time()))
        waited.append(0.)
        with closing(super().batches(*key, **options)) as inner:
            while True:
                start = now()
                batch = next(inner, None)
                waited[-1] += now() - start
                if batch is None: return
                yield batch


requests, waited = [], []


def as_a(kind, loader, **changes):
    plain = {f.name: getattr(loader, f.name) for f in fields(Loader)}
    return kind(**(plain | changes))


def make_data():
    share = N_VALID / (args.images + N_VALID)
    options = {} if args.threads is None else dict(threads=args.threads)
    if args.workers is not None: options["workers"] = args.workers
    return ImageData.from_folder(scratch / "photos", valid_pct=share, size=args.size, bs=args.bs,
                                 augment=augmentations(), **options)


def make_learner(data, arch, precision, **options):
    return Learner(data, arch, weights=None, precision=precision, device=args.device,
                   model_dir=scratch / "models", show=False, **options)


def epochs(data, arch, precision):
    """The training part of each epoch, from asking for its batches to the start of validation.

    After each epoch, as a metric, a chunk of the bare loop runs. The first of both doesn't count.
    """
    bare, bare_rates, kit_rates, waits, cores = Bare(arch, precision, data.c), [], [], [], []
    chunk = max(2, min(25, len(data.train)))

    def after_validation(preds):
        (begun, busy_before), (ended, busy_after) = requests[-2:]
        kit_rates.append(data.train.n / (ended - begun))
        waits.append(waited[-2] / (ended - begun))
        cores.append((busy_after - busy_before) / (ended - begun))
        bare_rates.append(bare.rate(chunk))
        if report.left < 2 * (ended - begun) and len(kit_rates) > 1: raise OutOfTime
        return 0.

    watched = replace(data, train=as_a(Watched, data.train), valid=as_a(Watched, data.valid))
    learn = make_learner(watched, arch, precision, metrics=[after_validation])
    try: learn.fit_one_cycle(args.epochs)
    except OutOfTime: report("cut short", arch=arch, precision=precision)
    ratios = [k / b for k, b in zip(kit_rates, bare_rates)][1:]
    report("epoch", arch=arch, precision=precision, **spread(kit_rates[1:]),
           bare=spread(bare_rates[1:]), first=kit_rates[0],
           waiting_for_images=statistics.median(waits[1:]), cores=statistics.median(cores[1:]),
           ratio=statistics.median(ratios),
           ratio_low=min(ratios), ratio_high=max(ratios), met=statistics.median(ratios) >= .9)


# The stages one by one

def first_batches(loader, n, **options):
    with closing(loader.batches(0, 0, 0, **options)) as batches: return list(islice(batches, n))


def open_some(loader, seconds=.7):
    "Images per second of a loader, with nothing else to do."
    n, begun = 0, now()
    with closing(loader.batches(0, 0, 0)) as batches:
        for batch in batches:
            n += len(batch.index)
            if now() - begun > seconds: break
    return n / (now() - begun)


def decode_stages(data):
    "Milliseconds of one thread for each image: what opening it consists of."
    files, side = data.train.paths[:64], data.train.presize
    contents = [f.read_bytes() for f in files]
    tiny = scratch / "tiny.jpg"
    Image.open(files[0]).resize((16, 16)).save(tiny)

    def decoded(f):
        img = Image.open(f)
        img.draft("RGB", (side, side))
        img.load()
        return img
    images = [decoded(f) for f in files]
    squares = [img.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2)
               for img in images]
    arrays = [np.asarray(s) for s in squares]
    row = np.empty_like(arrays[0])

    def each(f, items):
        def run():
            for item in items: f(item)
        return 1e3 * min(timed(run) for _ in range(3)) / len(items)
    resize = lambda i: i.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2)
    report("opening, ms per image, one thread",
           kit=each(lambda f: open_pixels(f, side), files), read=each(Path.read_bytes, files),
           decode=each(decoded, files), resize=each(resize, images),
           to_array=each(np.asarray, squares),
           into_batch=each(lambda a: np.copyto(row, a), arrays),
           python=each(lambda f: open_pixels(f, 16), [tiny] * 64),
           drafted=list(images[0].size), bytes_each=statistics.mean(map(len, contents)))


def raw_threads(data, threads):
    "Images per second of Pillow alone (open, decode, resize) in a pool of threads."
    files, side = data.train.paths[:512], data.train.presize
    def work(f):
        img = Image.open(f)
        img.load()
        return np.asarray(img.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2))
    with ThreadPoolExecutor(threads) as pool:
        start = now()
        for _ in pool.map(work, files): pass
        return len(files) / (now() - start)


def opening(data):
    "How fast images are opened, and what of that is Pillow's."
    decode_stages(data)
    counts = sorted({1, 4, 8, 16, 32, data.train.threads})
    if args.device == "cpu": counts = sorted({1, data.train.threads})
    for threads in counts:
        report.check(1.5)
        report("opening, img/s", threads=threads,
               kit=open_some(replace(data.train, threads=threads, workers=0)),
               pillow_alone=raw_threads(data, threads) if threads > 1 else None,
               kits_default=threads == data.train.threads)


def pretended_steps(loader, launch_times, seconds=6.):
    "Images per second of a thread that launches 600 operations, and waits for a GPU, each step."
    numbers, n, begun = [torch.zeros(1) for _ in range(600)], 0, now()
    for epoch in range(10**6):
        with closing(loader.batches(5, epoch)) as batches:
            for batch in batches:
                start = now()
                for number in numbers: number.add_(1)
                launch_times.append(1e3 * (now() - start))
                time.sleep(max(0., args.gpu_ms / 1e3 - (now() - start)))
                n += len(batch.index)
                if now() - begun > seconds: return n / (now() - begun)


def launching(data, rounds=5):
    "What threads and processes that open images do to a thread that keeps a GPU busy."
    ways = dict(threads=replace(data.train, threads=args.threads or 16, workers=0),
                processes=replace(data.train, workers=args.workers or usable_cores()))
    rates, times, idle = {way: [] for way in ways}, {way: [] for way in ways}, []
    for loader in ways.values(): pretended_steps(loader, [], 2)
    pretended_steps(as_a(Ready, data.train), idle, 2)
    for _ in range(rounds):
        for way, loader in ways.items():
            report.check(6)
            rates[way].append(pretended_steps(loader, times[way]))
    for way in ways:
        report("launching", way=way, **spread(rates[way]),
               launch_ms=statistics.median(times[way]), launch_ms_worst=max(times[way]),
               launch_ms_alone=statistics.median(idle), gpu_ms=args.gpu_ms)
    ratios = [p / t for p, t in zip(rates["processes"], rates["threads"])]
    report("launching: processes over threads", ratio=statistics.median(ratios),
           low=min(ratios), high=max(ratios))


class Ready(Loader):
    "A loader that yields the same opened batch again and again."
    def batches(self, *key, start=0, ahead=2):
        if self.presize not in batch_of:
            batch_of[self.presize] = first_batches(as_a(Loader, self), 1)[0]
        for index in self.index_batches(*key, start=start): yield batch_of[self.presize]


batch_of = {}


class Busy:
    "A context in which a loader opens images all the time, and throws them away."
    def __init__(self, loader): self.loader, self.stop = loader, threading.Event()

    def run(self):
        for epoch in range(10**6):
            with closing(self.loader.batches(9, epoch)) as batches:
                for _ in batches:
                    if self.stop.is_set(): return

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def launch_ms(f, n=10):
    "Milliseconds until n calls have been handed to the GPU, for each; it may still be computing."
    synchronize()
    start = now()
    for _ in range(n): f()
    took = now() - start
    synchronize()
    return 1e3 * took / n


def stages(data, arch, precision):
    "What an epoch consists of, one by one: on a ready batch, then in the loop, then with images."
    learn = make_learner(data, arch, precision)
    loader, model, engine = data.train, learn.model, learn.engine.for_training(learn.model)
    batch, optimizer = first_batches(loader, 1)[0], learn.trainer.new_optimizer()
    batch_of[loader.presize] = batch
    losses, key, n = learn.trainer.losses, (42, 0, 0, 0), len(batch.index)
    mean = lambda logits, y: losses(logits, y).mean()

    def augmented(): return to_inputs(batch, loader, engine.device, seeded_rng(*key, "augment"))
    x, y = augmented(), batch.y.to(engine.device)
    model.train()

    def step():
        engine.backward(mean(engine.forward(model, x), y))
        engine.step(optimizer)
    def whole_step():
        backward_batch(model, batch, loader, losses, engine, key, n)
        engine.step(optimizer)

    def copied(source): return lambda: source.to(engine.device, non_blocking=True)
    def several(f, k=10):
        def run():
            for _ in range(k): f()
        return run
    def one(what, f, per_call=n, launch=False, **more):
        rates = repeated(f, per_call)
        if launch: more["launch_ms"] = launch_ms(f)
        report(f"stage: {what}", arch=arch, precision=precision,
               ms_per_batch=1e3 * n / rates["img_s"], **rates, **more)
    one("step on ready inputs, synchronized", step, launch=True)
    one("step on ready inputs, not synchronized", several(step), 10 * n)
    one("to the device and augmented", augmented, launch=True)
    one("augmented, copied, trained", whole_step, launch=True)
    one("model.train()", model.train)
    one("copy, as the loader gives it", copied(batch.x), pinned=batch.x.is_pinned())
    one("copy, not pinned", copied(torch.empty_like(batch.x)))

    loops = loops_of(learn, arch, precision)
    some, few = first_items(loader, 16), first_items(loader, 4)
    loops("loop on an opened batch", as_a(Ready, some))
    with Busy(replace(loader, threads=8, workers=0)):
        loops("loop on an opened batch while threads open images", as_a(Ready, few), threads=8)
    with Busy(replace(loader, workers=args.workers)):
        loops("loop on an opened batch while workers open images", as_a(Ready, some))
    loops("loop on images in memory", as_a(Loader, some, cache="memory", _kept={}))
    loops("whole, 8 batches ahead", as_a(Ahead, some))
    for threads in sorted({8, 16, loader.threads}):
        loops("whole", replace(some, threads=threads, workers=0), threads=threads)


def first_items(loader, batches):
    "The same loader with images for so many batches, at most."
    n = min(loader.n, batches * loader.bs)
    return replace(loader, paths=loader.paths[:n], targets=loader.targets[:n], _kept={})


def loops_of(learn, arch, precision):
    "A function that reports images per second of the kit's loop over a loader."
    model, engine = learn.model, learn.engine.for_training(learn.model)
    if args.device == "cpu": engine.ahead = 2  # as on a GPU: else nothing is opened ahead
    optimizer = learn.trainer.new_optimizer()
    phase = Phase(1, (1e-5,) * len(model.groups))

    def loop(loader):
        steps = train_steps(model, loader, phase, optimizer, learn.trainer.losses, engine)
        run_phase(steps, FitRecord("loop"), ProgressTable(False), lambda: dict(valid_loss=0.),
                  threading.Event())

    def loops(what, loader, **more):
        report.check(1.5)
        rates = repeated(lambda: loop(loader), loader.n, least=2)
        report(f"stage: {what}", arch=arch, precision=precision, **rates, **more)
    return loops


def first_batch_ms(loader):
    "Milliseconds from asking for an epoch to its first batch."
    start = now()
    with closing(loader.batches(7)) as batches: next(batches)
    return 1e3 * (now() - start)


def workers(data, arch, precision):
    "Processes that open images, against threads: opening alone, then the whole loop."
    loops = loops_of(make_learner(data, arch, precision), arch, precision)
    most = usable_cores()
    for count in sorted({1, 4, 8, 16, most} & set(range(most + 1)), reverse=True) + [0]:
        report.check(2)
        loader = replace(data.train, workers=count)
        started = first_batch_ms(loader)  # includes the start of workers
        report("opening, img/s", workers=count, kit=open_some(loader), started_ms=started,
               first_batch_ms=statistics.median(first_batch_ms(loader) for _ in range(3)))
        batches = max(4, min(32, 2 * count)) if count else 8
        loops("whole, workers", first_items(loader, batches), workers=count)


class Ahead(Loader):
    "A loader that opens eight batches ahead."
    def batches(self, *key, start=0, ahead=2):
        yield from super().batches(*key, start=start, ahead=8)


def features(data, arch, precision):
    "Images per second while the features of a frozen body are computed, without augmentation."
    learn = make_learner(replace(data, train=replace(data.train, augment=None)), arch, precision)
    learn.freeze()
    rates = []
    for _ in range(3):
        report.check(1)
        total = data.train.n + data.valid.n
        rates.append(total / timed(precompute, learn.model, learn.data, learn.engine))
    report("features of a frozen body", arch=arch, precision=precision, **spread(rates[1:]),
           first=rates[0])


def searched(data, arch, precision):
    "The bare loop with cudnn.benchmark, which looks for the fastest kernels first."
    if args.device != "cuda": return
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        bare = Bare(arch, precision, data.c)
        bare.rate(10)
        report("bare loop with cudnn.benchmark", arch=arch, precision=precision,
               **spread([bare.rate(20) for _ in range(3)]))
    finally: torch.backends.cudnn.benchmark = before


def main():
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    report("machine", **machine(), gpu=gpu, versions=versions("lessonkit"),
           torch_threads=torch.get_num_threads())
    start = now()
    data = make_data()
    report("data", seconds=now() - start, train=data.train.n, valid=data.valid.n, bs=args.bs,
           size=args.size, presize=data.train.presize, threads=data.train.threads,
           workers=data.train.workers, cores=usable_cores())
    archs, parts = args.archs.split(","), args.only.split(",")
    first, *others = args.precisions.split(",")
    def each(part, precision, needed):
        for arch in archs: report.part(needed, part, data, arch, precision)
    if "epochs" in parts: each(epochs, first, 6)
    if "workers" in parts: report.part(4, workers, data, archs[0], first)
    for precision in others if "epochs" in parts else (): each(epochs, precision, 7)
    if "stages" in parts: report.part(4, stages, data, archs[0], first)
    if "threads" in parts: report.part(4, opening, data)
    if "features" in parts: report.part(3, features, data, archs[0], first)
    if "launching" in parts: report.part(4, launching, data)
    if "searched" in parts: each(searched, first, 3)
    if "features" in parts:
        for arch in archs[1:]: report.part(3, features, data, arch, first)
    report("end", failures=failures)


if __name__ == "__main__":
    try: main()
    finally: shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(bool(failures))
