"""What a larger network costs: parameters and time per image, of the networks of lesson 2.

    python tests/benchmarks/architectures.py [--size 128] [--bs 32] [--repeats 5] [--precision auto]

Prints a row for each network, then the table (Markdown) that is in the lesson. Weights are random:
speed does not depend on them. Batch normalization keeps its averages, as it does in a pretrained
body. All networks take turns, `repeats` times over, so that a disturbance affects all of them.
Medians are reported, and ratios to the first network. Run nothing else on the machine meanwhile.
"""
import argparse
import json
import statistics
from functools import partial

import torch

from common import machine, now, versions
from lessonkit.core.task import item_losses
from lessonkit.model.create import create_model
from lessonkit.train.engine import Engine, keep_freed_memory
from lessonkit.train.loop import make_optimizer

ARCHS = "resnet18,resnet34,resnet50,resnet101,tf_efficientnet_lite0"
JOBS = "train", "predict"


def train_step(model, engine, optimizer, x, y):
    model.train()
    engine.backward(item_losses(engine.forward(model, x), y, "single").mean())
    engine.step(optimizer)


@torch.inference_mode()
def predict(model, engine, x):
    model.eval()
    engine.forward(model, x)


class Network:
    "An unfrozen model, and the milliseconds per image that it took."
    def __init__(self, arch, args, classes=12):
        model = create_model(arch, classes, weights=None)
        model.weights = "random"  # counts as pretrained: batch normalization keeps its averages
        self.arch, self.bs, self.engine = arch, args.bs, Engine(precision=args.precision)
        model, trainer = self.engine.place(model), self.engine.for_training(model)
        x = torch.rand(args.bs, 3, args.size, args.size, device=self.engine.device)
        y = torch.arange(args.bs, device=self.engine.device) % classes
        optimizer = make_optimizer(model.group_parameters())
        self.jobs = dict(train=partial(train_step, model, trainer, optimizer, x, y),
                         predict=partial(predict, model, self.engine, x))
        self.times = {job: [] for job in JOBS}
        self.parameters = sum(p.numel() for p in model.parameters())
        self.precision = str(trainer.dtype).removeprefix("torch.")
        for run in self.jobs.values(): run()  # the first time is slower

    def measure(self, job):
        start = now()
        self.jobs[job]()
        if self.engine.device.type == "cuda": torch.cuda.synchronize()
        self.times[job].append(1000 * (now() - start) / self.bs)

    def row(self, base):
        "Medians, their ratios to another network's, and the spread."
        ms = {job: statistics.median(times) for job, times in self.times.items()}
        ratios = {job: ms[job] / statistics.median(base.times[job]) for job in JOBS}
        return dict(
            network=self.arch, parameters=self.parameters, trained_in=self.precision,
            **{f"{job}_ms": round(ms[job], 2) for job in JOBS},
            **{f"{job}_ratio": round(ratios[job], 2) for job in JOBS},
            spread={job: [round(min(t), 2), round(max(t), 2)] for job, t in self.times.items()})


def print_table(rows):
    first = rows[0]["network"]
    print(f"| network | parameters | training, ms per image | predicting, ms per image | "
          f"training, relative to {first} |\n|:--|--:|--:|--:|--:|")
    for r in rows:
        print(f"| {r['network']} | {r['parameters'] / 1e6:.1f} M | {r['train_ms']:.1f} | "
              f"{r['predict_ms']:.1f} | {r['train_ratio']:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archs", default=ARCHS)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--bs", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    keep_freed_memory()
    networks = [Network(arch, args) for arch in args.archs.split(",")]
    for _ in range(args.repeats):
        for network in networks:
            for job in JOBS: network.measure(job)
    rows = [network.row(networks[0]) for network in networks]
    for row in rows: print(json.dumps(row), flush=True)
    facts = dict(size=args.size, bs=args.bs, repeats=args.repeats, threads=torch.get_num_threads())
    print(json.dumps(machine() | versions("timm") | facts))
    print_table(rows)


if __name__ == "__main__": main()
