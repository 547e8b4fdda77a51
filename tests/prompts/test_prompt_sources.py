import json
from pathlib import Path

import pytest

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts import PROMPT_SETS, load_prompts


def refusal(source) -> str:
    with pytest.raises(ConfigError) as caught:
        load_prompts(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


class TestBuiltInSets:
    def test_simple_animals_are_the_45_bare_names(self):
        prompts = load_prompts("simple_animals")
        assert len(prompts) == 45
        assert prompts[:3] == ("cat", "dog", "horse")
        assert prompts[-1] == "kangaroo"

    def test_imagenet_animals_stand_at_their_class_number(self):
        prompts = load_prompts("imagenet_animals")
        assert len(prompts) == 398
        landmarks = {0: "tench", 7: "cock", 134: "crane", 207: "golden retriever", 291: "lion", 397: "puffer"}
        assert {index: prompts[index] for index in landmarks} == landmarks

    def test_animal_activities_are_every_animal_at_three_activities(self):
        prompts = load_prompts("animal_activities")
        assert len(prompts) == 135
        assert prompts[0] == "a cat washing the dishes"
        assert "an ant riding a bike" in prompts
        activities = ("washing the dishes", "riding a bike", "playing chess")
        names = [prompt.split(" ", 1)[1] for prompt in prompts]
        assert names == [f"{animal} {act}" for animal in load_prompts("simple_animals") for act in activities]

    def test_every_named_set_loads(self):
        assert all(load_prompts(name) for name in PROMPT_SETS)


class TestTextFile:
    def test_blanks_comments_duplicates_and_white_space_go(self, tmp_path):
        path = write(tmp_path / "my.txt", "\ufeffa cat \r\n\r\n  # note\r\nein Bär\r\na cat\r\n\tdog #1")
        assert load_prompts(str(path)) == ("a cat", "ein Bär", "dog #1")

    @pytest.mark.parametrize("text", ["", "\n# only a comment\n \n"])
    def test_an_empty_file_is_refused(self, tmp_path, text):
        path = write(tmp_path / "empty.txt", text)
        assert "there is no prompt in it" in refusal(path)

    def test_other_encodings_are_refused(self, tmp_path):
        path = tmp_path / "latin.txt"
        path.write_bytes("B\u00e4r".encode("latin-1"))
        assert f"{path} is not UTF-8 text (byte 1); save it as UTF-8" in refusal(path)

    def test_a_folder_is_refused(self, tmp_path):
        assert f"{tmp_path} cannot be read" in refusal(tmp_path)

    def test_an_unknown_name_lists_the_sets_and_the_nearest(self):
        message = refusal("simple_animal")
        assert all(name in message for name in PROMPT_SETS)
        assert "did you mean 'simple_animals'?" in message

    def test_a_missing_file_asks_for_the_path(self, tmp_path):
        assert "check the path" in refusal(tmp_path / "nowhere.txt")


class TestTables:
    @pytest.fixture
    def tables(self, tmp_path):
        import pyarrow
        import pyarrow.parquet

        # "NA" and the brackets in the name are what a less literal reader trips over.
        rows = [{"id": 1, "caption": "NA"}, {"id": 2, "caption": 'a "big", cat'}, {"id": 3, "caption": None}]
        write(tmp_path / "t[1].csv", 'id,caption\n1,NA\n2,"a ""big"", cat"\n3,\n4\n')
        write(tmp_path / "t[1].jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t[1].parquet")
        return tmp_path

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_both_spellings_read_the_column(self, tables, kind):
        path = tables / f"t[1].{kind}"
        assert load_prompts(f"{path}:caption") == ("NA", 'a "big", cat')
        renamed = path.rename(tables / "table.data")
        assert load_prompts(f"{kind}:{renamed}:caption") == ("NA", 'a "big", cat')

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_a_wrong_column_names_the_columns(self, tables, kind):
        message = refusal(f"{tables / f't[1].{kind}'}:prompt")
        assert "there is no column 'prompt'; name one of 'id', 'caption'" in message

    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_a_column_of_numbers_is_refused(self, tables, kind):
        assert "'id' holds int values, not text" in refusal(f"{tables / f't[1].{kind}'}:id")

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_a_missing_file_is_named(self, tmp_path, kind):
        path = tmp_path / f"no.{kind}"
        assert f"prompt file {path} is not there" in refusal(f"{path}:caption")

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_a_missing_column_shows_the_spelling(self, tables, kind):
        path = tables / f"t[1].{kind}"
        assert f"write {path}:COLUMN" in refusal(path)
        assert f"write {kind}:{path}:COLUMN" in refusal(f"{kind}:{path}")

    def test_the_colon_of_a_windows_drive_belongs_to_the_path(self):
        assert r"prompt file C:\my\x.csv is not there" in refusal(r"C:\my\x.csv:caption")
        assert r"prompt file C:\my\x.txt is not there" in refusal(r"csv:C:\my\x.txt:caption")
        assert r"write csv:C:\my\x.csv:COLUMN" in refusal(r"csv:C:\my\x.csv")
        assert r"write C:\my\x.csv:COLUMN" in refusal(r"C:\my\x.csv")

    def test_an_empty_table_is_refused(self, tmp_path):
        assert "has no column at all" in refusal(f"{write(tmp_path / 'x.csv', '')}:caption")
        path = write(tmp_path / "y.csv", "caption\n\n")
        assert "there is no prompt in it" in refusal(f"{path}:caption")

    def test_damaged_tables_are_refused_with_the_place(self, tmp_path):
        unclosed = write(tmp_path / "x.csv", 'caption\na cat\n"a dog\na cow\n')
        assert f"{unclosed}, line 4: no csv" in refusal(f"{unclosed}:caption")
        broken = write(tmp_path / "x.jsonl", '{"caption": "a cat"}\n{"caption": \n')
        assert f"{broken}, line 2: no JSON (Expecting value, column 13)" in refusal(f"{broken}:caption")
        array = write(tmp_path / "y.jsonl", '["a cat"]\n')
        assert f"{array}, line 1: no JSON object" in refusal(f"{array}:caption")
        foreign = write(tmp_path / "x.parquet", "caption\na cat\n")
        assert f"{foreign} cannot be read as parquet" in refusal(f"{foreign}:caption")

    def test_a_line_separator_inside_a_json_string_is_kept(self, tmp_path):
        path = write(tmp_path / "x.jsonl", '{"caption": "a\u2028cat"}\n')
        assert load_prompts(f"{path}:caption") == ("a\u2028cat",)


class TestDatasets:
    @pytest.fixture
    def datasets(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        return datasets

    def test_a_local_folder_is_read_by_datasets(self, datasets, tmp_path):
        (tmp_path / "set").mkdir()
        write(tmp_path / "set" / "train.csv", "id,caption\n1,a cat\n2,a dog\n3,a cat\n")
        datasets.disable_progress_bars()
        assert load_prompts(f"hf:{tmp_path / 'set'}:caption") == ("a cat", "a dog")
        assert "name one of 'id', 'caption'" in refusal(f"hf:{tmp_path / 'set'}:text")

    @pytest.mark.parametrize(
        ("source", "asked"),
        [
            ("hf:plain:text", ("plain", None, "train")),
            ("hf:owner/name:text", ("owner/name", None, "train")),
            ("hf:owner/name/test:text", ("owner/name", None, "test")),
            ("hf:owner/name/large/test:text", ("owner/name", "large", "test")),
        ],
    )
    def test_repository_configuration_and_split_are_told_apart(self, datasets, monkeypatch, source, asked):
        def load_dataset(repository, configuration, split):
            assert (repository, configuration, split) == asked
            return datasets.Dataset.from_dict({"text": ["a cat"]})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert load_prompts(source) == ("a cat",)

    def test_an_unreachable_hub_points_to_what_works_without(self, datasets, monkeypatch):
        def load_dataset(*args, **kwargs):
            raise ConnectionError("Couldn't reach 'owner/name'\non the Hub")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        message = refusal("hf:owner/name:text")
        assert "the hub cannot be reached (Couldn't reach 'owner/name' on the Hub)" in message
        assert "simple_animals" in message

    @pytest.mark.parametrize("kind", ["DatasetNotFoundError", "DatasetGenerationError", ValueError])
    def test_what_datasets_refuses_is_one_line(self, datasets, monkeypatch, kind):
        error = getattr(datasets.exceptions, kind) if isinstance(kind, str) else kind

        def load_dataset(*args, **kwargs):
            raise error("Unknown split\n'tset'")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert "(Unknown split 'tset'); check name, split and access" in refusal("hf:owner/name/tset:text")

    def test_spelling_errors_show_the_form(self):
        assert "write hf:owner/name:COLUMN" in refusal("hf:owner/name")
        assert "write hf:NAME:COLUMN" in refusal("hf:")
        assert "write hf:OWNER/NAME/CONFIG/SPLIT:COLUMN" in refusal("hf:no/such/local/folder/here:text")
