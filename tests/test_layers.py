"""Who may import whom, and where a program may talk to its user or end."""

import ast
import sys
from pathlib import Path

import pytest

import parallel_fixedram

PACKAGE = Path(parallel_fixedram.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT = {
    "core": {"core"},
    "format": {"core", "format"},
    "host": {"core", "host"},
    "machines": {"core", "format", "host", "machines"},
    "engine": {"core", "format", "host", "engine"},
    "image": {"core", "format", "host", "engine", "image"},
    "boot": {"core", "format", "host", "machines", "engine", "image", "boot"},
    "verbs": {"core", "format", "host", "machines", "engine", "image", "boot", "verbs"},
    "experiments": {"core", "format", "host", "machines", "engine", "image", "boot", "verbs", "experiments"},
    "cli": {"core", "cli", "experiments", "verbs"},
    "__init__": {"core", "verbs"},
    "__main__": {"cli"},
}
PURE = {"core", "format"}
NOT_IN_CORE = {"os", "mmap", "time", "subprocess", "multiprocessing", "socket", "logging", "signal"}
NOT_IN_CORE |= {
    "asyncio",
    "ctypes",
    "fcntl",
    "io",
    "pathlib",
    "posix",
    "select",
    "shutil",
    "sys",
    "tempfile",
    "threading",
}
ALLOWED_IN_CORE = {"msgspec", "numpy"}
PURE_ENOUGH = {("errors", "os.strerror")}  # a look-up in a table of libc's


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_layers_below_it(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    found = imports(ast.parse(path.read_text()))
    used = {name.split(".")[1] for name in found if name.startswith("parallel_fixedram.")}
    assert used <= MAY_IMPORT[layer]
    if layer in PURE:
        others = {name for name in found if (path.stem, name) not in PURE_ENOUGH}
        tops = {name.split(".")[0] for name in others} - {"parallel_fixedram"} - ALLOWED_IN_CORE
        assert not tops & NOT_IN_CORE
        assert tops <= sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints_and_exits(path):
    if path.relative_to(PACKAGE).parts[0] not in ("cli", "__main__.py"):
        called = {
            ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        }
        assert not called & {"print", "sys.exit", "exit", "quit"}
