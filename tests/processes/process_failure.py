"""The program with an accident in its second process: `process_failure.py killed|broken|spared ARGUMENTS OF RLCM`."""

import os
import signal
import sys

from rlcm_cli.cli.app import main
from rlcm_cli.errors import RewardError
from rlcm_cli.phases import sample, score


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(*_, **__):
    raise RewardError("reward 'compressibility': no longer works")


if os.environ["RANK"] == "1" and sys.argv[1] == "killed":
    sample.publish_shard = die
if os.environ["RANK"] == "1" and sys.argv[1] == "broken":
    score.publish_rewards = fail
main(sys.argv[2:])
