"""Names of devices, and of what is not there."""

import pytest
import torch

from rlcm_cli.core.device import allow_tf32, select_device
from rlcm_cli.errors import ModelError


def test_auto_takes_the_first_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert select_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert select_device("auto") == select_device("cuda") == torch.device("cuda", 1)


@pytest.mark.parametrize(("name", "words"), [("gpu", "did you mean 'cuda'"), ("toaster", "use --device cpu")])
def test_what_is_not_there_is_refused_in_a_line(name, words):
    with pytest.raises(ModelError, match=rf"device '{name}' is not available") as caught:
        select_device(name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tf32_is_allowed_for_products_and_convolutions_alike():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            allow_tf32(allowed)
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
