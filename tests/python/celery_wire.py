"""What real Celery puts into Redis and what it reads there.

`celery_wire.py URL record` sends tasks with many options and stores results in every state, and prints what then lies in
Redis, one JSON object a line. `celery_wire.py URL read ID…` prints what Celery makes of stored results.
`celery_wire.py URL take QUEUE N` takes messages as a consumer of kombu and prints what it makes of them.
"""

import json
import sys
from datetime import datetime, timezone

from celery import Celery
from celery.backends.base import Backend
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from billiard.einfo import ExceptionInfo

# Each call's options as `apply_async` takes them.
CALLS = [
    {},
    {"args": [1, "it's", None, True, 2.5, [1, [2, [3, [4]]]]]},
    {"args": ["one"], "kwargs": {"name": "ü", "deep": {"er": [1, {"x": {"y": 1}}]}}},
    {"queue": "other"},
    {"countdown": 10},
    {"eta": "2030-01-02T03:04:05.678900+00:00"},
    {"expires": 60},
    {"expires": "2030-01-02T03:04:05+00:00", "countdown": 1.5},
    {"priority": 5},
    {"priority": 9, "queue": "other"},
    {"compression": "gzip", "args": ["x" * 900]},
    {"compression": "zlib", "args": [1]},
    {"time_limit": 30, "soft_time_limit": 2.5},
    {"ignore_result": True},
    {"headers": {"mine": {"a": 1}}},
    {"parent_id": "the-parent", "root_id": "the-root"},
    {"retries": 2},
    {"argsrepr": "(hidden)", "kwargsrepr": "{hidden}"},
    {"correlation_id": "mine"},
    {"link": True},
    {"typed": True},
]


class Broken(Exception):
    """An exception of a module that nobody else has."""


def app_at(url):
    app = Celery("wire", broker=url, backend=url)
    app.conf.update(broker_connection_retry_on_startup=True)
    return app


def lists(client):
    """Each list of a queue with its messages, emptied."""
    for key in sorted(client.scan_iter(_type="list")):
        while (raw := client.rpop(key)) is not None:
            yield key.decode(), raw.decode()


def record_messages(app):
    client = app.backend.client
    for options in CALLS:
        call = dict(options)
        args, kwargs = tuple(call.pop("args", ())), call.pop("kwargs", None)
        for moment in ("eta", "expires"):
            if isinstance(call.get(moment), str):
                call[moment] = datetime.fromisoformat(call[moment])
        if call.pop("link", None):
            call["link"] = app.signature("t.next", args=(5,))
        if call.pop("typed", None):
            args = (datetime(2026, 11, 21, 12, tzinfo=timezone.utc), b"\xff", 0.5)
        result = app.send_task("t.add", args=args, kwargs=kwargs, **call)
        ((key, raw),) = lists(client)
        yield {"what": "message", "options": options, "id": result.id, "key": key, "raw": raw}


def failed(exc):
    try:
        raise exc
    except Exception:
        return ExceptionInfo()


def record_metas(app):
    backend, client = app.backend, app.backend.client
    info = failed(ValueError("no", 3))
    # The same on every machine.
    stack = info.traceback.replace(__file__, "celery_wire.py")
    stores = [
        ("STARTED", lambda id: backend.mark_as_started(id, pid=7, hostname="w@h")),
        ("PROGRESS", lambda id: backend.store_result(id, {"percent": 5}, "PROGRESS")),
        ("SUCCESS", lambda id: backend.mark_as_done(id, {"a": [1, None]})),
        ("SUCCESS", lambda id: backend.mark_as_done(id, None)),
        ("FAILURE", lambda id: backend.mark_as_failure(id, ValueError("no", 3), traceback=stack)),
        ("FAILURE", lambda id: backend.mark_as_failure(id, Broken(object()))),
        ("FAILURE", lambda id: backend.mark_as_failure(id, KeyError("k"))),
        ("RETRY", lambda id: backend.mark_as_retry(id, ValueError("again"), traceback=stack)),
        ("REVOKED", lambda id: backend.mark_as_revoked(id, "expired")),
        ("COOKING", lambda id: backend.store_result(id, 1, "COOKING")),
    ]
    for packed in (None, "gzip"):
        backend.compression = packed
        for number, (state, store) in enumerate(stores):
            id = f"meta-{packed}-{number}"
            store(id)
            raw = client.get(f"celery-task-meta-{id}")
            yield {"what": "meta", "id": id, "state": state, "hex": raw.hex()}


def read(app, ids):
    for id in ids:
        result = AsyncResult(id, app=app)
        meta = result._get_task_meta()
        value = meta["result"]
        if isinstance(value, BaseException):
            value = {"type": type(value).__qualname__, "module": type(value).__module__, "str": str(value)}
        done = result.date_done
        yield {
            "id": id, "state": result.state, "value": value, "traceback": result.traceback,
            "date_done": done.isoformat() if done else None, "ready": result.ready(), "parent": meta.get("parent_id"),
        }


def take(app, queue, number):
    """Through kombu's consumer and Celery's request, the way of a worker."""
    from celery.worker.request import Request

    @app.task(name="t.add")
    def add(*args, **kwargs):
        pass

    with app.connection_for_read() as connection:
        channel = connection.default_channel
        for _ in range(number):
            message = channel.basic_get(queue)
            message.ack()
            request = Request(message, app=app, hostname="w@h")
            yield {
                "id": request.id, "task": request.name, "args": request.args, "kwargs": request.kwargs,
                "eta": request.eta and request.eta.isoformat(), "expires": request.expires and request.expires.isoformat(),
                "limits": request.time_limits, "root": request.root_id, "parent": request.parent_id,
                "argsrepr": request.argsrepr, "kwargsrepr": request.kwargsrepr, "info": request.delivery_info,
                "correlation_id": request.correlation_id, "ignore_result": request.ignore_result,
                "headers": {k: v for k, v in message.headers.items() if k == "mine"},
            }


def main(url, what, *rest):
    app = app_at(url)
    assert isinstance(app.backend, Backend) and TaskRevokedError
    if what == "record":
        lines = [*record_messages(app), *record_metas(app)]
    elif what == "read":
        lines = read(app, rest)
    else:
        lines = take(app, rest[0], int(rest[1]))
    for line in lines:
        print(json.dumps(line))


main(*sys.argv[1:])
