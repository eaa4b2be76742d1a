"""The floor plan, held: who may import whom, no circles, folders that one screen shows, and empty `__init__` files.

The prose is in CONTRIBUTING.md ("Where does it go?"). A folder may use only folders that stand above it in `MAY_USE`,
so the table cannot allow a circle of folders. Imports inside functions and functions named in strings count; imports
under `if TYPE_CHECKING:` do not. Nothing is imported to find out.
"""

import ast
import shutil
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
from po_dynamics.harness import fingerprint

PACKAGE = fingerprint.PACKAGE
BASE = {"errors", "objectives", "storage", "settings"}
MODELS = {*BASE, "models", "data"}
MAY_USE: dict[str, set[str]] = {
    "errors": set(),
    "objectives": {"errors"},
    "storage": {"errors"},
    "settings": {"errors", "objectives"},
    "models": BASE,
    "data": BASE | {"models"},  # encoded pairs need a tokenizer
    "dynamics": BASE,  # tables only: no models
    "figures": BASE,  # tables only: no models
    "bandit": BASE,
    "judging": BASE | {"models"},  # a judge may be a model in this process
    "evaluation": MODELS | {"judging"},
    "training": MODELS,
    "ppo": MODELS,
    "probe": MODELS | {"ppo", "dynamics"},  # fresh roll-outs; coefficients and tables
    "world": MODELS | {"training"},  # its base model is trained
    "parity": MODELS | {"ppo", "training"},
    "validation": MODELS | {"dynamics", "evaluation"},  # trainers reach it as arguments
    "harness": {"errors", "objectives", "settings"},
}
MAY_USE["scripts"] = set(MAY_USE) - {"parity"}
MOST_MODULES = 9  # in one folder, besides __init__


def violations(package: Path = PACKAGE) -> set[str]:
    """One line for everything about a package, and the scripts beside it, that the floor plan forbids."""
    graph = imports(package)
    return {*forbidden(graph, package), *circles(graph, package), *crowded(package), *busy_inits(package)}


def imports(package: Path) -> dict[Path, set[Path]]:
    """The files of the package and the scripts, each with the files that it imports."""
    files = chain(package.rglob("*.py"), (package.parent / "scripts").glob("*.py"))
    return {file: imported(file, package) for file in sorted(files)}


def imported(file: Path, package: Path) -> set[Path]:
    """The files of the modules that a file imports; of `from package import module`, the module."""
    dotted = [(module, f"{module}.{name}") for module, name in fingerprint._references(file, package)]
    found = (fingerprint._locate(long, package) or fingerprint._locate(short, package) for short, long in dotted)
    return {target for target in found if target} - {file}


def folder_of(file: Path, package: Path) -> str:
    """The first part of a module's name in the package ("probe" of probe/passes.py, "errors" of errors.py)."""
    return file.relative_to(package).with_suffix("").parts[0] if file.is_relative_to(package) else "scripts"


def forbidden(graph: dict[Path, set[Path]], package: Path) -> Iterator[str]:
    for file, targets in graph.items():
        source, name = folder_of(file, package), file.relative_to(package.parent)
        if source != "__init__" and source not in MAY_USE:
            yield f"{name}: state in MAY_USE what {source} may import, and who may import it"
            continue
        for target in targets - {package / "__init__.py"}:
            used = folder_of(target, package)
            if used != source and used not in MAY_USE.get(source, set()):
                yield f"{name} imports {target.relative_to(package)}: {source} may not use {used}"


