"""What an optimizer step changes, and the checks on it."""

from types import SimpleNamespace

import pytest
import torch

from rlcm_cli.config import TrainSettings
from rlcm_cli.errors import TrainingError
from rlcm_cli.learning.student import Student


def make_student(*, average=False):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    kept = {"weight": torch.ones(2)} if average else None
    return Student(SimpleNamespace(), {"weight": weight}, optimizer, kept), weight


def test_a_step_is_clipped_and_the_norm_before_is_returned():
    student, weight = make_student(average=True)
    weight.grad = torch.tensor([3.0, 4.0])
    assert student.step(TrainSettings(max_grad_norm=1.0, ema_decay=0.5), 0) == pytest.approx(5.0)
    assert weight.tolist() == pytest.approx([0.4, 0.2], abs=1e-5)
    assert student.average["weight"].tolist() == pytest.approx([0.7, 0.6], abs=1e-5)
    assert student.steps == 1


def test_no_step_is_taken_along_a_gradient_that_is_not_finite():
    student, weight = make_student()
    weight.grad = torch.tensor([torch.nan, 1.0])
    with pytest.raises(TrainingError, match=r"^iteration 3: the gradient is nan; use --dtype"):
        student.step(TrainSettings(), 2)
    assert weight.tolist() == [1.0, 1.0]
    assert student.steps == 0


@pytest.mark.parametrize(
    ("after", "words"),
    [(1.0, "0 optimizer steps changed no weight"), (torch.inf, "made 1 of 1 weights infinite")],
)
def test_weights_that_are_as_before_or_not_finite_are_refused(after, words):
    student, weight = make_student()
    before = {"weight": weight.detach().clone()}
    with torch.no_grad():
        weight.fill_(after)
    with pytest.raises(TrainingError, match=words):
        student.check_weights(before, 0, 1e-3)


def test_weights_that_moved_are_fine():
    student, weight = make_student()
    before = {"weight": weight.detach().clone()}
    with torch.no_grad():
        weight.fill_(2.0)
    student.check_weights(before, 0, 1e-3)
