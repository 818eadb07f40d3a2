"""Refusals of the house rules (CONTRIBUTING.md) that no linter knows, read from the sources."""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cfmodel", "cfbench")
MIB = 2**20

# Sizes of one geometry that the field hard-codes; here they follow from Geometry.
FORBIDDEN_NUMBERS = {int(text) for text in ("1560", "32760", "880")}
CONFIG_LIBRARIES = {"yaml", "ruamel", "omegaconf", "hydra"}
AMBIENT_SEEDS = {"torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"}
DRAWS = {
    f"torch.{name}"
    for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")
} | {f"torch.{name}_like" for name in ("rand", "randn", "randint")}
BROAD = {"Exception", "BaseException"}
NUMPY_GENERATORS = {"default_rng", "Generator", "SeedSequence", "PCG64", "Philox"}
ENVIRONMENT_READERS = {"cli.py", "devices.py", "provenance.py", "upstream.py"}
REGISTRATION = {"add_typer", "command", "callback"}

Rule = Callable[[Path, ast.Module], Iterator[int]]


def tracked() -> list[Path]:
    """Files in git, or that would be: neither ignored nor deleted."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = sorted({ROOT / name for name in done.stdout.decode().split("\0") if name})
    return [path for path in paths if path.is_file()]


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def dotted(node: ast.AST) -> str:
    """``torch.cuda.manual_seed`` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def forbidden_numbers(path: Path, tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float):
            continue
        if node.value in FORBIDDEN_NUMBERS:
            yield node.lineno


def search_path_edits(path: Path, tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) == "sys.path":
            yield node.lineno


def global_statements(path: Path, tree: ast.Module) -> Iterator[int]:
    return (node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global))


def prints(path: Path, tree: ast.Module) -> Iterator[int]:
    return (call.lineno for call in calls(tree) if dotted(call.func) == "print")


