"""Scripts outside the package, loaded as modules and run as if they were typed."""

import contextlib
import importlib.util
import io
import subprocess
import sys
from types import ModuleType

import pytest

from small import ROOT


def load_script(path: str) -> ModuleType:
    """The module at a path below the project's root; neither datasets/ nor saved_models/ is a package."""
    name = path.rpartition("/")[2].removesuffix(".py")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / path.rpartition("/")[0])  # a script finds its neighbours, as when it is run
        spec.loader.exec_module(module)
    return module


def run_main(module: ModuleType, *words, check: bool = True) -> subprocess.CompletedProcess:
    """A script's `main` in this process, which has what it imports; with `check` a failure shows its output."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__file__, *map(str, words)])
        try:
            module.main()
        except SystemExit as end:
            status = end.code
    assert not check or not status, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())
