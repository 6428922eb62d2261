"""Celery's own integration tests with our worker in place of theirs: a pytest plugin for `make test/celery-upstream`.

Beside a Redis of its own it starts the program in PHALANX_UPSTREAM_WORKER, which has the tasks of the tests. What is
not asked of it, and why, is in docs/celery-matrix.md. The tests themselves, the client and the Python are Celery's.
"""

import contextlib
import importlib
import os
import re
import socket
import subprocess
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
from celery.contrib import pytest as fixtures
from celery.signals import before_task_publish
from celery.utils.nodenames import anon_nodename
from celery.worker import state as worker_state

MATRIX = Path(__file__).parents[2] / "docs/celery-matrix.md"
# A row of the table of what is refused: a file, a class or a test, and why.
ROW = re.compile(r"^\| `(t/integration/[^`]+)` \| (.+) \|$")
# Seconds for one test.
TIME = 300
KINDS = ("passed", "alone", "refused", "skipped", "failed")

asked = Counter()
outcomes = {}


def refusals():
    rows = (ROW.match(line) for line in MATRIX.read_text().splitlines())
    return {row[1]: row[2] for row in rows if row}


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Redis:
    def __init__(self):
        self.port, self.folder = free_port(), tempfile.TemporaryDirectory()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen([*command, "--dir", self.folder.name], stdout=subprocess.DEVNULL)
        url = f"redis://127.0.0.1:{self.port}/0"
        os.environ.update(TEST_BROKER=url, TEST_BACKEND=url, REDIS_HOST="127.0.0.1", REDIS_PORT=str(self.port))

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.folder.cleanup()


class Ends:
    """Some tests look for the tasks that have succeeded in the worker's memory, which is theirs: here they find them
    by the events of ours."""

    def __init__(self, app):
        self.app, self.receiver, self.listens = app, None, threading.Event()
        self.thread = threading.Thread(target=self.run, name="ends")
        self.thread.start()

    def run(self):
        with self.app.connection_for_read() as connection:
            handlers = {"task-succeeded": self.note, "worker-heartbeat": lambda event: self.listens.set()}
            self.receiver = self.app.events.Receiver(connection, handlers=handlers)
            for _ in self.receiver.itercapture(limit=None, timeout=None, wakeup=False):
                pass

    def note(self, event):
        worker_state.successful_requests.add(event["uuid"])

    def stop(self):
        self.receiver.should_stop = True
        self.thread.join(30)


@pytest.fixture(scope="session")
def celery_session_worker(celery_session_app, celery_includes, celery_class_tasks):
    """In place of Celery's fixture of this name, which starts a worker of Celery."""
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for task in celery_class_tasks:
        celery_session_app.register_task(task)
    ends = Ends(celery_session_app)
    # As theirs: one task at a time, acknowledged when it begins, and the results say what they are of.
    settings = '{"task_acks_late": false, "result_extended": true}'
    command = [os.environ["PHALANX_UPSTREAM_WORKER"], "--redis", os.environ["TEST_BROKER"], "--threads", "1",
               "--events", "--name", anon_nodename(), "--settings", settings]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = worker.stdout.readline()
    while line and not line.startswith("ready"):
        line = worker.stdout.readline()
    assert line, "the worker does not start"
    ends.listens.wait(30)
    yield worker
    ends.stop()
    worker.terminate()
    said, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, said


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config):
    # Their conftest takes the fixture and the addresses when it is loaded.
    fixtures.celery_session_worker = celery_session_worker
    redis = Redis()
    early_config.add_cleanup(redis.stop)


def pytest_configure(config):
    before_task_publish.connect(lambda **_: asked.update(["task"]), weak=False)
    from celery.app.control import Control

    broadcast = Control.broadcast

    def counted(self, *args, **kwargs):
        # What a test does after itself is not its question.
        if asked["in test"]:
            asked.update(["control"])
        return broadcast(self, *args, **kwargs)

    Control.broadcast = counted


def why_refused(nodeid, table):
    """The reason for a test, for all or some (`*`) that a function makes of its parameters, for a class, for a file."""
    for row, why in table.items():
        if "*" in row and re.fullmatch(".*".join(map(re.escape, row.split("*"))), nodeid):
            return why
    while nodeid:
        if nodeid in table:
            return table[nodeid]
        nodeid = nodeid[:nodeid.rindex("[")] if nodeid.endswith("]") else nodeid.rpartition("::")[0]
    return None


def pytest_ignore_collect(collection_path, config):
    """A file that is refused as a whole need not be importable: what it would import is not installed."""
    name = f"t/integration/{collection_path.name}"
    why = refusals().get(name)
    if why is None or collection_path.suffix != ".py":
        return None
    try:
        importlib.import_module(f"t.integration.{collection_path.stem}")
    except ImportError:
        for test in re.findall(r"^    def (test_\w+)|^def (test_\w+)", collection_path.read_text(), re.MULTILINE):
            outcomes[f"{name}::{''.join(test)}"] = ("refused", why)
        return True
    return None


def pytest_collection_modifyitems(config, items):
    table, run_all = refusals(), os.environ.get("PHALANX_UPSTREAM_ALL")
    found = [*outcomes, *(item.nodeid for item in items)]
    unknown = [row for row in table if not any(why_refused(nodeid, {row: row}) for nodeid in found)]
    # Somebody may have asked for a few of them.
    all_are_asked_for = config.args[0].endswith("t/integration") and not config.option.keyword
    assert not unknown or not all_are_asked_for, f"{MATRIX.name} refuses what is not there: {unknown}"
    for item in items:
        item.add_marker(pytest.mark.timeout(TIME), append=False)
        why = why_refused(item.nodeid, table)
        if why and not run_all:
            item.add_marker(pytest.mark.skip(reason=f"refused: {why}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    asked.clear()
    asked.update(["in test"])
    try:
        return (yield)
    finally:
        item.asked = bool(asked["task"] + asked["control"])
        asked.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    before = outcomes.get(item.nodeid, ("", ""))
    if report.failed:
        outcomes[item.nodeid] = ("failed", str(report.longrepr).splitlines()[-1] if report.longrepr else "")
    elif report.skipped and before[0] != "failed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
        why = why.removeprefix("Skipped: ")
        outcomes[item.nodeid] = ("refused" if why.startswith("refused: ") else "skipped", why.removeprefix("refused: "))
    # A part of a test reports before its end.
    elif call.when == "call" and before[0] != "failed" and hasattr(item, "asked"):
        outcomes[item.nodeid] = ("passed" if item.asked else "alone", "")
    return report


def pytest_terminal_summary(terminalreporter):
    by_file = {}
    for nodeid, (kind, _) in outcomes.items():
        by_file.setdefault(nodeid.partition("::")[0], Counter()).update([kind])
    write = terminalreporter.write_line
    terminalreporter.section("Celery's integration tests against our worker")
    write(f"{'':44}" + "".join(f"{kind:>9}" for kind in KINDS))
    for name, counts in [*sorted(by_file.items()), ("all", sum(by_file.values(), Counter()))]:
        write(f"{name:44}" + "".join(f"{counts[kind]:9}" for kind in KINDS))
    write("alone: passed without a question to the worker; skipped: by the tests themselves")
    for nodeid, (kind, why) in sorted(outcomes.items()):
        if kind in ("failed", "skipped"):
            write(f"{kind}: {nodeid}: {why[:300]}")
