"""Writes the first inputs of each fuzz target into fuzz/corpus: what real peers send, from tests/vectors.

    python3 fuzz/seeds.py
"""

import bz2
import hashlib
import io
import json
import sqlite3
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
VECTORS = HERE.parent / "tests" / "vectors"
DIRECTIONS = [
    "facilitator_to_validator",
    "validator_to_facilitator",
    "validator_to_miner",
    "miner_to_validator",
    "executor_to_miner",
    "miner_to_executor",
]
MOST_BYTES = 3_000


def write(target, content):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


def wire():
    for number, direction in enumerate(DIRECTIONS):
        kinds = {}
        for vector in json.loads((VECTORS / f"messages.{direction}.json").read_text()):
            text = vector["json"]
            if len(text) <= MOST_BYTES:
                kinds.setdefault((vector["type"], vector["name"].split("-")[0][:4]), text)
        for text in list(kinds.values())[:14]:
            write("wire", bytes([number]) + text.encode())


def celery():
    for line in (VECTORS / "celery" / "wire.jsonl").read_text().splitlines():
        kept = json.loads(line)
        if kept["what"] == "message" and len(kept["raw"]) <= MOST_BYTES:
            write("celery_message", kept["raw"].encode())
        elif kept["what"] == "meta":
            write("celery_result", bytes.fromhex(kept["hex"]))


def http():
    for text in [
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /api/v1/job-docker/?tag=a%20b HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 5\r\n"
        "Expect: 100-continue\r\n\r\n{}{}{",
        "POST /auth/login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nOrigin: http://b\r\n\r\n"
        "5;x=y\r\nhello\r\n0\r\n\r\n",
        "GET http://phalanx.example/ws/v0/ HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\n"
        "Upgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        "1f\r\n",
    ]:
        write("http_request", text.encode())
    for text in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 429 Too Many\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        "Retry-After: Sun, 06 Nov 1994 08:50:37 GMT\r\n\r\n",
        "HTTP/1.1 503 x\r\nRetry-After: 1.5\r\nRetry-After: 12\r\n\r\n",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ]:
        write("http_answer", text.encode())


def redis():
    for text in [
        "+OK\r\n:1\r\n$3\r\nabc\r\n",
        "*2\r\n$1\r\na\r\n*1\r\n:-5\r\n",
        "%1\r\n+k\r\n,1.5\r\n~1\r\n#t\r\n",
        ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n_\r\n",
        "-ERR no\r\n!5\r\nERR x\r\n=7\r\ntxt:abc\r\n(123456789012345678901234567890\r\n|1\r\n+a\r\n:1\r\n+b\r\n",
    ]:
        for piece in [1, 7, 255]:
            write("redis_replies", bytes([piece]) + text.encode())


def frame(first, payload, masked=True):
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        length = bytes([bit | len(payload)])
    else:
        length = bytes([bit | 126]) + len(payload).to_bytes(2, "big")
    mask = bytes([1, 2, 3, 4]) if masked else b""
    masking = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload)) if masked else payload
    return bytes([first]) + length + mask + masking


def websocket():
    text, binary, continues, ends, close, ping, pong = 0x81, 0x82, 0x00, 0x80, 0x88, 0x89, 0x8A
    stories = [
        [(text, "κόσμε".encode()), (ping, b"p"), (binary, bytes(126)), (close, b"\x03\xe8bye")],
        [(0x01, b"one "), (ping, b""), (continues, b"mess"), (pong, b"x"), (ends, b"age"), (close, b"")],
        [(0x01, "κ".encode()[:1]), (ends, "κ".encode()[1:]), (text, b"\xed\xa0\x80")],
        [(text, b"a" * 99), (text, b"b" * 300), (0xC1, b"c")],
        [(text, b"a" * 2001)],
        [(close, b"\x03\xed")],
        [(0x01, b"")] + [(continues, b"")] * 40 + [(ends, b"")],
    ]
    for story in stories:
        for kind in [0, 1, 2]:
            sent = b"".join(frame(first, payload, kind != 1) for first, payload in story)
            write("websocket", bytes([kind, 7]) + sent)


def archives():
    for method in [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as archive:
            archive.writestr(zipfile.ZipInfo("a/b.txt"), "text " * 20, method)
            archive.writestr(zipfile.ZipInfo("a/"), "")
            archive.writestr(zipfile.ZipInfo("é\\x/../c"), bz2.compress(b"x"), method)
        write("archive", packed.getvalue())


def journals():
    # Not one of ours: SQLite's own pages, small, in which the fuzzer finds its way.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.db"
        for size in [512, 1024]:
            path.unlink(missing_ok=True)
            database = sqlite3.connect(path)
            database.execute(f"PRAGMA page_size = {size}")
            database.execute("CREATE TABLE frames (key INTEGER PRIMARY KEY, frame BLOB NOT NULL)")
            database.execute("INSERT INTO frames VALUES (1, x'00112233')")
            database.commit()
            database.close()
            content = path.read_bytes()
            write("journal", len(content).to_bytes(2, "big") + content)


if __name__ == "__main__":
    wire()
    celery()
    http()
    redis()
    websocket()
    archives()
    journals()
