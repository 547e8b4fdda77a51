"""`rlcm report`: where the file goes, what it does not tell, and what is refused."""

import shutil

import fsspec
import pytest
from command_line import refuse, succeed
from reported_runs import write_reported

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.report.html import page as html

pytest.importorskip("vl_convert", reason="the report's charts need the extra `report`")


def test_the_report_goes_into_the_run(capsys, tmp_path):
    layout = write_reported(tmp_path / "run")
    said = succeed(capsys, "report", layout.root).out.removeprefix(f"loading {layout.root} …\n")
    assert said.startswith(f"{layout.root / 'report.html'}: ")
    page = (layout.root / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "What is missing" not in page


def test_the_report_of_several_runs_goes_here(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2)):
        write_reported(tmp_path / name, seed=seed)
    line = succeed(capsys, "report", "a", "b", "--json").json_line()
    assert line == {"report": "report.html", "bytes": (tmp_path / "report.html").stat().st_size}


def test_a_folder_of_runs_stands_for_them(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        (write_reported(tmp_path / f"rlcm/seed-{seed}", seed=seed).root / "checkpoints").mkdir()
    assert succeed(capsys, "report", "rlcm", "--json").json_line()["report"] == "report.html"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "rlcm/seed-1" in page
    assert "rlcm (2 seeds)" in page


def test_out_names_the_file(capsys, tmp_path):
    layout = write_reported(tmp_path / "run")
    assert succeed(capsys, "report", layout.root, "--out", tmp_path / "x" / "y.html", "--quiet").out == ""
    assert (tmp_path / "x" / "y.html").exists()
    assert not (layout.root / "report.html").exists()


def test_the_same_run_gives_the_same_bytes(capsys, tmp_path):
    layout = write_reported(tmp_path / "run")
    for name in ("a", "b"):
        succeed(capsys, "report", layout.root, "--out", tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_it_tells_no_folder_and_no_address(capsys, tmp_path, monkeypatch):
    marked = tmp_path / "ann-marked-home"
    marked.mkdir()
    monkeypatch.chdir(marked)
    layout = write_reported(
        marked / "run",
        model=marked / "models" / "lcm",
        prompts_of=str(marked / "prompts.txt"),
        rewards=(f"{marked}/rewards.py:neat", "https://judge.marked.example/score"),
        ray={"address": "ann-marked-machine:6379"},
    )
    layout.evaluation(4).write_bytes(b"damaged")
    for named in (layout.root, "run", "./run/"):
        succeed(capsys, "report", named, "--out", "page.html")
        page = (marked / "page.html").read_text(encoding="utf-8")
        assert "marked" not in page
        assert str(tmp_path) not in page
        assert "…/lcm" in page
        assert "rewards.py:neat" in page
        assert "What is missing" in page
    monkeypatch.chdir(layout.root)
    succeed(capsys, "report", ".")
    assert "marked" not in (layout.root / "report.html").read_text(encoding="utf-8")


def test_prompts_cannot_break_out_of_the_page(capsys, tmp_path):
    hostile = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a & b", '"quoted"')
    layout = write_reported(tmp_path / "run", prompts=hostile)
    succeed(capsys, "report", layout.root)
    page = (layout.root / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_a_run_that_is_not_there_is_refused(capsys, tmp_path):
    refuse(capsys, MissingFileError, "report", tmp_path / "none", saying=("is not a run directory",))


def test_a_run_given_twice_is_refused(capsys, tmp_path, monkeypatch):
    layout = write_reported(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    refuse(capsys, ConfigError, "report", layout.root, "run", saying=("is given twice",))


def test_an_empty_run_is_refused(capsys, tmp_path):
    layout = write_reported(tmp_path / "run", iterations=0, checkpoints=())
    refuse(capsys, ConfigError, "report", layout.root, saying=("nothing to report", "rlcm loop --run"))


def test_without_its_charts_the_package_is_named(capsys, tmp_path, monkeypatch):
    layout = write_reported(tmp_path / "run")
    html._read_library.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    refuse(capsys, ConfigError, "report", layout.root, saying=("pip install 'rlcm[report]'",))
    assert not (layout.root / "report.html").exists()


def test_rollouts_may_be_gone_altogether(capsys, tmp_path):
    layout = write_reported(tmp_path / "run")
    shutil.rmtree(layout.root / "rollouts")
    succeed(capsys, "report", layout.root)
    assert "no stored rewards" in (layout.root / "report.html").read_text(encoding="utf-8")


def test_a_run_in_an_object_store_is_reported_here(capsys, tmp_path, monkeypatch):
    files = fsspec.filesystem("memory")
    files.put(str(write_reported(tmp_path / "run").root), f"/{tmp_path.name}/away", recursive=True)
    monkeypatch.chdir(tmp_path)
    succeed(capsys, "report", f"memory://{tmp_path.name}/away")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>away</h1>" in page
    assert "All iterations" in page  # the stored rewards
    assert "evaluation of checkpoint 4" in page  # the images of rollouts stay where they are
