"""Do old notes get fastai's numbers? The same lines run with fastai 2.8 and with the v2 vocabulary.

    .venv/bin/python tests/benchmarks/old_notes.py --peer out/peer/bin/python

Each side runs this file in a process of its own and writes its numbers; the table compares them.
The two sides get the same weights and the same images, all of one size, so that nothing is resized.
All training images are in one batch, so that their order doesn't matter. Nothing is timed.

A ResNet that trains a few steps magnifies the last digits: where convolutions add in another order,
the third digit of the loss moves. Rows that compare fastai with itself, its weights moved by a
millionth, say how much.
"""
import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

SIDE = 64            # pixels
IMAGES, CLASSES = 30, 3
FLOAT = 1e-5         # largest relative difference of what is a formula
TRAINED = 2e-2       # and after some steps of a ResNet; see the rows that begin with NUDGED
NUDGED = "fastai and fastai with weights times 1.000001: "


# ---- both sides

def make_images(folder):
    "IMAGES PNG files of noise in CLASSES colors."
    from PIL import Image
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        base = np.eye(3)[i % CLASSES] * 90 + 80
        pixels = base + rng.normal(0, 40, (SIDE, SIDE, 3))
        image = Image.fromarray(pixels.clip(0, 255).astype("u1"))
        image.save(Path(folder) / f"{'abc'[i % CLASSES]}_{i}.png")


def numbered(shape, seed):
    "Fixed numbers that both sides get."
    return np.random.default_rng(seed).normal(0, 1, shape).astype("f4")


def fill(model):
    "The same weights on both sides, in the order of the layers."
    import torch
    with torch.no_grad():
        for i, p in enumerate(p for p in model.parameters() if p.ndim > 1):
            value = torch.from_numpy(numbered(tuple(p.shape), i))
            gain = 2 if p.ndim > 2 else .1   # modest answers: a loss of 15 would hide differences
            p.copy_(value * (gain / p[0].numel()) ** .5)
        for layer in model.modules():
            if getattr(layer, "bias", None) is not None: layer.bias.zero_()
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm): layer.weight.fill_(1)


def curves():
    "Finder curves to read: rates, and losses that fall and rise again."
    rates = np.geomspace(1e-7, 10, 100, endpoint=False)
    for k, bend in enumerate((.3, 1., 3.)):
        x = np.log10(rates)
        noise = .02 * np.sin(np.arange(100) * (k + 1))
        yield rates, 2.5 - 1.5 / (1 + np.exp(-bend * (x + 3))) + np.exp(3 * (x - .2)) + noise


def loss_facts(v):
    torch, out = v["torch"], {}
    logits, logits_many = torch.tensor(numbered((12, 5), 1)), torch.tensor(numbered((12, 5), 2))
    target = torch.arange(12) % 5
    many = (torch.tensor(numbered((12, 5), 3)) > 0).float()
    for name, arguments in (("CrossEntropyLossFlat", (logits, target)),
                            ("LabelSmoothingCrossEntropy", (logits, target)),
                            ("BCEWithLogitsLossFlat", (logits_many, many)),
                            ("MSELossFlat", (logits_many, many))):
        out[f"loss {name}"] = v[name]()(*arguments)
    return out


def metric_facts(v):
    torch, out = v["torch"], {}
    logits, target = torch.tensor(numbered((40, 7), 4)), torch.arange(40) % 7
    many = (torch.tensor(numbered((40, 7), 5)) > 0).float()
    for name in ("accuracy", "error_rate", "top_k_accuracy"):
        out[f"metric {name}"] = v[name](logits, target)
    for thresh in (.2, .5, .8):
        out[f"metric accuracy_multi {thresh}"] = v["accuracy_multi"](logits, many, thresh=thresh)
    return out


