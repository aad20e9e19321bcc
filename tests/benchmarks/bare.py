"""The step loop without any library around it: one batch in memory, forward, backward, AdamW.

    bare.py --size 224 --precision bf16

It shows the most that this machine can do. Precision, memory format (channels last) and allocator
setting are the kit's. `--plain` is torch as it comes: fp32, contiguous, allocator untouched. Run in
both environments, it shows how much of a difference between them is due to torch's version.
"""
import argparse
import ctypes
import statistics
import sys

import torch
import torchvision
from torch.nn.functional import cross_entropy

from common import emit, now, peak_mb, versions

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--size", type=int, default=224)
parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--arch", default="resnet34")
parser.add_argument("--bs", type=int, default=64)
parser.add_argument("--warmup", type=int, default=2)
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--plain", action="store_true")
args = parser.parse_args()

if not args.plain and sys.platform.startswith("linux"):  # keep freed blocks for the next step
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

torch.manual_seed(0)
layout = torch.contiguous_format if args.plain else torch.channels_last
model = getattr(torchvision.models, args.arch)(weights=None, num_classes=4)
model = model.to(memory_format=layout).train()
x = torch.randn(args.bs, 3, args.size, args.size).to(memory_format=layout)
y = torch.randint(0, 4, (args.bs,))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
times = []
for _ in range(args.warmup + args.steps):
    start = now()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
        loss = cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(now() - start)
steps = times[args.warmup:]
emit(side="bare", size=args.size, precision=args.precision, arch=args.arch, bs=args.bs,
     plain=args.plain, img_s=round(args.bs * len(steps) / sum(steps), 2),
     best_img_s=round(args.bs / min(steps), 2), step_s=round(statistics.median(steps), 3),
     first_step_s=round(times[0], 3), peak_mb=peak_mb(), threads=torch.get_num_threads(),
     versions=versions())
