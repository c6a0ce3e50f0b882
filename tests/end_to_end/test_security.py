"""Attacks: SQL that reaches out, specs that run code, artifacts that are unpickled."""

from __future__ import annotations

import ast
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import Run
from trial_results import make_results

from cluster.results.results import Results
from jobs.queries import views
from jobs.queries.sql import run_sql
from optim.errors import InputError

ROOT = Path(__file__).parents[2]
SECRET = "what nobody may read"


@pytest.fixture(scope="module", params=["in memory", "where it lies"])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Results]:
    """Small results are copied into memory; of large ones the files stay open to reading."""
    base = tmp_path_factory.mktemp("attacked")
    made = make_results(base / "out", num_datasets=1, num_prompts=4, num_shards=2, seeds=(1,))
    outside = base / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    (outside / "secret.csv").write_text(f"a\n{SECRET}\n")
    # What leads out of the results: a file and a folder, also where parts lie.
    for place in (base / "out", base / "out" / "generations"):
        (place / "link.txt").symlink_to(outside / "secret.txt")
        (place / "link.csv").symlink_to(outside / "secret.csv")
        (place / "folder").symlink_to(outside)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "where it lies":
            patch.setattr(views, "_SMALL_BYTES", 0)
        yield made


@pytest.fixture
def base(results: Results) -> Path:
    return Path(results.output).parent


@pytest.fixture
def listener() -> Iterator[str]:
    """A web server that fails the test when anything asks it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == []


ATTACKS = [
    # Reading files elsewhere, in every way that there is
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv_auto('{outside}/secret.csv')",
    "SELECT * FROM '{outside}/secret.csv'",
    'SELECT * FROM "{outside}/secret.csv"',
    "SELECT * FROM read_text('{outside}/secret.txt')",
    "SELECT * FROM read_blob('{outside}/secret.txt')",
    "SELECT * FROM read_json('{outside}/secret.txt')",
    "SELECT * FROM read_ndjson_objects('{outside}/secret.txt')",
    "SELECT * FROM read_parquet('{outside}/secret.txt')",
    "SELECT * FROM read_single_csv_file('{outside}/secret.csv')",
    "SELECT * FROM read_duckdb('{outside}/secret.txt')",
    "SELECT * FROM sniff_csv('{outside}/secret.csv')",
    "SELECT * FROM parquet_metadata('{outside}/secret.txt')",
    "SELECT * FROM parquet_kv_metadata('/etc/passwd')",
    "SELECT * FROM query('SELECT * FROM read_text(''{outside}/secret.txt'')')",
    "SELECT * FROM query_table('{outside}/secret.csv')",
    "WITH x AS (FROM read_text('{outside}/secret.txt')) FROM x",
    "SELECT (SELECT content FROM read_text('{outside}/secret.txt'))",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql("
    "'SELECT * FROM read_text(''{outside}/secret.txt'')'))",
    # By way of the results' own folder
    "SELECT * FROM read_text('{folder}/../outside/secret.txt')",
    "SELECT * FROM read_text('{folder}/generations/../../outside/secret.txt')",
    "SELECT * FROM read_text('{folder}/link.txt')",
    "SELECT * FROM read_text('{folder}/generations/link.txt')",
    "SELECT * FROM read_csv('{folder}/link.csv')",
    "SELECT * FROM '{folder}/generations/link.csv'",
    "SELECT * FROM read_text('{folder}/folder/secret.txt')",
    "SELECT * FROM read_text('{folder}/manifest.json')",
    "SELECT * FROM read_text('file://{outside}/secret.txt')",
    # Looking around
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM glob('{folder}/../*')",
    "SELECT * FROM glob('..')",
    "SELECT * FROM glob('{folder}/folder/*')",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM read_text('{folder}/**')",
    "SELECT getenv('HOME')",
    # Writing
    "COPY (SELECT 1) TO '{outside}/written.csv'",
    "COPY generations TO '{folder}/written.parquet'",
    "EXPORT DATABASE '{outside}/written'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{outside}/written.csv'",
    "CREATE TABLE x AS SELECT 1",
    "INSERT INTO cells SELECT * FROM cells",
    "UPDATE cells SET wall_s = 0",
    "DELETE FROM cells",
    "DROP TABLE cells",
    "ALTER TABLE cells ADD COLUMN x INT",
    # More of DuckDB
    "ATTACH '{outside}/written.db'",
    "ATTACH ':memory:' AS x",
    "INSTALL httpfs",
    "LOAD httpfs",
    "FORCE INSTALL httpfs FROM 'http://127.0.0.1:1'",
    "LOAD '{outside}/secret.txt'",
    "CREATE SECRET x (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CALL pragma_version()",
    "PRAGMA version",
    "PRAGMA enable_profiling",
    # Unlocking
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET allowed_paths = ['/etc/passwd']",
    "SET allowed_directories = ['/']",
    "PRAGMA enable_external_access = true",
    "RESET enable_external_access",
    "SET temp_directory = '{outside}'",
    "SET python_enable_replacements = true",
    "SELECT * FROM enable_logging(storage = 'file')",
    "SELECT * FROM enable_profiling(save_location = '{outside}/written')",
    # The network
    "SELECT * FROM read_csv('{listener}/x.csv')",
    "SELECT * FROM read_text('{listener}/x')",
    "SELECT * FROM '{listener}/x.parquet'",
    "SELECT * FROM read_text('s3://bucket/x')",
    # Python's variables, and its memory
    "SELECT * FROM results",
    "SELECT * FROM SECRET",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    # Several at once
    "SELECT 1; DROP TABLE cells",
    "SELECT 1; SET lock_configuration = false; SELECT 2",
]


@pytest.mark.parametrize("sql", ATTACKS)
def test_sql_reads_the_views_and_nothing_else(
    results: Results, base: Path, listener: str, sql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base / "outside")
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    words = {"outside": base / "outside", "folder": results.output, "listener": listener}
    with pytest.raises(InputError) as raised:
        run_sql(results, sql.format(**words))
    assert SECRET not in str(raised.value)
    assert {path: path.stat().st_mtime_ns for path in base.rglob("*")} == before
    assert run_sql(results, "SELECT count(*) AS n FROM generations").to_pylist() == [{"n": 16}]


def test_what_may_be_read_is_read(results: Results) -> None:
    for sql in (
        "FROM generations",
        "WITH x AS (SELECT * FROM cells) SELECT count(*) FROM x",
        "DESCRIBE generations",
        "SUMMARIZE cells",
        "SELECT * FROM query('SELECT 1')",
        "SELECT 'DROP TABLE cells; --'",
    ):
        assert run_sql(results, sql).num_rows >= 1


def test_a_query_leaves_no_files_where_one_stands(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    run_sql(results, "SELECT * FROM generations ORDER BY completion_text")
    assert list(place.iterdir()) == []


OBJECTS = [
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:os.system ['touch {mark}']",
    "!!python/object/apply:subprocess.check_output [[touch, {mark}]]",
    "!!python/name:os.system",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", OBJECTS)
@pytest.mark.parametrize("command", ["evaluate", "claims"])
def test_yaml_makes_no_objects(run: Run, tmp_path: Path, tag: str, command: str) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "trial.yaml"
    path.write_text(f"model: {tag.format(mark=mark)}\noutput: {tmp_path}/out\n")
    if command == "claims":
        made = make_results(tmp_path / "made", num_datasets=1, num_prompts=4, num_shards=2)
        path.write_text(f"claims: {tag.format(mark=mark)}\n")
        code, _, err = run("report", made.output, "--claims", path)
    else:
        code, _, err = run("evaluate", path)
    assert code == 2
    assert "Traceback" not in err
    assert str(path.name) in err
    assert not mark.exists()


FORBIDDEN_IMPORTS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
MAY_PICKLE = {"optim/adaptivocab/official/inert_pickle.py"}
"""Reads the authors' files with an unpickler that makes nothing but plain values."""


