"""Where prompts come from: sets, text files, tables, data sets, and what is refused of each."""

import pytest
from table_files import KINDS, write_tables, write_text

from rlcm_cli.errors import ConfigError
from rlcm_cli.prompts.sources import PROMPT_SETS, load_prompts


def refusal(source) -> str:
    with pytest.raises(ConfigError) as caught:
        load_prompts(str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestBuiltInSets:
    def test_simple_animals_are_the_45_bare_names(self):
        prompts = load_prompts("simple_animals")
        assert len(prompts) == 45
        assert prompts[:3] == ("cat", "dog", "horse")
        assert prompts[-1] == "kangaroo"

    def test_imagenet_animals_stand_at_their_class_number(self):
        prompts = load_prompts("imagenet_animals")
        assert len(prompts) == 398
        landmarks = {
            0: "tench, Tinca tinca",
            7: "cock",
            134: "crane",
            207: "golden retriever",
            291: "lion, king of beasts, Panthera leo",
            397: "puffer, pufferfish, blowfish, globefish",
        }
        assert {index: prompts[index] for index in landmarks} == landmarks
        # The papers' prompts are whole synsets; 173 of them have one name.
        assert sum("," not in prompt for prompt in prompts) == 173

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
        path = write_text(tmp_path / "my.txt", "\ufeffa cat \r\n\r\n  # note\r\nein Bär\r\na cat\r\n\tdog #1")
        assert load_prompts(str(path)) == ("a cat", "ein Bär", "dog #1")

    @pytest.mark.parametrize("text", ["", "\n# only a comment\n \n"])
    def test_an_empty_file_is_refused(self, tmp_path, text):
        path = write_text(tmp_path / "empty.txt", text)
        assert "there is no prompt in it" in refusal(path)

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
    def test_a_byte_order_mark_tells_the_encoding(self, tmp_path, encoding):
        path = tmp_path / "windows.txt"
        text = "a cat\r\nB\u00e4r \U0001f43b\r\n"
        path.write_bytes(("\ufeff" * (encoding == "utf-16-be") + text).encode(encoding))
        assert load_prompts(str(path)) == ("a cat", "B\u00e4r \U0001f43b")

    def test_all_ends_of_lines_are_some(self, tmp_path):
        path = write_text(tmp_path / "old.txt", "a cat\ra dog\r\na fox\na\u2028bear")
        assert load_prompts(str(path)) == ("a cat", "a dog", "a fox", "a\u2028bear")

    @pytest.mark.parametrize(
        ("text", "advice"),
        [
            ('["a cat",\n"a dog"]', "FILE.json"),
            ('[{"prompt": "a cat"}]', "FILE.json, with :COLUMN behind it"),
            ('{"prompt": "a cat"}\n{"prompt": "a dog"}\n', "FILE.jsonl, with :COLUMN behind it"),
        ],
    )
    def test_json_under_another_name_is_refused(self, tmp_path, text, advice):
        path = write_text(tmp_path / "my.txt", text)
        assert refusal(path).endswith(f"{path} holds JSON, not a prompt a line; name it {advice}")

    def test_brackets_alone_are_no_json(self, tmp_path):
        lines = ("[a cat:1.2], red", "{a|b} dog", "[1]")
        assert load_prompts(str(write_text(tmp_path / "my.txt", "\n".join(lines)))) == lines

    @pytest.mark.parametrize("name", ["x.yaml", "x.xlsx", "x.toml", "x.csv.gz"])
    def test_files_of_other_kinds_are_refused(self, tmp_path, name):
        assert "file is not a list of prompts; write a text file" in refusal(write_text(tmp_path / name, "- a cat"))

    def test_an_unknown_name_lists_the_sets_and_the_nearest(self):
        message = refusal("simple_animal")
        assert all(name in message for name in PROMPT_SETS)
        assert "did you mean 'simple_animals'?" in message

    def test_a_missing_file_asks_for_the_path(self, tmp_path):
        assert "check the path" in refusal(tmp_path / "nowhere.txt")


class TestTables:
    @pytest.fixture
    def tables(self, tmp_path):
        return write_tables(tmp_path)

    @pytest.mark.parametrize("kind", KINDS)
    def test_both_spellings_read_the_column(self, tables, kind):
        path = tables / f"t[1].{kind}"
        assert load_prompts(f"{path}:caption") == ("NA", 'a "big", cat')
        renamed = path.rename(tables / "table.data")
        assert load_prompts(f"{kind}:{renamed}:caption") == ("NA", 'a "big", cat')

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
        assert "has no column at all" in refusal(f"{write_text(tmp_path / 'x.csv', '')}:caption")
        path = write_text(tmp_path / "y.csv", "caption\n\n")
        assert "there is no prompt in it" in refusal(f"{path}:caption")

    def test_json_is_an_array_of_prompts_or_a_table(self, tmp_path):
        assert load_prompts(str(write_text(tmp_path / "a.json", '["a cat",\n "a dog"]'))) == ("a cat", "a dog")
        columns = write_text(tmp_path / "b.json", '{"prompt": ["a cat", "a dog"], "id": [1, 2]}')
        assert load_prompts(f"{columns}:prompt") == ("a cat", "a dog")
        assert f"write {columns}:COLUMN" in refusal(columns)
        for text, fault in [
            ('["a cat", 3]', "item 1: column 'prompt' holds int values"),
            ('["a cat", ""]', "item 1: there is nothing"),
            ('"a cat"', "holds no array of prompts"),
            ("[]", "there is no prompt in it"),
            ("[" * 5000, "no JSON that can be read (RecursionError)"),
            (f"[{'9' * 5000}]", "no JSON that can be read (ValueError)"),
            ('["a cat",\n', "no JSON (Expecting value, line 2, column 1)"),
        ]:
            assert fault in refusal(write_text(tmp_path / "c.json", text))
        assert "holds no table" in refusal(f"{write_text(tmp_path / 'd.json', '[[1]]')}:prompt")


class TestDatasets:
    @pytest.fixture
    def datasets(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        return datasets

    def test_a_local_folder_is_read_by_datasets(self, datasets, tmp_path):
        (tmp_path / "set").mkdir()
        write_text(tmp_path / "set" / "train.csv", "id,caption\n1,a cat\n2,a dog\n3,a cat\n")
        datasets.disable_progress_bars()
        assert load_prompts(f"hf:{tmp_path / 'set'}:caption") == ("a cat", "a dog")
        assert "name one of 'id', 'caption'" in refusal(f"hf:{tmp_path / 'set'}:text")

    def test_a_row_without_a_prompt_is_refused(self, datasets, monkeypatch):
        table = datasets.Dataset.from_dict({"text": ["a cat", None]})
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
        assert "row 1: there is nothing in column 'text' (1 of 2 rows" in refusal("hf:owner/name:text")

    def test_a_folder_that_datasets_would_take_for_a_pattern_is_refused(self, tmp_path):
        (tmp_path / "set [v1]").mkdir()
        assert "for a pattern; rename the folder" in refusal(f"hf:{tmp_path / 'set [v1]'}:text")

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
        assert "HF_HUB_OFFLINE is set; no local copy of owner/name in the cache" in message
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
