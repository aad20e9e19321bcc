"""JupyterLab in a browser, for tests of widgets: `with lab(folder, chromium) as jupyter`.

The server knows nothing of this machine's settings and other kernels, and asks the internet for
nothing. Its kernel is the Python that runs the tests, with the kit that they see.

    write_notebook(tmp_path / "try.ipynb", "1 + 1")
    with lab(tmp_path, chromium) as jupyter:
        jupyter.open("try.ipynb")
        jupyter.run_all()
        jupyter.outputs.first.click()      # a Playwright locator; jupyter.page is the page
"""
import json, os, socket, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import lessonkit

SECONDS = 60   # that anything may take: a cell, a click, the server's start

LAB_SETTINGS = {   # of JupyterLab's extensions
    "apputils-extension/notification": dict(
        checkForUpdates=False, doNotDisturbMode=True, fetchNews="false"),
    "notebook-extension/tracker": dict(windowingMode="none"),   # cells out of sight exist, too
}

# Runs a command of JupyterLab's, as its menus do. Not all commands say when they are done.
RUN_COMMAND = """([name, seconds]) => Promise.race([
    window.jupyterapp.commands.execute(name).then(() => true),
    new Promise(done => setTimeout(() => done(false), 1000 * seconds)),
])"""

# The menu asks first, so the promise is kept until a button of the dialog is clicked.
START_RESTART = """() => {
    window.restarted = window.jupyterapp.commands.execute('kernelmenu:restart').then(() => true);
}"""

IDLE = """() => {
    const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
    const context = panel && (panel.sessionContext || panel.context.sessionContext);
    const kernel = context && context.session && context.session.kernel;
    return Boolean(kernel) && context.isReady && kernel.status === 'idle';
}"""