def circles(graph: dict[Path, set[Path]], package: Path) -> Iterator[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "circle: " + " → ".join(str(file.relative_to(package)) for file in error.args[1])


def crowded(package: Path) -> Iterator[str]:
    for folder in (path for path in [package, *package.rglob("*")] if path.is_dir()):
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        if len(modules) > MOST_MODULES:
            yield f"{folder.relative_to(package.parent)} holds {len(modules)} modules; at most {MOST_MODULES} fit"


def busy_inits(package: Path) -> Iterator[str]:
    for file in package.rglob("__init__.py"):
        tree = ast.parse(file.read_text())
        rest = [ast.unparse(node) for node in tree.body[1:]]
        version = file.parent == package and len(rest) == 1 and rest[0].startswith("__version__ = ")
        if ast.get_docstring(tree) is None or not (version or not rest):
            yield f"{file.relative_to(package.parent)} holds more, or less, than a docstring"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small package with a module in every folder that keeps to the plan, to be spoilt."""
    for folder in [".", *MAY_USE.keys() - {"errors", "scripts"}]:
        (tmp_path / "po_dynamics" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "po_dynamics" / folder / "__init__.py").write_text('"""Doc."""\n')
        (tmp_path / "po_dynamics" / folder / "room.py").write_text("from po_dynamics.errors import InputError\n")
    (tmp_path / "po_dynamics" / "room.py").rename(tmp_path / "po_dynamics" / "errors.py").write_text("")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.py").write_text("from po_dynamics.harness.room import stage\n")
    return tmp_path / "po_dynamics"


def test_the_table_goes_one_way():
    order = list(MAY_USE)
    for folder, used in MAY_USE.items():
        assert used <= set(order[: order.index(folder)]), folder


def test_the_package_keeps_to_the_plan():
    assert violations() == set()


def test_the_search_sees_the_package():
    """An empty graph would keep to any plan."""
    seen = {folder_of(target, PACKAGE) for target in set().union(*imports(PACKAGE).values())}
    assert seen >= set(MAY_USE) - {"settings", "parity", "scripts"}


def test_an_upward_import_in_the_package_is_seen(tmp_path):
    for name in (PACKAGE.name, "scripts"):
        shutil.copytree(PACKAGE.parent / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / PACKAGE.name / "storage/atomic.py").open("a") as module:
        module.write("from po_dynamics.models.loading import load_model\n")
    found = "po_dynamics/storage/atomic.py imports models/loading.py: storage may not use models"
    assert found in violations(tmp_path / PACKAGE.name) - violations()


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("storage/room.py", "from po_dynamics.models.room import load", "storage may not use models"),
        ("storage/room.py", "from ..models import room", "storage may not use models"),
        ("models/room.py", "import po_dynamics.training.room", "models may not use training"),
        ("models/room.py", "def f():\n    from po_dynamics.ppo import room", "models may not use ppo"),
        ("models/room.py", "WHAT = 'po_dynamics.ppo.room:train_online'", "models may not use ppo"),
        ("training/room.py", "from po_dynamics.ppo.room import train_online", "training may not use ppo"),
        ("figures/room.py", "from po_dynamics.models import room", "figures may not use models"),
        ("training/room.py", "from po_dynamics.harness.room import stage", "training may not use harness"),
        ("probe/room.py", "from po_dynamics.world.room import gold_reward", "probe may not use world"),
        ("ppo/room.py", "from po_dynamics.parity import room", "ppo may not use parity"),
        ("../scripts/run.py", "from po_dynamics.parity import room", "scripts may not use parity"),
        ("cellar/wine.py", "", "state in MAY_USE what cellar may import, and who may import it"),
        ("ppo/__init__.py", "from po_dynamics.ppo.room import f", "more, or less, than a docstring"),
        ("ppo/__init__.py", "__version__ = '1'", "more, or less, than a docstring"),
        ("__init__.py", "x = 1", "more, or less, than a docstring"),
    ],
)
def test_a_breach_is_seen(house, file, line, complaint):
    (house / file).parent.mkdir(exist_ok=True)
    with (house / file).open("a") as module:
        module.write(line)
    (found,) = violations(house)
    assert found.endswith(complaint)
    assert Path(file).name in found


def test_what_is_allowed(house):
    """Imports downwards, for type checkers only, and the version."""
    (house / "__init__.py").write_text('"""Doc."""\n__version__ = "1"\n')
    (house / "probe/room.py").write_text("from po_dynamics.ppo.room import f\nfrom po_dynamics import __version__\n")
    upwards = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from po_dynamics.ppo.room import g\n"
    (house / "storage/room.py").write_text(upwards)
    assert violations(house) == set()


def test_a_circle_is_seen_though_it_hides_in_a_function(house):
    (house / "ppo/hall.py").write_text("from po_dynamics.ppo.room import f\n")
    (house / "ppo/room.py").write_text("def f():\n    from po_dynamics.ppo import hall\n")
    (found,) = violations(house)
    hall, room = "ppo/hall.py", "ppo/room.py"
    assert found in {f"circle: {way}" for way in (f"{hall} → {room} → {hall}", f"{room} → {hall} → {room}")}


def test_a_tenth_module_is_seen(house):
    for i in range(MOST_MODULES - 1):
        (house / "storage" / f"m{i}.py").touch()
    assert violations(house) == set()
    (house / "storage" / "tenth.py").touch()
    assert violations(house) == {"po_dynamics/storage holds 10 modules; at most 9 fit"}
