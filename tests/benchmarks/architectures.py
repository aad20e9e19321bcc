"""What a larger network costs: parameters and time a picture, training and predicting, of the networks that lesson 2 compares.

    python tests/benchmarks/architectures.py [--size 128] [--bs 32] [--repeats 5] [--precision auto]

Prints a row for each network, then the table (markdown) that the lesson holds. Weights are random: speed does not depend on them. Batch normalization
keeps its averages, as it does in a pretrained body. All networks take turns, `repeats` times over, so that a disturbance hits all; medians are
reported, and ratios to the first network. Run it alone on the machine.
"""
import argparse, json, statistics

import torch

from common import machine, now, versions
from lessonkit.model.create import create_model
from lessonkit.core.task import item_losses
from lessonkit.train.engine import Engine, keep_freed_memory
from lessonkit.train.loop import make_optimizer

ARCHS = "resnet18,resnet34,resnet50,resnet101,tf_efficientnet_lite0"


def network(arch, precision, classes=12):
    "A model, unfrozen, with the engines that train it and ask it."
    model = create_model(arch, classes, weights=None)
    model.weights = "random"     # counts as pretrained: batch normalization keeps its averages
    engine = Engine(precision=precision)
    return engine.place(model), engine.for_training(model), engine


def train_step(model, engine, optimizer, x, y):
    model.train()
    engine.backward(item_losses(engine.forward(model, x), y, "single").mean())
    engine.step(optimizer)


@torch.inference_mode()
def ask(model, engine, x):
    model.eval()
    engine.forward(model, x)


def seconds(f, device):
    start = now()
    f()
    if device.type == "cuda": torch.cuda.synchronize()
    return now() - start


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--archs", default=ARCHS)
    ap.add_argument("--size", type=int, default=128)
    ap.add_argument("--bs", type=int, default=32)
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--precision", default="auto")
    a = ap.parse_args()
    keep_freed_memory()
    nets, found = {arch: network(arch, a.precision) for arch in a.archs.split(",")}, {}
    for arch, (model, trains, asks) in nets.items():
        optimizer = make_optimizer(model.group_parameters())
        x, y = torch.rand(a.bs, 3, a.size, a.size, device=asks.device), torch.arange(a.bs, device=asks.device) % 12
        jobs = dict(train=lambda m=model, e=trains, o=optimizer: train_step(m, e, o, x, y), predict=lambda m=model, e=asks: ask(m, e, x))
        for job in jobs.values(): job()      # the first time is slower
        found[arch] = dict(parameters=sum(p.numel() for p in model.parameters()), precision=str(trains.dtype).removeprefix("torch."), jobs=jobs, train=[], predict=[])
    for _ in range(a.repeats):
        for f in found.values():
            for job in ("train", "predict"): f[job].append(1000 * seconds(f["jobs"][job], asks.device) / a.bs)
    base, rows = {}, []
    for arch, f in found.items():
        ms = {job: statistics.median(f[job]) for job in ("train", "predict")}
        base = base or ms
        row = dict(network=arch, parameters=f["parameters"], trained_in=f["precision"], **{f"{job}_ms": round(ms[job], 2) for job in ms},
                   **{f"{job}_ratio": round(ms[job] / base[job], 2) for job in ms}, spread={job: [round(min(f[job]), 2), round(max(f[job]), 2)] for job in ms})
        print(json.dumps(row), flush=True)
        rows.append(row)
    print(json.dumps(machine() | versions("timm") | dict(size=a.size, bs=a.bs, repeats=a.repeats, threads=torch.get_num_threads())))
    print("| network | parameters | training, ms a picture | predicting, ms a picture | training, over " + rows[0]["network"] + " |\n|:--|--:|--:|--:|--:|")
    for r in rows: print(f"| {r['network']} | {r['parameters'] / 1e6:.1f} M | {r['train_ms']:.1f} | {r['predict_ms']:.1f} | {r['train_ratio']:.1f} |")


if __name__ == "__main__": main()
