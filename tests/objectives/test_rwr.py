"""RWR's own: weights that are exponentials of advantages, of mean 1."""

import torch

from rlcm_cli.objectives.rwr import RwrSettings, weigh

ADVANTAGES = torch.tensor([-1.0, 0.0, 2.0])


def test_weights_are_proportional_to_exponentials():
    weights = weigh(RwrSettings(beta=0.5), ADVANTAGES)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    torch.testing.assert_close(weights / weights[1], (0.5 * ADVANTAGES).exp())


def test_only_differences_of_advantages_count():
    torch.testing.assert_close(weigh(RwrSettings(), ADVANTAGES), weigh(RwrSettings(), ADVANTAGES + 100))
