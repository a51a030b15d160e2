"""Data sets of the hub: the library itself against a small server; which files belong to which split."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from hear_m2d.pretrain.data.prepared import LogMelData
from hear_m2d.pretrain.data.sources.hub import choose_splits, hub_source
from hear_m2d.utils.errors import InputError

COMMIT = "a" * 40
ADDRESS = "hf://datasets/owner/name"


def parquet(first, count):
    sounds = []
    for index in range(first, first + count):
        file = io.BytesIO()
        soundfile.write(file, 0.1 * np.random.default_rng(index).standard_normal(8000), 16000, format="WAV")
        sounds.append({"bytes": file.getvalue(), "path": f"{index}.wav"})
    table = pa.table({"audio": sounds, "label": [index % 2 for index in range(count)]})
    features = {"audio": {"_type": "Audio"}, "label": {"_type": "ClassLabel", "names": ["dog", "cat"]}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=2)
    return out.getvalue()


@pytest.fixture
def hub():
    """A hub with one data set; yields its address and what it was asked for."""
    files = {"data/train-0.parquet": parquet(0, 4), "data/test-0.parquet": parquet(4, 2), "README.md": b"#"}
    asked = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, content, status=200, **headers):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(data), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            entries = [
                {"type": "file", "path": f, "size": len(data), "oid": "0" * 40} for f, data in files.items()
            ]
            if path.startswith("/api/datasets/owner/name/paths-info/"):
                paths = json.loads(body)["paths"]
                self.reply([entry for entry in entries if entry["path"] in paths])
            elif path.startswith("/api/datasets/owner/name/tree/"):
                self.reply(entries)
            elif re.fullmatch(r"/api/datasets/owner/name(/revision/.*)?", path):
                siblings = [{"rfilename": name} for name in files]
                self.reply({"id": "owner/name", "sha": COMMIT, "siblings": siblings, "private": False})
            elif match := re.fullmatch(rf"/datasets/owner/name/resolve/{COMMIT}/(.+)", path):
                data, ranged = (
                    files[match[1]],
                    re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")),
                )
                if ranged and self.command == "GET":
                    first, last = int(ranged[1]), min(int(ranged[2] or len(data)), len(data) - 1)
                    where = f"bytes {first}-{last}/{len(data)}"
                    self.reply(data[first : last + 1], 206, Content_Range=where, ETag=f'"{match[1]}"')
                else:
                    self.reply(data, ETag=f'"{match[1]}"')
            else:
                self.reply({"error": "no"}, 404, X_Error_Code="RepoNotFound", X_Error_Message="not found")

        do_HEAD = do_POST = do_GET  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()


PROGRAM = """
import json, sys
from hear_m2d.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(["prepare", *words])
    except SystemExit as stop:
        print("exit code", stop.code, file=sys.stderr)
"""


def test_a_data_set_of_the_hub_is_prepared_and_only_its_files_are_fetched(hub, tmp_path):
    address, asked = hub
    commands = [
        (f"{ADDRESS}:test", "out"),
        (f"{ADDRESS}:gone", "no"),
        ("hf://datasets/owner/other", "no"),
    ]
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    data = LogMelData(tmp_path / "out")
    assert [data.origin(i)[0] for i in range(len(data))] == ["test/0-4.wav", "test/1-5.wav"]
    assert [data.label(i) for i in range(2)] == ["dog", "cat"]
    assert not any("train-0.parquet" in request for request in asked)
    assert re.findall(r"exit code (\d)", done.stderr) == ["0", "2", "2"]
    assert "unknown split 'gone'" in done.stderr
    assert "hf://datasets/owner/other cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_of_another_form_is_refused():
    with pytest.raises(
        InputError, match="is not the address of a data set: expected hf://datasets/owner/name"
    ):
        hub_source("hf://owner/name")


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["data/train-00000-of-2.parquet", "data/test-0.parquet"], {"train": 1, "test": 1}),
        (["train/0.parquet", "train/1.parquet", "dev/0.parquet"], {"train": 2, "validation": 1}),
        (["a.parquet", "b.parquet"], {"train": 2}),
        (["en/partial-train/0.parquet"], {"train": 1}),
    ],
)
def test_without_a_card_the_names_of_files_and_folders_are_the_splits(files, splits):
    chosen = choose_splits([], files, None, None, ADDRESS)
    assert {split: len(names) for split, names in chosen.items()} == splits


def test_the_card_of_a_data_set_names_configurations_and_files():
    files = ["x/1.parquet", "x/2.parquet", "y/a/1.parquet", "z/test.parquet"]
    configs = [
        {
            "config_name": "x",
            "data_files": [{"split": "one", "path": "x/1*"}, {"split": "two", "path": ["x/2*"]}],
        },
        {"config_name": "y", "data_files": "y/**"},
        {"config_name": "z", "data_dir": "z"},
    ]
    assert choose_splits(configs, files, "x", None, ADDRESS) == {
        "one": ["x/1.parquet"],
        "two": ["x/2.parquet"],
    }
    assert choose_splits(configs, files, "x", "two", ADDRESS) == {"two": ["x/2.parquet"]}
    assert choose_splits(configs, files, "y", None, ADDRESS) == {"train": ["y/a/1.parquet"]}
    assert choose_splits(configs, files, "z", None, ADDRESS) == {"test": ["z/test.parquet"]}
    with pytest.raises(InputError, match=r"has several configurations: x, y, z\. Add one"):
        choose_splits(configs, files, None, None, ADDRESS)
    with pytest.raises(InputError, match="unknown configuration 'w'"):
        choose_splits(configs, files, "w", None, ADDRESS)
