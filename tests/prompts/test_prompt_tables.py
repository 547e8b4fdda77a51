"""Tables in files: cells as they are written, and faults with the place where they stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from table_files import KINDS, write_tables, write_text

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.tables import TABLE_SUFFIXES, Table, parse_json, read_csv, read_table, read_texts


def read(path: Path, column: str) -> list[str]:
    return read_table(TABLE_SUFFIXES[path.suffix], path, [column]).texts(column)


def refusal(path: Path, column: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(path, column)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def tables(tmp_path):
    return write_tables(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_is_read_row_by_row(tables, kind):
    texts = read(tables / f"t[1].{kind}", "caption")
    assert texts == ["NA", 'a "big", cat', "NA"][: 2 if kind == "tsv" else 3]


@pytest.mark.parametrize(("kind", "place"), [("csv", "line 2"), ("jsonl", "line 1"), ("json", "object 0")])
def test_each_row_says_where_it_stands(tables, kind, place):
    table = read_table(kind, tables / f"t[1].{kind}", ["caption"], "caption file")
    assert table.rows[0][0] == place
    assert list(table.columns) == ["id", "caption"]
    assert table.file == f"caption file {tables / f't[1].{kind}'}"


def test_of_parquet_only_the_named_columns_are_read(tables):
    table = read_table("parquet", tables / "t[1].parquet", ["caption", "gone"])
    assert list(table.columns) == ["id", "caption"]
    assert table.rows[0] == ("row 0", {"caption": "NA"})


def test_csv_counts_the_lines_of_the_file_and_leaves_out_empty_rows():
    table = read_csv('a,b\n1,"x\ny"\n,\n\n2,z\n', "x")
    assert [place for place, _ in table.rows] == ["line 3", "line 6"]
    assert [dict(cells) for _, cells in table.rows] == [{"a": "1", "b": "x\ny"}, {"a": "2", "b": "z"}]
    assert read_csv("a;b\n1;2\n", "x", delimiter=";").rows == [("line 2", {"a": "1", "b": "2"})]


def test_columns_of_csv_without_a_name_are_no_columns():
    assert read_csv(",a\n0,x\n", "x").columns == ["a"]
    assert read_csv("", "x").columns == []


def test_json_is_an_array_of_objects_or_an_object_of_arrays(tmp_path):
    columns = write_text(tmp_path / "b.json", '{"prompt": ["a cat", "a dog"], "id": [1, 2], "name": "x"}')
    assert read(columns, "prompt") == ["a cat", "a dog"]
    assert read_table("json", columns, []).columns == ["prompt", "id"]
    assert "item 1: there is nothing" in refusal(write_text(tmp_path / "c.json", '{"prompt": ["a", ""]}'), "prompt")
    for text in ("[[1]]", "3", '{"a": [1], "b": [1, 2]}', '{"a": 1}', "{}"):
        assert "holds no table; write [{" in refusal(write_text(tmp_path / "d.json", text), "prompt")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1, ", r"x: no JSON (Expecting value, column 5); correct it"),
        ("[1,\n\n2 3]", r"x: no JSON (Expecting ',' delimiter, line 3, column 3); correct it"),
        ("[" * 5000, "x: no JSON that can be read (RecursionError); correct it"),
        ("9" * 5000, "x: no JSON that can be read (ValueError); correct it"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(text, fault):
    with pytest.raises(ConfigError) as caught:
        parse_json(text, "x")
    assert str(caught.value) == fault


def test_texts_are_stripped_and_checked_in_the_order_of_faults():
    assert read_texts("f", "c", [("row 0", " a "), ("row 1", "b")]) == ["a", "b"]
    assert read_texts("f", "c", []) == []
    with pytest.raises(ConfigError, match=r"^f, row 1: column 'c' holds float values, not text; name a column"):
        read_texts("f", "c", [("row 0", ""), ("row 1", 1.5)])


def test_a_table_without_the_column_names_those_that_it_has():
    assert Table("f", ["a"], [("row 0", {"a": "x"})]).texts("a") == ["x"]
    for columns, advice in (([], "the table has no column at all"), (["a", "b"], "name one of 'a', 'b'")):
        with pytest.raises(ConfigError, match=rf"^f: there is no column 'c'; {advice}$"):
            Table("f", columns, []).texts("c")


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_column_names_the_columns(tables, kind):
    message = refusal(tables / f"t[1].{kind}", "prompt")
    assert "there is no column 'prompt'; name one of 'id', 'caption'" in message


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_column_of_numbers_is_refused(tables, kind):
    assert "'id' holds int values, not text" in refusal(tables / f"t[1].{kind}", "id")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(tmp_path, kind):
    path = tmp_path / f"no.{kind}"
    assert f"prompt file {path} is not there" in refusal(path, "caption")


def test_damaged_tables_are_refused_with_the_place(tmp_path):
    unclosed = write_text(tmp_path / "x.csv", 'caption\na cat\n"a dog\na cow\n')
    assert f"{unclosed}, line 4: not CSV" in refusal(unclosed, "caption")
    broken = write_text(tmp_path / "x.jsonl", '{"caption": "a cat"}\n{"caption": \n')
    assert f"{broken}, line 2: no JSON (Expecting value, column 13)" in refusal(broken, "caption")
    array = write_text(tmp_path / "y.jsonl", '["a cat"]\n')
    assert f"{array}, line 1: no JSON object" in refusal(array, "caption")
    foreign = write_text(tmp_path / "x.parquet", "caption\na cat\n")
    assert f"{foreign} cannot be read as parquet" in refusal(foreign, "caption")


def test_a_cell_too_many_is_refused_with_its_line(tmp_path):
    path = write_text(tmp_path / "x.csv", "prompt\na cat\na dog, sitting on a mat\n")
    assert f"{path}, line 3: has more cells than there are columns; put a text with a comma" in refusal(path, "prompt")
    path = write_text(tmp_path / "x.tsv", "prompt\tid\na cat\t1\na\tdog\t2\n")
    assert f"{path}, line 3: has more cells" in refusal(path, "prompt")


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = write_text(tmp_path / "x.csv", "prompt,id,prompt\na cat,1,a dog\n")
    assert f"{path}, line 1: column 'prompt' is there twice" in refusal(path, "prompt")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_told(tmp_path, separator):
    path = write_text(tmp_path / "x.csv", f"id{separator}prompt\n1{separator}a cat\n")
    assert "separate the cells by commas, or name a file with tabs FILE.tsv" in refusal(path, "prompt")


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("x.csv", "id,prompt\n1,a cat\n2,\n3\n", "line 3"),
        ("x.tsv", "id\tprompt\n1\ta cat\n2\t \n3\t\n", "line 3"),
        ("x.jsonl", '{"prompt": "a cat"}\n{"text": "a dog"}\n{"prompt": null}\n', "line 2"),
        ("x.json", '[{"prompt": "a cat"}, {"prompt": ""}, {"text": "a fox"}]', "object 1"),
    ],
)
def test_a_row_without_a_prompt_is_refused_with_its_place(tmp_path, name, text, place):
    path = write_text(tmp_path / name, text)
    wanted = f"{path}, {place}: there is nothing in column 'prompt' (2 of 3 rows are so); fill it in"
    assert wanted in refusal(path, "prompt")


def test_a_row_of_parquet_without_a_prompt_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a cat", None, "  "]}), tmp_path / "x.parquet")
    assert "row 1: there is nothing in column 'prompt' (2 of 3 rows" in refusal(tmp_path / "x.parquet", "prompt")


@pytest.mark.parametrize(
    ("prompt", "fault"), [("a cat \\ud83d", "half of a character"), ("a\\u0000cat", "a NUL character")]
)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_what_is_no_text_is_refused_with_its_place(tmp_path, kind, prompt, fault):
    row = f'{{"prompt": "{prompt}"}}'
    path = write_text(tmp_path / f"x.{kind}", f"[{row}]" if kind == "json" else row)
    message = refusal(path, "prompt")
    assert fault in message
    assert ("line 1: " if kind == "jsonl" else "object 0: ") in message


def test_a_line_separator_inside_a_json_string_is_kept(tmp_path):
    path = write_text(tmp_path / "x.jsonl", '{"caption": "a\u2028cat"}\n')
    assert read(path, "caption") == ["a\u2028cat"]
