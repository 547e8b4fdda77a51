"""The program with an accident in its second process.

`process_failure.py killed|broken|stuck|spared ARGUMENTS OF RLCM`
"""

import itertools
import os
import signal
import sys

from rlcm_cli.cli.app import main
from rlcm_cli.errors import NotFiniteError, RewardError
from rlcm_cli.models.latent_model import LatentModel
from rlcm_cli.phases import sample, score


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_, **__):
    raise RewardError("reward 'compressibility': no longer works")


PREDICT, CALLS = LatentModel.predict, itertools.count()


def fail_amid_calls(*arguments):
    if next(CALLS) == 5:  # the first ones measure the time of a call
        raise NotFiniteError("a picture could not be drawn")
    return PREDICT(*arguments)


if os.environ["RANK"] == "1" and sys.argv[1] == "stuck":
    LatentModel.predict = fail_amid_calls
if os.environ["RANK"] == "1" and sys.argv[1] == "killed":
    sample.publish_shard = die
if os.environ["RANK"] == "1" and sys.argv[1] == "broken":
    score.publish_rewards = fail
main(sys.argv[2:])
