"""Files as people have them: read as what they are, or refused by a name that helps."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prompts import Tokenizer, jsonl, read, refusal

from jobs.spec.trial_spec import DatasetSpec
from jobs.spec.yaml_reader import validated
from optim.errors import InputError

ROWS = b'{"prompt": "one"}\n{"prompt": "two"}\n'


@pytest.mark.parametrize(
    ("name", "content", "said", "mend"),
    [
        ("a.jsonl", gzip.compress(ROWS), "this is gzip, not text", "name it ….gz"),
        ("a.jsonl", bz2.compress(ROWS), "this is bzip2, not text", "Unpack it"),
        ("a.csv", lzma.compress(b"prompt\na\n"), "this is xz, not text", "Unpack it"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd" + bytes(20), "this is zstd, not text", "Unpack it"),
        ("a.csv", b"PK\x03\x04" + bytes(20), "a zip archive (or a spreadsheet)", "Give text"),
        ("a.jsonl", b"PAR1" + bytes(20), "this is Parquet, not text", "name the file by what"),
        ("a.parquet", ROWS, "this is JSON, not Parquet", "Name the file by what it is"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(ROWS)), "this is gzip, not text", "Unpack"),
        ("a.jsonl", ROWS.decode().encode("utf-16"), "the text is UTF-16", "iconv -f UTF-16"),
        ("a.jsonl", ROWS.decode().encode("utf-16-le"), "the text is UTF-16", "iconv -f UTF-16"),
        ("a.csv", b"prompt\na\n".decode().encode("utf-32"), "the text is UTF-32", "-f UTF-32"),
        ("a.csv", b"prompt;target\nhello, world;x\n", "separated by semicolons", "commas"),
        ("a.csv", b"prompt\ttarget\nhello\tx\n", "separated by tabs", "commas"),
        ("a.csv", b"prompt|target\nhello|x\n", "separated by bars", "commas"),
    ],
)
def test_a_file_is_called_by_what_it_is(
    tmp_path: Path, name: str, content: bytes, said: str, mend: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(path)
    assert said in error.problem
    assert mend in str(error)


def test_a_slip_in_a_path_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.jsonl").write_bytes(ROWS)
    error = refusal("data/promts")
    assert error.problem == "there is no such file"
    assert "Did you mean `data/prompts.jsonl`?" in str(error)
    assert refusal("prompts.json").problem == "there is no such file"
    assert refusal("nobody/prompts.tsv").problem == "there is no such file"


def test_a_server_that_does_not_answer_is_no_missing_file() -> None:
    error = refusal("http://127.0.0.1:9/x.jsonl")
    assert error.problem.startswith("cannot be read: ")


def test_names_are_refused_by_what_is_wrong_with_them() -> None:
    with pytest.raises(InputError, match="expected at most 100 characters, got 120"):
        validated(DatasetSpec, {"path": "a.jsonl", "name": "x" * 120}, "spec")
    with pytest.raises(InputError, match=r"got the truth value false\. YAML reads on, off"):
        validated(DatasetSpec, {"path": "a.jsonl", "name": False}, "spec")


def test_places_mean_what_a_shell_means_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonl(tmp_path, {"prompt": "p"})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA_HERE", str(tmp_path))
    monkeypatch.delenv("DATA_GONE", raising=False)
    [name] = [path.name for path in tmp_path.iterdir()]
    for path in (f"~/{name}", f"$HOME/{name}", f"${{DATA_HERE}}/{name}"):
        spec = validated(DatasetSpec, {"path": path}, "spec")
        assert spec.path == str(tmp_path / name)
    with pytest.raises(InputError, match=r"`\$\{DATA_GONE\}` is not set"):
        validated(DatasetSpec, {"path": "${DATA_GONE}/a.jsonl"}, "spec")


def test_ids_that_are_made_up_take_none_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": "line-2", "prompt": "good"}\n{"prompt": bad}\n{"id": "line-3", "prompt": "good"}\n'
        '{"id": 3}\n{"id": "line-2-2", "prompt": "good"}\n'
    )
    rows = read(path)
    good = {row.prompt_id for row in rows if row.error is None}
    assert good == {"line-2", "line-3", "line-2-2"}
    assert len({row.prompt_id for row in rows}) == 5
    twice = jsonl(
        tmp_path,
        {"id": "a", "prompt": "1"},
        {"id": "a", "prompt": "2"},
        {"id": "a-2", "prompt": "3"},
    )
    found = {row.prompt_id: row.prompt for row in read(twice)}
    assert found == {"a": "1", "a-3": None, "a-2": "3"}
    drawn = {row.prompt_id for row in read(twice, limit=2)}
    assert drawn <= set(found)


def test_whole_numbers_are_read_as_what_they_were(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [1.0, 2.0, 3.0],
            "prompt": ["a", "b", "c"],
            "target": pa.array([4.0, None, 10.0]),
            "cluster": [0.5, 1.0, 1.0],
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path)
    rows = read(path, cluster="cluster")
    assert [row.prompt_id for row in rows] == ["1", "2", "3"]
    assert [row.target for row in rows] == ["4", None, "10"]
    assert [row.cluster for row in rows] == ["0.5", "1.0", "1.0"], "these are no whole numbers"
    lines = jsonl(tmp_path, *({**row, "prompt": str(row["prompt"])} for row in table.to_pylist()))
    assert [row.target for row in read(lines)] == ["4", None, "10"]


def test_a_name_that_stands_twice_is_refused_in_every_format(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), path)
    assert refusal(path).problem == "two columns are named `prompt`"
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "prompt": "b"}\n{"prompt": "c"}\n')
    first, second = read(path)
    assert first.error == "line 1: the key `prompt` is twice"
    assert second.prompt == "c"


def test_wide_rows_of_parquet(tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"{i}" * 200_000}] for i in range(40)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": chats}), path)
    rows = read(path, tokenizer=Tokenizer)
    assert [len(row.prompt or "") > 200_000 for row in rows] == [True] * 40


def messages(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (messages(("human", "hi")), "message 1 of `messages`: there is no role 'human'. There are"),
        ({"messages": [{"from": "human", "value": "hi"}]}, "`from` and `value` instead of `role`"),
        (
            messages(("user", [{"type": "text", "text": "a"}, {"type": "image_url"}])),
            "`content` has a part of type 'image_url', and only text can be run",
        ),
        (messages(("user", "hi"), ("assistant", "ho")), "have it continued by `continue_final_mes"),
    ],
)
def test_chats_that_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    [found] = read(jsonl(tmp_path, row), tokenizer=Tokenizer)
    assert found.prompt is None
    assert said in (found.error or "")


def test_text_parts_are_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    [row] = read(jsonl(tmp_path, messages(("user", parts))), tokenizer=Tokenizer)
    assert row.prompt == "<user>a\nb<assistant>"


def test_the_assistant_s_turn_goes_on_where_that_is_asked_for(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    class Noted(Tokenizer):
        def apply_chat_template(self, chat: Any, **how: Any) -> str:
            seen.append(how)
            return json.dumps(chat)

    path = jsonl(tmp_path, messages(("user", "hi"), ("assistant", "ho")), messages(("user", "hi")))
    rows = read(path, tokenizer=Noted, continue_final_message=True)
    assert [row.error for row in rows] == [None, None]
    assert seen == [
        {"tokenize": False, "continue_final_message": True},
        {"tokenize": False, "add_generation_prompt": True},
    ]


def test_plain_prompts_as_a_chat(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "hi"})
    [row] = read(path, tokenizer=Tokenizer, chat=True)
    assert (row.prompt, row.is_chat) == ("<user>hi<assistant>", True)
    assert row.prompt_id != read(path)[0].prompt_id, "another prompt"


def test_whole_numbers_that_a_table_tool_wrote_to_csv_as_floats(tmp_path: Path) -> None:
    """Where one is missing; where none is, 1.0 is what somebody meant."""
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt,target,version\n1.0,a,4.0,3.0\n2.0,b,,3.1\n,c,5.0,3.0\n")
    rows = read(path, id="id", target="target", cluster="version")
    assert [row.prompt_id for row in rows][:2] == ["1", "2"]
    assert [row.target for row in rows] == ["4", None, "5"]
    assert [row.cluster for row in rows] == ["3.0", "3.1", "3.0"]
    path.write_text("id,prompt,target\n1.0,a,3.0\n2.0,b,2.0\n")
    assert [row.target for row in read(path, id="id", target="target")] == ["3.0", "2.0"]


def test_json_lines_that_are_called_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(ROWS)
    said = str(refusal(path))
    assert "a.csv: it holds JSON, not cells between commas. Name it .jsonl" in said


def test_pictures_beside_a_text_are_not_passed_over(tmp_path: Path) -> None:
    message = {"role": "user", "content": "what is this?", "images": ["cat.png"]}
    path = jsonl(tmp_path, {"messages": [message]})
    [row] = read(path, tokenizer=Tokenizer, messages="messages")
    assert "has `images`, and only text can be run" in str(row.error)
