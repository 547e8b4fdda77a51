"""Run commands on file systems of a few pages, and on a read-only one; fail unless each copes.

`unshare --map-root-user --mount python mount_driver.py MODEL FOLDER`: what is mounted here nobody else sees.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "helpers"))

from fault_runs import ITERATION, SEQUENCE, check_left, command, contents, identities, make_undisturbed, start, succeed

from rlcm_cli.errors import StorageFullError

PAGE = 4096
ROOMY = 64 * 1024 * 1024


def mount(place, *options):
    subprocess.run(["mount", *options, place], check=True, capture_output=True)


def check_refusal(outcome, saying, root, published):
    assert outcome.status == StorageFullError.exit_code, outcome
    assert saying in outcome.line(), outcome
    assert str(root) in outcome.line(), outcome
    return check_left(root, published)


def fill_up(undisturbed, place, disk, pages):
    """Give a command so many pages beyond what is there; tell whether they were too few."""
    mount(disk, "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs")
    try:
        root = undisturbed.copy_before(place, disk / "run")
        taken = ROOMY - shutil.disk_usage(disk).free
        mount(disk, "-o", f"remount,size={max(taken + pages * PAGE, PAGE)}")  # a size of 0 is no limit
        arguments = command(SEQUENCE[place], root, undisturbed.settings)
        published = identities(root)
        outcome = start(arguments, disk.parent).finish()
        enough = outcome.status == 0
        if not enough:
            published = check_refusal(outcome, "not written, the disk is full", root, published)
            mount(disk, "-o", f"remount,size={ROOMY}")
            succeed(arguments, disk.parent)
        check_left(root, published)
        assert contents(root) == contents(undisturbed.before(place + 1)), f"{SEQUENCE[place]} with {pages} pages"
        return not enough
    finally:
        subprocess.run(["umount", disk], check=True)


def protect(undisturbed, place, disk):
    """Run a command on a run that is read-only, and again when it is not."""
    mount(disk, "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs")
    try:
        root = undisturbed.copy_before(place, disk / "run")
        mount(disk, "-o", "remount,ro")
        arguments = command(SEQUENCE[place], root, undisturbed.settings)
        check_refusal(start(arguments, disk.parent).finish(), "not written, the place is not writable", root, {})
        mount(disk, "-o", "remount,rw")
        succeed(arguments, disk.parent)
        assert contents(root) == contents(undisturbed.before(place + 1))
    finally:
        subprocess.run(["umount", disk], check=True)


def main():
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    own = Path(shutil.copytree(model, folder / "models" / "tiny-lcm"))
    undisturbed = make_undisturbed(own)
    disk = folder / "disk"
    disk.mkdir()
    full, read_only = Counter(), Counter()
    for place in ITERATION:
        # Ever larger steps: the first files are small, and each page of the large ones is like the next.
        pages = 0
        while fill_up(undisturbed, place, disk, pages):
            full[SEQUENCE[place]] += 1
            pages += 1 + pages // 4
        protect(undisturbed, place, disk)
        read_only[SEQUENCE[place]] += 1
    print(json.dumps({"full": full, "read-only": read_only}))


if __name__ == "__main__":
    main()
