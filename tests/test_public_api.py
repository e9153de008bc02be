import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

import robust_nc

PROMISED = {
    "Ball",
    "Moments",
    "build_model",
    "evaluate",
    "leaderboard",
    "load_dataset",
    "measure_collapse",
    "measure_leaps",
    "train",
}


def test_all_names_what_is_there() -> None:
    assert set(robust_nc.__all__) >= PROMISED
    assert robust_nc.__all__ == sorted(robust_nc.__all__)
    assert dir(robust_nc) == sorted([*robust_nc.__all__, "__version__"])
    for name in robust_nc.__all__:
        assert getattr(robust_nc, name).__doc__


def test_no_module_bears_the_name_of_a_public_function() -> None:
    for name in robust_nc.__all__:
        assert util.find_spec(f"robust_nc.{name}") is None


def test_the_import_is_light() -> None:
    """What is slow or optional is imported when it is used."""
    code = "import sys, torch; before = set(sys.modules); import robust_nc; "
    code += "robust_nc.Ball; print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torchvision", "torchattacks", "robustbench", "seaborn", "matplotlib", "sklearn"}
    assert "robust_nc" in ran.stdout
    assert not heavy & set(ran.stdout.split())


def test_attacks_has_one_name_only() -> None:
    """From the repository root `import attacks` would load every class twice."""
    root = Path(__file__).parent.parent
    ran = subprocess.run(
        [sys.executable, "-c", "import attacks"], cwd=root, capture_output=True, text=True
    )
    assert "import robust_nc.attacks, not attacks" in ran.stderr
    assert import_module("robust_nc.attacks").__name__ == "robust_nc.attacks"