def finder_facts(v):
    torch, out = v["torch"], {}
    for k, (rates, losses) in enumerate(curves()):
        for name in ("valley", "slide", "steep", "minimum"):
            found = v[name](torch.tensor(rates), torch.tensor(losses), 100)
            # fastai's functions return more: where to draw the point
            out[f"finder {name}, curve {k}"] = found[0] if isinstance(found, tuple) else found
    return out


def make_dls(v, folder, bs):
    block = v["DataBlock"](
        blocks=(v["ImageBlock"], v["CategoryBlock"]),
        get_items=lambda path: sorted(v["get_image_files"](path)),
        splitter=v["FuncSplitter"](lambda p: int(p.stem[2:]) >= 24),
        get_y=v["using_attr"](v["RegexLabeller"](r"(.+)_\d+.png$"), "name"),
        batch_tfms=[v["Normalize"].from_stats(*v["imagenet_stats"])])
    return block.dataloaders(Path(folder), path=Path(folder), bs=bs, num_workers=0)


def learner(v, folder, bs, **options):
    learn = v["cnn_learner"](make_dls(v, folder, bs), v["resnet18"], pretrained=False, ps=0.,
                             metrics=v["error_rate"], path=Path(folder), **options)
    fill(learn.model)
    return learn.to_fp32()   # without this, the kit uses bfloat16 where the processor has it


def shape_facts(v, folder):
    "Shapes of weights. v2's head has no biases; the kit's has, as 0.7's and v1's had."
    out = {}
    for arch in ("resnet18", "resnet50", "vgg16_bn", "densenet121"):
        learn = v["cnn_learner"](make_dls(v, folder, 6), v[arch], pretrained=False)
        layers = [m for m in learn.model[1].modules() if getattr(m, "weight", None) is not None]
        shapes = [list(m.weight.shape) + [0] * (4 - m.weight.ndim) for m in layers]
        out[f"head of {arch}: shapes of weights"] = shapes
        if arch.startswith("resnet"):
            learn.create_opt()
            groups = [sum(p.numel() for p in group if p.ndim > 1)
                      for group in learn.opt.param_lists]
            out[f"groups of {arch}: weights"] = groups
    return out


def schedule_facts(v, folder):
    out = {}
    fits = {
        "fit_one_cycle(3)": lambda l: l.fit_one_cycle(3),
        "fit_one_cycle(2, slice(1e-5, 1e-3))": lambda l: l.fit_one_cycle(2, slice(1e-5, 1e-3)),
        "fit_one_cycle(2, 3e-3, pct_start=.4)": lambda l: l.fit_one_cycle(2, 3e-3, pct_start=.4),
        "fit_flat_cos(4, 1e-3)": lambda l: l.fit_flat_cos(4, 1e-3),
        "fit_sgdr(2, 1, 1e-3)": lambda l: l.fit_sgdr(2, 1, 1e-3),
        "fine_tune(2)": lambda l: l.fine_tune(2),
        "fine_tune(2, 1e-2, freeze_epochs=2)": lambda l: l.fine_tune(2, 1e-2, freeze_epochs=2)}
    for name, fit in fits.items():
        learn = learner(v, folder, bs=6)
        fit(learn)
        out[f"rates of {name}"] = learn.recorder.hps["lr"]
        if "mom" in learn.recorder.hps: out[f"momentum of {name}"] = learn.recorder.hps["mom"]
    return out


def optimizer_facts(v, folder):
    "A single layer, whose loss has one valley: the digits of the optimizer stay visible."
    nn, out = v["nn"], {}
    for name, fit in (("fit_one_cycle(6, 1e-3)", lambda l: l.fit_one_cycle(6, 1e-3)),
                      ("fit(6, 1e-3)", lambda l: l.fit(6, 1e-3))):
        net = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, CLASSES))
        fill(net)
        learn = v["Learner"](make_dls(v, folder, 24), net, metrics=v["accuracy"],
                             loss_func=v["CrossEntropyLossFlat"](), path=Path(folder))
        fit(learn.to_fp32())
        out[f"Adam, own layer, {name}: losses"] = [row[:2] for row in learn.recorder.values]
        out[f"Adam, own layer, {name}: weights"] = net[2].weight
    return out


