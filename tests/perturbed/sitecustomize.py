"""Python imports this first where this folder is in PYTHONPATH: in the processes that a perturbed test starts."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import Any

from perturbation import perturb_schedules


class _PerturbOnImport(importlib.abc.MetaPathFinder):
    """Perturbs torch when a process imports it, since some must not."""

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_perturb(module: Any) -> None:
            execute(module)
            perturb_schedules(module)

        loader.exec_module = execute_and_perturb
        return spec


sys.meta_path.insert(0, _PerturbOnImport())
