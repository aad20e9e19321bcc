"""What a child process of tests/fuzzing.py does with damaged images, under limits.

`python fuzz_child.py open FOLDER JOURNAL START CODE` opens the files of a folder one by one;
`... use ...` makes data of all of them, trains on it and predicts. Each result is a line in the
journal, so that it is there even if the process dies. CODE runs first: tests make mistakes with it.
"""
import json, math, resource, signal, sys, time, warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lessonkit.data import images
from lessonkit.data.checks import check_images
from lessonkit.data.formats import ImageTooLarge, limit_decoding
from lessonkit.data.image_data import ImageData
from lessonkit.export import load_classifier
from lessonkit.learner import Learner

DECODING = 2**28           # bytes that decoding may take: a quarter of what the kit allows
ADDRESSES = 12 * 2**30     # bytes: where this ends, malloc fails instead of the machine
SECONDS = dict(open=15, use=300)   # of work after which the process is killed
WAITING = 8                # times as long if it waits, or the machine is busy
SIDE = 48                  # pixels that images are squeezed into


def status(name):
    "A number of bytes that the system knows about this process."
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measured(work):
    "What a function returns, its seconds, and the bytes by which memory grew at its peak."
    Path("/proc/self/clear_refs").write_text("5")   # the peak is counted from here on
    before, began = status("VmRSS"), time.perf_counter()
    result = work()
    return result, time.perf_counter() - began, status("VmHWM") - before


def limit_time(command):
    "From now on. The signals end a process even inside of a decoder."
    signal.setitimer(signal.ITIMER_PROF, SECONDS[command])
    signal.alarm(WAITING * SECONDS[command])


def open_squeezed(file):
    "As for training. The reason why it can't be read; an empty text if it can."
    try: pixels, aspect = images.open_pixels(file, SIDE)
    except images.ImageReadError as e: return str(e) or "no reason"
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    assert math.isfinite(aspect) and aspect > 0
    return ""


def open_whole(file):
    "A file that can be read squeezed may take too much memory, and nothing else may be wrong."
    try: whole, aspect = images.open_image(file)
    except images.ImageReadError as e:
        if not isinstance(e.__cause__, ImageTooLarge): raise
    else: assert whole.mode == "RGB" and aspect == whole.width / whole.height


def open_both_ways(file):
    reason = open_squeezed(file)
    if not reason: open_whole(file)
    return reason


def open_files(folder, journal, start):
    for file in sorted(folder.iterdir())[start:]:
        limit_time("open")
        reason, seconds, growth = measured(lambda: open_both_ways(file))
        row = dict(file=file.name, reason=reason, seconds=seconds, growth=growth)
        print(json.dumps(row), file=journal, flush=True)


# ---- data, training and prediction

def intact(folder, n=6):
    "Images that can be read, so that there is something to learn whatever happens to the others."
    folder.mkdir()
    files = [folder / f"{i}.png" for i in range(n)]
    for i, file in enumerate(files):
        Image.new("RGB", (50, 40), ("gray", "olive")[i % 2]).save(file)
    return files


def refused_in_training(learn):
    "Files, and the reasons."
    return {getattr(learn.data, name).paths[i]: reason
            for name, failed in learn.run.unreadable.failed.items()
            for i, reason in failed.items()}


def refused_in_prediction(predictor, files):
    preds = predictor.get_preds(files)
    assert len(preds) + len(preds.failed) == len(files)
    assert torch.isfinite(preds.probs).all()
    return {path: preds.failed[i] for i, path in preds.failed_paths.items()}


def train_and_predict(files, folder):
    "The names of the files that were refused in each step."
    labels = ["ab"[i % 2] for i in range(len(files))]
    valid = [i for i in range(len(files)) if i % 5 < 2]
    data = ImageData.from_lists(files[0].parent, files, labels, valid_idx=valid, size=SIDE,
                                presize=SIDE, bs=16, threads=2)
    learn = Learner(data, "timm:test_efficientnet", weights=None, show=False, device="cpu",
                    precision="fp32")
    learn.fit(1, 1e-3)
    assert np.isfinite(learn.history.fits[0].losses).all()
    table = check_images(files)
    assert table.advice.map(bool).all()
    exported = load_classifier(learn.export(folder / "exported.safetensors"), device="cpu")
    steps = dict(check=dict(zip(table.file, table.problem)), construction=data.unreadable,
                 training=refused_in_training(learn),
                 prediction=refused_in_prediction(learn, files),
                 exported=refused_in_prediction(exported, files))
    for step, reasons in steps.items(): assert all(reasons.values()), step
    return {step: sorted(path.name for path in reasons) for step, reasons in steps.items()}


def use_files(folder, journal, start):
    limit_time("use")
    files = [*intact(folder / "intact"), *sorted(p for p in folder.iterdir() if p.is_file())]
    train_and_predict(files[:6], folder)   # what torch takes the first time isn't counted
    steps, seconds, growth = measured(lambda: train_and_predict(files, folder))
    print(json.dumps(steps | dict(seconds=seconds, growth=growth)), file=journal, flush=True)


def main(command, folder, journal, start, code):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_decoding(DECODING / 2**30)
    exec(code, {})
    print("ready", flush=True)
    with open(journal, "a", encoding="utf-8") as file:
        dict(open=open_files, use=use_files)[command](Path(folder), file, int(start))


if __name__ == "__main__": main(*sys.argv[1:])
