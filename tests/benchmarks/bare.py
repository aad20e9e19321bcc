"""The step loop without any library about it: one batch in memory, forward, backward, AdamW. What this machine can do at most.

    bare.py --size 224 --precision bf16

Precision, memory format (channels last) and allocator setting are the kit's. `--plain` is torch as it comes: fp32, contiguous, allocator
untouched. Run in both environments, it says how much of a difference between them is only a difference of torch's version.
"""
import argparse, ctypes, statistics, sys

import torch, torchvision
from common import emit, now, peak_mb, versions

ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
ap.add_argument("--size", type=int, default=224)
ap.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
ap.add_argument("--arch", default="resnet34")
ap.add_argument("--bs", type=int, default=64)
ap.add_argument("--warmup", type=int, default=2)
ap.add_argument("--steps", type=int, default=4)
ap.add_argument("--plain", action="store_true")
a = ap.parse_args()

if not a.plain and sys.platform.startswith("linux"):
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-4, 0); mallopt(-1, 2**31 - 1)          # M_MMAP_MAX, M_TRIM_THRESHOLD: keep freed blocks for the next step
torch.manual_seed(0)
layout = torch.contiguous_format if a.plain else torch.channels_last
model = getattr(torchvision.models, a.arch)(weights=None, num_classes=4).to(memory_format=layout).train()
x, y = torch.randn(a.bs, 3, a.size, a.size).to(memory_format=layout), torch.randint(0, 4, (a.bs,))
opt = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
times = []
for _ in range(a.warmup + a.steps):
    start = now()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.precision == "bf16"): loss = torch.nn.functional.cross_entropy(model(x), y)
    loss.backward(); opt.step(); opt.zero_grad()
    times.append(now() - start)
steps = times[a.warmup:]
emit(side="bare", size=a.size, precision=a.precision, arch=a.arch, bs=a.bs, plain=a.plain, img_s=round(a.bs * len(steps) / sum(steps), 2),
     best_img_s=round(a.bs / min(steps), 2), step_s=round(statistics.median(steps), 3), first_step_s=round(times[0], 3), peak_mb=peak_mb(),
     threads=torch.get_num_threads(), versions=versions())
