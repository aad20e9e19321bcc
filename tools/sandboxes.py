"""Places like Kaggle and Colab to run the wheel in, as far as one machine can imitate them.

Kaggle: a user without rights, attached data that can't be written to, no internet, no home. As root
on Linux, all of that is real: the sandbox has its own file system and its own network, without the
repository. Elsewhere, permissions and a proxy that isn't there have to do.

Colab: its versions of some packages, newer or older than those of this environment.

Both are folders with an environment that takes torch and so on from this one (kit_wheel.py). They
need a system with users and permissions as POSIX has them.
"""
import importlib.util, json, os, shutil, subprocess, sys
from pathlib import Path

import nbformat

import jail, kit_wheel, pages, run_lesson, small

# As Colab had them in autumn 2025, with what the two others need.
COLAB = {"numpy": "2.0.2", "pandas": "2.2.2", "pillow": "11.3.0", "ipywidgets": "7.7.1",
         "pytz": "2025.2", "ipython_genutils": "0.2.0", "widgetsnbextension": "3.6.10"}
NOTEBOOK = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import nbformat, run_lesson
nb = nbformat.read(sys.argv[1], 4)
error = run_lesson.run_cells(nb, Path.cwd(), 1800)
print(*run_lesson.printed_lines(nb), sep="\\n")
if error: sys.exit(str(error))
"""


def variables(folder, **others):
    "The environment variables of a sandbox: nothing from outside but the number of threads."
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return dict(PATH="/usr/bin:/bin", OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="passive",
                LANG="C.UTF-8", PIP_DISABLE_PIP_VERSION_CHECK="1", IPYTHONDIR=f"{folder}/ipython",
                JUPYTER_RUNTIME_DIR=f"{folder}/jupyter") | others


class Sandbox:
    "A folder to work in and an environment. `run` raises `RuntimeError` with all that was printed."
    def __init__(self, folder, wheel=None):
        self.folder = Path(folder)
        self.working = self.folder / "working"
        self.working.mkdir(parents=True)
        self.python = kit_wheel.environment(self.folder / "env", wheel)

    def run(self, code, *args, limit=600, **env):
        "What a piece of code prints."
        command = [self.python, "-I", "-c", code, *args]
        done = subprocess.run([str(a) for a in self.inside(command)], cwd=self.working,
                              env=self.variables() | env, text=True, timeout=limit,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode: raise RuntimeError(done.stdout)
        return done.stdout

    def notebook(self, path, limit=3600, in_small=False, **env):
        "Execute a notebook at `path`, such as a lesson, maybe on little data; what it prints."
        for module in (pages, run_lesson, small): shutil.copy(module.__file__, self.working)
        nb = nbformat.read(path, 4)
        if in_small: small.shrink(nb, small.TABLE[Path(path).stem])
        nbformat.write(nb, self.working / Path(path).name)
        return self.run(NOTEBOOK, f"{self.seen_as}/{Path(path).name}", limit=limit, **env)


class Colab(Sandbox):
    def __init__(self, folder, wheel):
        super().__init__(folder, wheel)
        wanted = [f"{name}=={version}" for name, version in COLAB.items()]
        kit_wheel.run([self.python, "-m", "pip", "install", "--quiet", "--no-deps",
                       "--only-binary", ":all:", *wanted])
        self.seen_as = self.working

    def variables(self): return variables(self.working, HOME=str(self.working))

    def inside(self, command): return command


# ---- Kaggle

def can_jail():
    "May this process have its own file system and network?"
    if sys.platform != "linux" or os.getuid() != 0 or not shutil.which("unshare"): return False
    tried = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True)
    return tried.returncode == 0


class Kaggle(Sandbox):
    "`inputs` are folders to attach, by name. The kit isn't installed: lessons do that."
    def __init__(self, folder, inputs, jailed=None):
        super().__init__(folder)
        self.jailed = can_jail() if jailed is None else jailed
        self.input = self.folder / "input"
        for name, source in inputs.items(): shutil.copytree(source, self.input / name)
        self.home = self.folder / "home"
        self.home.mkdir()
        env = self.python.parents[1]
        for path in (self.input, *self.input.rglob("*"), self.home):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if self.jailed:
            for path in (self.working, env, *env.rglob("*")):
                os.chown(path, jail.NOBODY, jail.NOBODY, follow_symlinks=False)
        self.seen_as = Path("/kaggle/working") if self.jailed else self.working
        self.attached = Path("/kaggle/input") if self.jailed else self.input

    def variables(self):
        if self.jailed: return variables("/tmp", HOME="/home/nobody")
        nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://0.0.0.0:9")
        return variables(self.working, HOME=str(self.home), LESSONKIT_SOURCE=str(self.input),
                         **nowhere)

    def inside(self, command):
        if not self.jailed: return command
        plan = dict(root=str(self.folder / "root"), command=[str(a) for a in command],
                    mounts=self.mounts())
        python = [sys.executable, "-P", jail.__file__]
        return ["unshare", "--mount", "--net", *python, json.dumps(plan)]

    def mounts(self):
        "What is seen in the jail: source, place, and whether it can be written to."
        torch = Path(importlib.util.find_spec("torch").origin).parents[1]
        given = [*map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/sys")),
                 Path(sys.base_prefix), torch]
        seen = [(path, path, False) for path in given if path.exists()]
        seen += [(path, path, True) for path in map(Path, ("/proc", "/dev/null", "/dev/urandom"))]
        env = self.python.parents[1]
        seen += [(env, env, True), (self.input, "/kaggle/input", False),
                 (self.working, "/kaggle/working", True), (self.home, "/home/nobody", False)]
        return [(str(source), str(place), write) for source, place, write in seen]

    def release(self):
        "Give the folders back the permissions to be deleted."
        folders = [path for path in self.input.rglob("*") if path.is_dir()]
        for path in (self.home, self.input, *folders): path.chmod(0o755)