def trained_losses(v, folder, frozen, nudge=0.):
    "Losses of four epochs of a ResNet; `nudge` is the relative change of its weights before."
    learn = learner(v, folder, bs=24)
    if frozen: learn.freeze()
    else: learn.unfreeze()
    with v["torch"].no_grad():
        for p in learn.model.parameters(): p.mul_(1 + nudge)
    learn.fit_one_cycle(4, 1e-2 if frozen else 1e-3)
    return [row[:2] for row in learn.recorder.values]


def training_facts(v, folder):
    out, learn = {}, learner(v, folder, bs=24)
    out["validate before training"] = list(learn.validate())
    probs, targets = learn.get_preds()
    out["get_preds: probabilities"], out["get_preds: targets"] = probs, targets
    for name, frozen in (("all layers", False), ("frozen body", True)):
        out[f"losses of 4 epochs, {name}"] = trained_losses(v, folder, frozen)
        out[NUDGED + f"losses of 4 epochs, {name}"] = trained_losses(v, folder, frozen, 1e-6)
    return out


def facts(side, folder):
    "All numbers of a side; a part that fails leaves its error."
    warnings.filterwarnings("ignore")
    if side == "lessonkit":
        import lessonkit.dialects
        lessonkit.dialects.activate("v2")
    v = {}
    exec("from fastai.vision.all import *", v)
    found = {}
    for part in (loss_facts, metric_facts, finder_facts, shape_facts, schedule_facts,
                 optimizer_facts, training_facts):
        arguments = (v,) if part.__code__.co_argcount == 1 else (v, folder)
        try: found |= part(*arguments)
        except Exception as error:
            found[f"{part.__name__} failed on the side of {side}"] = repr(error)
    return found


def plain(value):
    "A number, a tensor or lists of them as an array of doubles; an error as it is."
    if isinstance(value, str): return np.array(value)
    if isinstance(value, (list, tuple)): return np.array([plain(each) for each in value])
    if hasattr(value, "detach"): value = value.detach().cpu().numpy()
    return np.asarray(value, dtype="f8")


# ---- the comparison

def run_side(python, side, folder):
    file = Path(folder) / f"{side}.npz"
    subprocess.run([str(python), __file__, "--side", side, str(folder)], check=True,
                   stdout=subprocess.DEVNULL)
    return dict(np.load(file))


def compare(ours, theirs):
    "Rows (what, numbers compared, largest relative difference, verdict)."
    for name in [name for name in ours if " failed " in name]: yield name, 0, 0., str(ours[name])
    for name, expected in theirs.items():
        if name.startswith(NUDGED): found = theirs[name.removeprefix(NUDGED)]
        elif name in ours: found = ours[name]
        else:
            yield name, 0, float("nan"), "missing"
            continue
        if found.shape != expected.shape:
            yield name, 0, float("nan"), f"shapes {found.shape} and {expected.shape}"
            continue
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
        limit = TRAINED if "losses of 4 epochs" in name else FLOAT
        yield name, expected.size, difference, "equal" if difference <= limit else "DIFFERENT"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="the python of an environment with fastai 2.8")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, folder = args.side
        found = {name: plain(value) for name, value in facts(side, folder + "/images").items()}
        return np.savez(Path(folder) / f"{side}.npz", **found)
    if not args.peer: parser.error("--peer is missing")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        make_images(f"{folder}/images")
        theirs = run_side(args.peer, "fastai", folder)
        ours = run_side(sys.executable, "lessonkit", folder)
    print("| what | numbers | largest relative difference | |")
    print("| --- | --- | --- | --- |")
    rows = list(compare(ours, theirs))
    for name, n, difference, verdict in rows:
        print(f"| {name} | {n} | {difference:.1e} | {verdict} |")
    return sum(verdict != "equal" for *_, verdict in rows)


if __name__ == "__main__": sys.exit(main())
