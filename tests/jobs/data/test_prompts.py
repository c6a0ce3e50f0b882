"""Reading prompts: formats, ids, draws, chats, and what each kind of bad input becomes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.results.results import write_prompts
from cluster.storage.open_store import LocalStore
from jobs.data.prompts import PromptRow, load
from jobs.spec.trial_spec import DatasetSpec
from optim.errors import InputError


class Tokenizer:
    chat_template: str | None = "given"

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert (tokenize, add_generation_prompt) == (False, True)
        if messages[0]["role"] == "assistant":
            raise TypeError("the user speaks first")
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def no_tokenizer() -> Any:
    raise AssertionError("plain prompts need no tokenizer")


def read(path: Path | str, *, tokenizer: Any = no_tokenizer, **fields: Any) -> list[PromptRow]:
    return load(DatasetSpec.model_validate({"path": str(path), **fields}), tokenizer)


def jsonl(folder: Path, *rows: Any) -> Path:
    """A file with one line per row; bytes are written as they are."""
    path = folder / "set.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def refusal(path: Path | str, **fields: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, **fields)
    return caught.value


def test_columns_by_default(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"id": 7, "prompt": "a", "target": 1.5}, b"", {"id": "x", "prompt": "b"})
    rows = read(path)
    assert rows[0] == PromptRow("set", 0, "7", "a", target="1.5")
    assert rows[1] == PromptRow("set", 1, "x", "b")


def test_all_columns(tmp_path: Path) -> None:
    row = {"q": "x", "n": 3, "ans": "y", "opts": ["y", "z"], "doc": 4, "key": "k"}
    names = {"target": "ans", "choices": "opts", "cluster": "doc", "id": "key"}
    (found,) = read(jsonl(tmp_path, row), prompt="{q} {{{n}}}\n", **names)
    assert found == PromptRow("set", 0, "k", "x {3}\n", False, "y", ["y", "z"], "4")


def test_a_template_does_not_read_values_again_or_reach_into_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"a": "{b}", "b": "secret", "a.b": "dotted"})
    assert read(path, prompt="{a}|{a.b}")[0].prompt == "{b}|dotted"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'{"prompt": ', "line 2: not valid JSON"),
        (b'["a"]', "line 2: expected a JSON object, got the list"),
        (b'{"prompt": "\xff"}', "line 2: not UTF-8"),
        (b'{"prompt": ' + b"[" * 100_000, "line 2: not valid JSON: nested too deeply"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "line 2: not valid JSON"),
        (b'{"prompt": null}', "line 2: `prompt` is no text but null"),
        (b'{"prompt": ["a"]}', "line 2: `prompt` is no text but the list"),
        (b'{"prompt": 5}', "line 2: `prompt` is no text but the number 5"),
        (b'{"prompt": "\\ud800"}', "line 2: `prompt` has a lone surrogate"),
        (b'{"other": "a"}', "line 2: there is no `prompt`"),
        (b'{"prompt": "a", "target": ["b"]}', "line 2: `target` is no text but the list"),
        (b'{"prompt": "a", "target": true}', "line 2: `target` is no text but the truth"),
        (b'{"prompt": "a", "id": 1.5}', "line 2: `id` is neither"),
        (b'{"prompt": "a", "id": "\\udfff"}', "line 2: `id` has a lone surrogate"),
    ],
)
def test_a_bad_row_is_one_error_row(tmp_path: Path, line: bytes, part: str) -> None:
    path = jsonl(tmp_path, {"prompt": "first", "target": "t"}, line, {"prompt": "last"})
    rows = read(path)
    assert [row.prompt for row in rows] == ["first", None, "last"]
    assert rows[1].prompt_id == "line-2"
    assert part in str(rows[1].error)
    assert [row.row for row in rows] == [0, 1, 2]
    write_prompts(LocalStore(tmp_path / "out"), [row.as_dict() for row in rows])


def test_bad_choices_and_cluster(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"prompt": "a", "c": ["x"], "g": "1"},
        {"prompt": "b", "c": ["x", 1], "g": "1"},
        {"prompt": "c", "c": ["x"], "g": {}},
        {"prompt": "d", "c": ["x"]},
    )
    errors = [row.error for row in read(path, choices="c", cluster="g")]
    assert errors[0] is None
    assert "`c` is no list of texts" in str(errors[1])
    assert "`g` is no text" in str(errors[2])
    assert "there is no `g`" in str(errors[3])


def test_nul_and_long_texts_pass(tmp_path: Path) -> None:
    texts = ["a\0b", "x" * 1_000_000, "line\u2028separator", "\N{GRINNING FACE}", ""]
    rows = read(jsonl(tmp_path, *({"prompt": text} for text in texts)))
    assert [row.prompt for row in rows] == texts
    assert all(row.error is None for row in rows)


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "dos.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [row.prompt for row in read(path)] == ["a", "b"]


def test_packed_and_remote_files(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n'))
    (row,) = read(path)
    assert (row.dataset, row.prompt) == ("set", "a")
    with fsspec.open("memory://folder/far.jsonl", "wb") as file:
        file.write(b'{"prompt": "b"}\n')
    assert read("memory://folder/far.jsonl")[0].prompt == "b"
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n')[:-10])
    assert "cannot be read" in refusal(path).problem


def test_duplicate_user_ids(tmp_path: Path) -> None:
    rows = read(jsonl(tmp_path, *({"id": "a", "prompt": text} for text in "xyz")))
    assert [row.prompt_id for row in rows] == ["a", "a-2", "a-3"]
    assert rows[0].error is None
    assert rows[2].error == 'line 3: the id "a" is taken by line 1'


def test_ids_from_prompts(tmp_path: Path) -> None:
    texts = ["same", "other", "same", "caf\u00e9", "cafe\u0301"]
    rows = read(jsonl(tmp_path, *({"prompt": text} for text in texts)))
    ids = [row.prompt_id for row in rows]
    assert len(ids[0]) == 16
    assert ids[2] == ids[0] + "-2"
    assert ids[4] == ids[3] + "-2"
    assert all(row.error is None for row in rows)


def test_a_chat_is_rendered(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    refused = [{"role": "assistant", "content": "x"}, *chat]
    chats = [chat, [], [{"role": "user"}], refused, ["hi"]]
    path = jsonl(tmp_path, *({"messages": each} for each in chats))
    rows = read(path, tokenizer=Tokenizer)
    assert (rows[0].prompt, rows[0].is_chat) == ("<user>hi<assistant>", True)
    assert "no list of messages" in str(rows[1].error)
    assert "message 1 of `messages`: `content` is no text: null" in str(rows[2].error)
    assert "line 4: the chat template cannot render the messages" in str(rows[3].error)
    assert (rows[3].prompt, rows[3].is_chat) == (None, False)
    assert "message 1 of `messages` is no mapping" in str(rows[4].error)


def test_prompts_come_before_messages(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "p", "messages": [{"role": "user", "content": "hi"}]})
    assert read(path)[0].prompt == "p"
    assert read(path, messages="messages", tokenizer=Tokenizer)[0].is_chat


def test_no_chat_template(tmp_path: Path) -> None:
    bare = Tokenizer()
    bare.chat_template = None
    path = jsonl(tmp_path, {"messages": [{"role": "user", "content": "hi"}]})
    error = refusal(path, tokenizer=lambda: bare)
    assert "no chat template" in error.problem
    assert error.mend


@pytest.mark.parametrize("field", ["prompt", "messages", "target", "choices", "cluster", "id"])
def test_a_column_that_is_not_there(tmp_path: Path, field: str) -> None:
    error = refusal(jsonl(tmp_path, {"prompt": "a", "answer": "b"}), **{field: "answr"})
    assert error.field == field
    assert error.problem == "there is no column `answr`"
    assert error.mend == "Did you mean `answer`? Its columns: prompt, answer"


def test_no_prompts_at_all(tmp_path: Path) -> None:
    error = refusal(jsonl(tmp_path, {"question": "a"}))
    assert "Its columns: question. Name one in `prompt` or `messages`" in str(error.mend)
    assert "`b`" in refusal(jsonl(tmp_path, {"a": "x"}), prompt="{a}{b}").problem


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    assert "the dataset is empty" in refusal(path).problem


def test_a_file_without_one_object(tmp_path: Path) -> None:
    assert "no line is a JSON object; line 1" in refusal(jsonl(tmp_path, b"[", b"]")).problem


def test_paths_that_are_no_dataset(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.jsonl").problem == "there is no such file"
    assert "cannot be read" in refusal(_folder(tmp_path / "folder.jsonl")).problem
    (tmp_path / "prompts.txt").write_text("a")
    assert "not a kind of dataset" in refusal(tmp_path / "prompts.txt").problem
    assert "not a kind of dataset" in refusal("a b c").problem
    assert "nosuch" in str(refusal("nosuch://bucket/set.jsonl"))
    assert "not a hub dataset" in refusal(jsonl(tmp_path, {"prompt": "a"}), split="x").problem


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_csv_cells_are_text(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_bytes(b'id,prompt,target\n007,"two\nlines",NA\n8,5,\n\n9,a,b,c\n10,\xff,\n')
    rows = read(path)
    assert rows[0] == PromptRow("set", 0, "007", "two\nlines", target="NA")
    assert rows[1] == PromptRow("set", 1, "8", "5")
    assert (rows[2].prompt_id, rows[2].error) == ("line-6", "line 6: expected 3 cells, got 4")
    assert "not UTF-8" in str(rows[3].error)


def test_bad_csv(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("prompt\n")
    assert "the dataset is empty" in refusal(path).problem
    path.write_text("prompt,prompt\na,b\n")
    assert "two columns are named `prompt`" in refusal(path).problem
    path.write_text('prompt\nfine\n"never closed\n')
    assert "not valid CSV" in refusal(path).problem


def test_long_csv_cells(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("prompt\n" + "x" * 1_000_000 + "\n")
    assert len(str(read(path)[0].prompt)) == 1_000_000


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    table = {"prompt": ["a", None], "c": [["x", "y"], None], "unused": [1, 2]}
    pq.write_table(pa.table(table), path)
    rows = read(path, choices="c")
    assert rows[0].choices == ["x", "y"]
    assert (rows[1].prompt_id, rows[1].error) == ("row-2", "row 2: `prompt` is no text but null")


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    path.write_bytes(b"not parquet at all")
    assert "not valid Parquet" in refusal(path).problem
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    assert "the dataset is empty" in refusal(path).problem


def test_hub_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    held = datasets.Dataset.from_dict({"prompt": ["a", "b", "c"], "other": [1, 2, 3]})
    answer: Any = {"test": held}

    def load_dataset(**arguments: Any) -> Any:
        calls.append(arguments)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read("org/set", limit=2, subset="s", revision="r")
    assert len(rows) == 2
    assert calls[0] == {
        "path": "org/set", "name": "s", "revision": "r", "split": None, "streaming": True,
    }  # fmt: skip
    answer = datasets.IterableDataset.from_generator(lambda: iter([{"prompt": "x"}, {"prompt": 5}]))
    streamed = read("org/set", limit=9)
    assert streamed[0].prompt == "x"
    assert "no text but the number 5" in str(streamed[1].error)
    answer = {"test": held, "train": held}
    error = refusal("org/set", limit=2)
    assert (error.field, error.mend) == ("split", "Set `split` to one of: test, train")
    answer = RuntimeError("Dataset scripts are no longer supported, but found set.py")
    assert "refs/convert/parquet" in str(refusal("org/set", limit=2).mend)
    answer = datasets.Dataset.from_dict({"prompt": []})
    assert "the dataset is empty" in refusal("org/set", limit=2).problem


def test_demo_datasets() -> None:
    rows = read("demo/networking", limit=3)
    assert len(rows) == 3
    assert all(row.prompt and row.target for row in rows)
    assert "Did you mean `demo/language`?" in str(refusal("demo/langage"))


def test_a_draw_keeps_the_order_of_the_file_and_the_seed_decides(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"prompt": f"p{n}"} for n in range(200)))
    everything = [row.prompt for row in read(path)]
    first, second = ([r.prompt for r in read(path, limit=20, sample_seed=s)] for s in (0, 1))
    assert first == [p for p in everything if p in set(first)]
    assert first != second
    assert [row.row for row in read(path, limit=20)] == list(range(20))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=40),
    extra=st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=10),
    small=st.integers(1, 20),
    more=st.integers(0, 20),
)
def test_a_small_draw_is_part_of_a_large_one(
    tmp_path: Path, texts: list[str], extra: list[str], small: int, more: int
) -> None:
    path = jsonl(tmp_path, *({"prompt": text} for text in texts))
    old = {row.prompt_id for row in read(path)}
    few, many = ({r.prompt_id for r in read(path, limit=n)} for n in (small, small + more))
    assert few <= many
    assert len(few) == min(small, len(texts))
    # New rows may push old ones out, but never bring in one that was not drawn before.
    grown = read(jsonl(tmp_path, *({"prompt": text} for text in texts + extra)), limit=small)
    assert {row.prompt_id for row in grown} & old <= few
