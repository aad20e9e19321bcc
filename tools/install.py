"""What make installs into .venv: `python tools/install.py lab` (or solar, dev, types).

Any Python can read this file, so one that is too old is named before anything is downloaded.
"""
from __future__ import print_function
import os, re, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEFORE = {
    "lab": "Installing PyTorch, JupyterLab and the kit into .venv: once, a few minutes.",
    "solar": "Installing the photographs of solar cells, for lesson 1 (91 MB).",
}
NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeoutError|NameResolutionError|ProxyError|ReadTimeoutError"
    "|Temporary failure in name resolution|Network is unreachable|Connection refused")
NO_PIP = re.compile("No module named pip\\b")
NO_TORCH = re.compile("No matching distribution found for (torch|torchvision)\\b")


def least_python():
    "The lowest version of Python that settings.ini allows, as numbers."
    with open(os.path.join(ROOT, "settings.ini")) as f:
        return tuple(map(int, re.search("min_python = ([0-9]+)[.]([0-9]+)", f.read()).groups()))


def python_problem(version, executable):
    "Why a Python, given by its version_info, can't be used; None if it can."
    least = least_python()
    if tuple(version[:2]) >= least: return None
    return ("lessonkit needs Python %d.%d or newer, and %s is Python %d.%d. Nothing was installed. "
            "Give the path of a newer one: make lesson PYTHON=/path/to/python"
            % (least + (executable,) + tuple(version[:2])))


def explain(output):
    "What pip's error output means, in a line, or None if pip says it best itself."
    if NO_NETWORK.search(output):
        return ("pip can't reach the package index: there is no internet connection, or a firewall "
                "or proxy is in between. Run make again when there is one; "
                "what is installed already stays.")
    if NO_PIP.search(output):
        return "There is no pip in .venv. Get it with: .venv/bin/python -m ensurepip"
    if NO_TORCH.search(output):
        return ("There is no PyTorch for Python %d.%d on this machine. Give the path of another "
                "Python: delete .venv, then make lesson PYTHON=/path/to/python"
                % sys.version_info[:2])
    return None


def venv_python():
    "The python of .venv, which is created if there is none. Exits if it can't be."
    python = os.path.join(ROOT, ".venv", "bin", "python")
    if os.path.exists(python):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = subprocess.check_output([python, "-c", code]).decode().split(".")
        problem = python_problem(list(map(int, version)), ".venv/bin/python")
        if problem: sys.exit(problem + ", after you have deleted the folder .venv")
        return python
    if subprocess.call([sys.executable, "-m", "venv", os.path.join(ROOT, ".venv")]):
        sys.exit("%s could not create the environment .venv: see above" % sys.executable)
    return python


def install(python, extra):
    "Install the kit with an extra. Exits with a line on what is wrong, or with pip's own error."
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.Popen(pip + ["-e", ".[%s]" % extra], cwd=ROOT, stderr=subprocess.PIPE)
    output = done.communicate()[1].decode("utf-8", "replace")
    if done.returncode: sys.exit(explain(output) or output)
    sys.stderr.write(output)


def main(extra):
    problem = python_problem(sys.version_info, sys.executable)
    if problem: sys.exit(problem)
    python = venv_python()
    if extra in BEFORE: print(BEFORE[extra], flush=True)
    try: install(python, extra)
    except KeyboardInterrupt: sys.exit("interrupted: run make again, and it goes on")


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    main(sys.argv[1])
