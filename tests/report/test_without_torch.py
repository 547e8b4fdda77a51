"""What only looks at runs starts at once: it reads their files without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from reported_runs import write_reported

SCRIPT = """
import sys
from rlcm_cli.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    assert not leaving.code, leaving.code
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "{root}", "--out", "{out}/compared"),
        ("report", "{root}", "--out", "{out}/report.html"),
        ("watch", "{root}", "--once"),
        ("inspect", "{root}"),
        ("inspect", "{root}", "--images", "{out}/images"),
    ],
    ids=" ".join,
)
def test_a_command_that_looks_at_a_run_imports_no_torch(tmp_path: Path, words: tuple[str, ...]):
    if words[0] == "report":
        pytest.importorskip("vl_convert", reason="needs the extra `report`")
    layout = write_reported(tmp_path / "run")
    given = [word.format(root=layout.root, out=tmp_path) for word in words]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