ERRORS = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells;
    return cells.flatMap(cell => cell.outputs || []).filter(o => o.output_type === 'error');
}"""


def write_notebook(path, *cells, **metadata):
    "Write a notebook of code cells, one for each text."
    import nbformat
    kernel = dict(name="python3", display_name="Python 3", language="python")
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=code, metadata=dict(kernelspec=kernel, **metadata))
    nbformat.write(notebook, path)


class Lab:
    "A notebook in JupyterLab: `page` is Playwright's, and the rest is what tests do most."

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.problems = []   # what the page's scripts complained about
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    def open(self, name):
        "Open a notebook of the folder, alone in the window, and wait for its kernel."
        self.page.goto(f"{self.address}/doc/tree/{name}")
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.wait_for_kernel()

    def wait_for_kernel(self):
        "Wait until the kernel is there and has nothing to do."
        self.page.wait_for_function(IDLE)

    def command(self, name, seconds=SECONDS):
        "Run one of JupyterLab's commands, such as `docmanager:save`, and wait for it."
        if not self.page.evaluate(RUN_COMMAND, [name, seconds]):
            raise TimeoutError(f"{name} took more than {seconds} s; the page: {self.text()}")

    def run_all(self, seconds=SECONDS):
        "Run all cells; one that fails fails the test, with its traceback."
        self.command("notebook:run-all-cells", seconds)
        self.wait_for_kernel()
        for error in self.page.evaluate(ERRORS):
            raise AssertionError(f"{error['ename']}: {error['evalue']}\n"
                                 + "\n".join(error["traceback"]))

    def restart_kernel(self):
        "Restart the kernel, as the menu does."
        self.page.evaluate(START_RESTART)
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.evaluate("() => window.restarted")
        self.wait_for_kernel()

    def save(self):
        "Save the notebook to its file."
        self.command("docmanager:save")

    @property
    def outputs(self):
        "The outputs of all cells, in order: a Playwright locator."
        return self.page.locator(".jp-Notebook .jp-Cell-outputWrapper .jp-OutputArea-output")

    def text(self):
        "What the page says."
        return self.page.locator("body").inner_text()

    def screenshot(self, path, what=None):
        "Save a picture of `what` (a locator), or of what the window shows."
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        (what or self.page).screenshot(path=str(path))

    def keep_shot(self, name):
        "Save a picture of the window in the folder LESSONKIT_SHOTS, where that is set."
        folder = os.environ.get("LESSONKIT_SHOTS")
        if folder: self.screenshot(Path(folder) / f"{name}.png")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def shared_files():
    "The folder of JupyterLab's own files, which isn't below sys.prefix in a borrowed environment."
    import jupyterlab
    folders = [parent / "share/jupyter" for parent in Path(jupyterlab.__file__).parents]
    return next(folder for folder in folders if (folder / "lab/static").is_dir())


def write_settings(home, dark):
    "The files that the server reads: its extensions' settings, and the kernel."
    theme = {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}
    for name, values in (LAB_SETTINGS | {"apputils-extension/themes": theme}).items():
        extension, plugin = name.split("/")
        file = home / "settings/@jupyterlab" / extension / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = home / "data/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(dict(argv=argv, display_name="Python 3", language="python")))


def environment(home):
    "The variables that the server and its kernels see."
    kit = str(Path(lessonkit.__file__).parents[1])
    paths = [kit, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | dict(
        JUPYTER_CONFIG_DIR=str(home / "config"), JUPYTER_DATA_DIR=str(home / "data"),
        JUPYTER_RUNTIME_DIR=str(home / "runtime"), IPYTHONDIR=str(home / "ipython"),
        JUPYTER_PATH=str(shared_files()), JUPYTER_PREFER_ENV_PATH="0",
        JUPYTERLAB_SETTINGS_DIR=str(home / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"),
        PYTHONPATH=os.pathsep.join(paths))


def command(folder, port):
    options = dict(
        ip="127.0.0.1", port=port, port_retries=0, root_dir=str(folder), open_browser=False,
        allow_root=True, disable_check_xsrf=True)
    options = {f"ServerApp.{name}": value for name, value in options.items()}
    options |= {"IdentityProvider.token": "", "LabApp.news_url": "",
                "LabApp.expose_app_in_browser": True,
                "LabApp.app_dir": str(shared_files() / "lab"),
                "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
                "LabApp.extension_manager": "readonly"}
    return [sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())]


def answers(address):
    try: return urlopen(f"{address}/api/status", timeout=5).status == 200
    except (URLError, OSError): return False


def end(process, address):
    "End the server and its kernels: politely first, and then whatever is left."
    import psutil
    try: family = [*psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess: family = []
    try: urlopen(Request(f"{address}/api/shutdown", method="POST"), timeout=10).close()
    except (URLError, OSError): process.terminate()
    try: process.wait(10)
    except subprocess.TimeoutExpired: process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs(family, timeout=3)
    for child in alive: child.kill()


@contextmanager
def server(folder, home, dark=False):
    "Start JupyterLab for the files in `folder`; its own go to `home`. Its address comes back."
    write_settings(home, dark)
    port = free_port()
    address, log = f"http://127.0.0.1:{port}", home / "server.log"
    with open(log, "w") as output:
        process = subprocess.Popen(command(folder, port), cwd=folder, env=environment(home),
                                   stdout=output, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + SECONDS
            while not answers(address):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"JupyterLab doesn't start:\n{log.read_text()[-3000:]}")
                time.sleep(.1)
            yield address
        finally:
            end(process, address)


@contextmanager
def browser_page(chromium, dark=False, size=(1100, 900), **options):
    "A page of a browser that is closed again; `options` as for Playwright's `new_context`."
    from playwright.sync_api import sync_playwright
    flags = ["--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        try:
            context = browser.new_context(
                viewport=dict(width=size[0], height=size[1]),
                color_scheme="dark" if dark else "light", **options)
            context.set_default_timeout(1000 * SECONDS)
            yield context.new_page()
        finally:
            browser.close()


@contextmanager
def lab(
    folder,         # with the notebooks
    chromium,       # the browser's path: conftest.py's fixture of that name
    dark=False,     # the dark theme?
    **options,      # as for `browser_page`, such as size=(1100, 900)
):
    "JupyterLab in a browser, as a `Lab`. All of it is ended afterwards, also if a test fails."
    home = Path(folder) / ".jupyter-for-tests"
    home.mkdir()
    with server(folder, home, dark) as address:
        with browser_page(chromium, dark, **options) as page: yield Lab(page, address)
