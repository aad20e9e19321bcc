import sys

__version__ = "0.1.0"


class _LineComments:
    "For `%load_ext lessonkit.dialects  # remark`: IPython takes the remark for part of the name."
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("lessonkit.") or "#" not in name: return None
        from importlib.machinery import ModuleSpec
        return ModuleSpec(name, self, is_package=True)  # the remark may have a period

    def create_module(self, spec): return None

    def exec_module(self, module):
        from importlib import import_module
        extension = vars(import_module(module.__name__.partition("#")[0].strip()))
        for name in ("load_ipython_extension", "unload_ipython_extension"):
            if name in extension: setattr(module, name, extension[name])


sys.meta_path.append(_LineComments())  # asked last, so that no other import gets slower