def config_libraries(path: Path, tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        if any(name.split(".")[0] in CONFIG_LIBRARIES for name in names):
            yield node.lineno


def getattr_defaults(path: Path, tree: ast.Module) -> Iterator[int]:
    for call in calls(tree):
        if dotted(call.func) == "getattr" and len(call.args) > 2:
            yield call.lineno


def shells(path: Path, tree: ast.Module) -> Iterator[int]:
    for call in calls(tree):
        if dotted(call.func) in ("os.system", "os.popen"):
            yield call.lineno
        for keyword in call.keywords:
            constant = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg == "shell" and not constant:
                yield call.lineno


def broad_excepts(path: Path, tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        broad = any(kind is None or dotted(kind) in BROAD for kind in kinds)
        if broad and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
            yield node.lineno


def seeded_calls(tree: ast.Module) -> set[ast.Call]:
    """Calls whose draws somebody else seeds: a parameter's first value, or inside fork_rng."""
    found: set[ast.Call] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            if any("fork_rng" in ast.dump(item.context_expr) for item in node.items):
                found.update(calls(node))
        elif isinstance(node, ast.Call) and ast_name(node.func) == "Parameter":
            found.update(calls(node))
    return found


def ambient_randomness(path: Path, tree: ast.Module) -> Iterator[int]:
    if path.is_relative_to(ROOT / "cfmodel" / "train"):
        return
    seeded = seeded_calls(tree)
    for call in calls(tree):
        if call in seeded:
            continue
        name = dotted(call.func)
        head, _, last = name.rpartition(".")
        drawn = name in DRAWS and "generator" not in {keyword.arg for keyword in call.keywords}
        numpy = head in ("np.random", "numpy.random") and last not in NUMPY_GENERATORS
        standard = head == "random" and last not in ("Random", "SystemRandom")
        if name in AMBIENT_SEEDS or drawn or numpy or standard:
            yield call.lineno


def environment_reads(path: Path, tree: ast.Module) -> Iterator[int]:
    if path.name in ENVIRONMENT_READERS:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.getenv"):
            yield node.lineno


def import_time_work(path: Path, tree: ast.Module) -> Iterator[int]:
    """Statements that do something when the module is imported, beyond naming things."""
    for node in tree.body:
        if isinstance(node, ast.For | ast.While | ast.With | ast.Delete | ast.AugAssign):
            yield node.lineno
        if isinstance(node, ast.If) and not is_guard(node.test):
            yield node.lineno
        if isinstance(node, ast.Expr) and not is_declaration(node.value, path):
            yield node.lineno
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            opens = {"open", "read_text", "read_bytes", "load", "load_file", "is_available"}
            if any(ast_name(call.func) in opens for call in calls(node.value)):
                yield node.lineno


def ast_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else dotted(node)


def is_guard(test: ast.expr) -> bool:
    if dotted(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return True
    return isinstance(test, ast.Compare) and dotted(test.left) == "__name__"


def is_declaration(value: ast.expr, path: Path) -> bool:
    """A docstring, or a verb named to the command line of a cli module."""
    if isinstance(value, ast.Constant):
        return True
    if not isinstance(value, ast.Call) or "cli" not in path.stem:
        return False
    target = value.func.func if isinstance(value.func, ast.Call) else value.func
    return ast_name(target) in REGISTRATION


EVERYWHERE: tuple[Rule, ...] = (
    forbidden_numbers,
    search_path_edits,
    global_statements,
    config_libraries,
    shells,
    broad_excepts,
)
IN_PACKAGES: tuple[Rule, ...] = (
    prints,
    getattr_defaults,
    ambient_randomness,
    environment_reads,
    import_time_work,
)


def offences(rule: Rule, paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line in rule(path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    ]


@pytest.mark.parametrize("rule", EVERYWHERE, ids=lambda rule: rule.__name__)
def test_refused_everywhere(rule):
    assert not offences(rule, sources(*PACKAGES, "tests"))


@pytest.mark.parametrize("rule", IN_PACKAGES, ids=lambda rule: rule.__name__)
def test_refused_in_packages(rule):
    assert not offences(rule, sources(*PACKAGES))


SAMPLES: dict[Rule, str] = {
    forbidden_numbers: f"tokens = {10 * 88}",
    search_path_edits: "import sys\nsys.path.append('x')",
    global_statements: "def f():\n    global x",
    config_libraries: "from omegaconf import OmegaConf",
    shells: "run(command, shell=True)",
    broad_excepts: "try:\n    f()\nexcept Exception:\n    pass",
    prints: "print(1)",
    getattr_defaults: "getattr(config, 'x', 3)",
    ambient_randomness: "noise = torch.randn(3)",
    environment_reads: "home = os.environ['HOME']",
    import_time_work: "for x in y:\n    f(x)",
}


@pytest.mark.parametrize("rule", [*EVERYWHERE, *IN_PACKAGES], ids=lambda rule: rule.__name__)
def test_rule_finds_its_offence(rule):
    assert list(rule(ROOT / "cfmodel" / "sample.py", ast.parse(SAMPLES[rule])))


def test_every_todo_has_an_owner_and_an_issue():
    for path in sources(*PACKAGES, "tests"):
        reader = io.StringIO(path.read_text(encoding="utf-8")).readline
        for token in tokenize.generate_tokens(reader):
            if token.type == tokenize.COMMENT and re.search(r"\b(TODO|FIXME|XXX)\b", token.string):
                where = f"{path.relative_to(ROOT)}:{token.start[0]}"
                assert re.search(r"TODO\([\w-]+\): #\d+", token.string), where


def test_no_file_names_a_machine_path():
    pattern = re.compile(r"(?<![\w./~-])/(?:work|root|home)/\w")
    found: list[str] = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in pattern.finditer(text)]
    assert not found


def test_tree_stays_small():
    sizes = {path: path.stat().st_size for path in tracked()}
    large = [str(path.relative_to(ROOT)) for path, size in sizes.items() if size > 16 * MIB]
    assert not large
    assert sum(sizes.values()) <= 44 * MIB
    assets = [size for path, size in sizes.items() if "assets" in path.relative_to(ROOT).parts]
    assert sum(assets) <= 40e6


def test_every_test_is_collected():
    """Each test file has the name that pytest looks for, so that none is silently left out."""
    helpers = {"__init__.py", "conftest.py"}
    for path in sources("tests"):
        has_tests = re.search(r"^def test_", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert path.name in helpers or not has_tests or path.name.startswith("test_"), path
