"""What holds for the whole project: the import law, the public names, light imports, the command table."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval.cli import COMMANDS, load_command

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "indexes": set(),
    "retrieval": {"indexes"},
    "pretraining": {"indexes", "retrieval"},
    "evaluation": {"indexes", "retrieval"},
}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module.partition(".")[0])
    return names & MAY_IMPORT.keys()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_import_law(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        beyond = imported_packages(path) - MAY_IMPORT[package] - {package}
        assert not beyond, f"{path.relative_to(ROOT)} imports {beyond}"


def test_the_law_would_notice(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from evaluation.measures import ndcg\n")
    assert imported_packages(bad) == {"evaluation"}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_each_package_is_importable_first_and_light(package):
    heavy = "[m for m in ('torch', 'transformers', 'sentence_transformers', 'faiss', 'bm25s') if m in sys.modules]"
    assert run_python(f"import sys, {package}; print({heavy})") == "[]"


def test_import_retrieval_is_quick():
    code = "import time; start = time.perf_counter(); import retrieval; print(time.perf_counter() - start)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.5


def test_help_loads_no_torch():
    code = (
        "import sys; sys.argv = ['retrokit', '--help']\n"
        "from retrieval.cli import main\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'transformers', 'faiss'} & sys.modules.keys()"
    )
    shown = run_python(code)
    assert all(name.partition(" ")[0] in shown for name in COMMANDS)  # the second word is in the help of its group


PUBLIC = {
    "indexes": ["Entry", "Hits", "Index", "InputError", "Lexical", "VectorStore", "save_vectors", "search_exact"],
    "retrieval": ["Analyzer", "Document", "Encoder", "Hit", "Retriever", "build_index", "read_documents"],
    "pretraining": ["AdaptConfig", "Objective", "PretrainConfig", "PretrainingModel", "adapt", "pretrain"],
    "evaluation": None,
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_public_names(package):
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__)
    if PUBLIC[package] is not None:
        assert set(PUBLIC[package]) <= set(module.__all__)
    for name in module.__all__:
        assert inspect.getdoc(getattr(module, name)), f"{package}.{name} has no docstring"
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_says_what_it_does(name):
    function = load_command(name)
    first = inspect.getdoc(function).splitlines()[0]
    assert first.endswith((".", ":")) or len(first) > 20
    assert "json" in inspect.signature(function).parameters


def test_rooms_are_not_halls():
    long = {
        str(path.relative_to(ROOT)): lines
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long
