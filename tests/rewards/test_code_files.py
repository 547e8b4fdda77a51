"""The files that code is in, found without running it."""

from rlcm_cli.rewards.custom.code_files import find_code_files


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder / "main.py"


def names(found, folder):
    return sorted(path.relative_to(folder.resolve()).as_posix() for path in found)


def test_imports_are_followed_also_within_functions_and_in_packages(tmp_path):
    main = write(
        tmp_path,
        main="import a\ndef f():\n    from tools import b\n",
        a="from tools.b import x",
        tools__b="from . import c\nimport numpy",
        tools__c="raise SystemExit",
        unused="",
    )
    (tmp_path / "tools" / "__init__.py").touch()
    found = names(find_code_files(main, tmp_path), tmp_path)
    assert found == ["a.py", "main.py", "tools/__init__.py", "tools/b.py", "tools/c.py"]


def test_only_one_package_is_followed_where_it_is_named(tmp_path):
    main = write(tmp_path, main="import a, tools.b", a="", tools__b="")
    assert names(find_code_files(main, tmp_path, "tools"), tmp_path) == ["main.py", "tools/b.py"]


def test_this_toolkit_and_what_does_not_parse_are_left_to_others(tmp_path):
    main = write(tmp_path, main="import rlcm_cli.errors, broken", broken="def (", rlcm_cli__errors="")
    assert names(find_code_files(main, tmp_path), tmp_path) == ["broken.py", "main.py"]