def sources() -> list[Path]:
    return [path for name in ("jobs", "cluster", "optim") for path in (ROOT / name).rglob("*.py")]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(path: Path) -> list[str]:
    """Calls and imports in a source file by which data could become code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            FORBIDDEN_IMPORTS
        ):
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            safe = keywords.get("weights_only")
            is_safe = isinstance(safe, ast.Constant) and safe.value is True
            if name.endswith("torch.load") and not is_safe:
                found.append("torch.load without weights_only")
            allow = keywords.get("allow_pickle")
            if isinstance(allow, ast.Constant) and allow.value:
                found.append("allow_pickle")
            if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"):
                loader = dotted(keywords["Loader"]) if "Loader" in keywords else ""
                if name != "yaml.load" or not is_safe_loader(loader):
                    found.append(name)
    return found


def is_safe_loader(name: str) -> bool:
    """PyYAML's safe loader, or a class that is made of it and of nothing else."""
    import yaml

    if name in ("yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader"):
        return True
    from jobs.spec import yaml_reader as yaml_files

    kind = getattr(yaml_files, name, None)
    return isinstance(kind, type) and issubclass(kind, yaml.SafeLoader)


def test_nothing_that_is_read_becomes_code() -> None:
    files = sources()
    assert len(files) > 100
    found = {str(path.relative_to(ROOT)): problems for path in files if (problems := unsafe(path))}
    assert found.keys() <= MAY_PICKLE, found


def test_the_search_finds_what_it_is_for(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import pickle\nfrom joblib import load\nimport torch, yaml\ntorch.load('x')\n"
        "torch.load('x', weights_only=True)\nyaml.load('x', Loader=yaml.Loader)\neval('1')\n"
    )
    assert unsafe(path) == [
        "pickle", "joblib", "torch.load without weights_only", "yaml.load", "eval",
    ]  # fmt: skip
