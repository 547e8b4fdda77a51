"""Python imports this first where this folder is in PYTHONPATH: in the processes that a perturbed test starts."""

from perturbation import perturb_schedules

perturb_schedules()
