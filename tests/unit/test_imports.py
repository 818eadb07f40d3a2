"""What importing the packages and asking for help may load, and who may import whom."""

import ast
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cfbench
import cfmodel

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("torchvision", "gradio", "ray", "wandb")
HEAVY = ("torch", "transformers", "diffusers", "pandas", "pyarrow", "matplotlib", "cv2", "av")
IMPORT_NAMES = {
    "opencv-python-headless": "cv2",
    "flash-attn-4": "flash_attn",
    "pillow": "PIL",
}


def loaded_by(code: str, tmp_path: Path, stubs: tuple[str, ...] = ()) -> set[str]:
    """Top-level modules loaded in a fresh interpreter that runs ``code``.

    ``stubs`` are importable as empty packages, so that code which would use them if they were
    installed shows itself on a host that lacks them.
    """
    for name in stubs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    answer = tmp_path / "modules.json"
    script = "\n".join(
        (
            "import atexit, json, pathlib, sys",
            f"answer = pathlib.Path({str(answer)!r})",
            "atexit.register(lambda: answer.write_text(json.dumps(list(sys.modules))))",
            code,
        )
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(answer.read_text())}


def modules() -> list[str]:
    names = [
        info.name
        for package in (cfmodel, cfbench)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return [name for name in names if not name.endswith("__main__")]


def test_no_module_loads_an_optional_library(tmp_path):
    names = modules()
    assert "cfmodel.config" in names
    code = "\n".join(f"import {name}" for name in names)
    assert not loaded_by(code, tmp_path, OPTIONAL) & set(OPTIONAL)


@pytest.mark.parametrize("package", ["cfmodel", "cfbench"])
def test_help_loads_nothing_heavy(package, tmp_path):
    code = f"sys.argv = [{package!r}, '--help']\nfrom {package}.cli import main\nmain()"
    assert not loaded_by(code, tmp_path) & {*HEAVY, *OPTIONAL}


def imports(path: Path) -> Iterator[str]:
    """Modules imported anywhere in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_only_tiny_scorers_and_systems_know_the_model():
    for path in (ROOT / "cfbench").rglob("*.py"):
        parts = path.relative_to(ROOT / "cfbench").with_suffix("").parts
        tiny = parts[:1] == ("scorers",) and parts[1].startswith("tiny")
        if parts[:1] != ("systems",) and not tiny:
            assert not [name for name in imports(path) if name.split(".")[0] == "cfmodel"], path


def test_tinyworld_needs_torch_and_the_standard_library_alone():
    allowed = {"torch", "cfmodel", *sys.stdlib_module_names}
    for path in (ROOT / "cfmodel" / "tinyworld").rglob("*.py"):
        # The preview command is a command line and writes a picture.
        for name in imports(path) if path.name != "__main__.py" else ():
            assert name.split(".")[0] in allowed, (path, name)


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    shipped = [*project["dependencies"], *(r for n, rs in extras.items() if n != "dev" for r in rs)]
    names = {re.split(r"[\[<>=;~! ]", requirement)[0] for requirement in shipped}
    declared = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}
    allowed = {"cfmodel", "cfbench", *declared, *sys.stdlib_module_names}
    for package in ("cfmodel", "cfbench"):
        for path in (ROOT / package).rglob("*.py"):
            for name in imports(path):
                assert name.split(".")[0] in allowed, (path, name)
