"""A process without rights, internet and most files of the machine: Kaggle in sandboxes.py.

`unshare --mount --net python jail.py PLAN`, as root on Linux. The plan is JSON: an empty folder as
the new root, what is mounted in it (source, place, and whether it can be written to), the command.
"""
import fcntl, json, os, socket, struct, subprocess, sys
from pathlib import Path

NOBODY = 65534


def mount(*words): subprocess.run(["mount", *words], check=True)


def show(source, place, write):
    "Show a file or folder at another place."
    if Path(source).is_dir(): place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    mount("--rbind", source, str(place))
    if not write: mount("-o", "remount,bind,ro", str(place))


def start_loopback():
    "A kernel talks to its notebook through the network of this machine."
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        up = struct.pack("16sh", b"lo", 0x41)   # IFF_UP and IFF_RUNNING
        fcntl.ioctl(s, 0x8914, up)              # SIOCSIFFLAGS


def enter(root, command, mounts):
    "Become a process without rights that sees nothing but what is mounted, and run the command."
    root = Path(root)
    root.mkdir(exist_ok=True)
    start_loopback()
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root))
    for name in ("tmp", "dev/shm"):   # first: what is shown may lie in /tmp
        (root / name).mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / name))
    for source, place, write in mounts: show(source, root / place.lstrip("/"), write)
    os.chroot(root)
    os.chdir("/kaggle/working")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.execv(command[0], command)


if __name__ == "__main__": enter(**json.loads(sys.argv[1]))
