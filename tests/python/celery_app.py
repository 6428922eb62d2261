"""An application of real Celery, whose worker runs the tasks of the tests."""

import os

from celery import Celery
from redis import Redis

URL = os.environ["CELERY_TEST_URL"]

app = Celery("celery_app", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 3600},
    task_track_started=True,
    worker_prefetch_multiplier=1,
    worker_send_task_events=False,
    result_expires=3600,
)


def redis():
    return Redis.from_url(URL, decode_responses=True)


def gate(name):
    """Waits until the test opens it."""
    assert redis().blpop(f"gate.{name}", timeout=60)


@app.task(name="t.add")
def add(x, y=0):
    return x + y


@app.task(name="t.echo")
def echo(*args, **kwargs):
    return {"args": args, "kwargs": kwargs}


@app.task(name="t.fail")
def fail(text):
    raise ValueError(text, 7)


class Odd(Exception):
    """Of a module that nobody else has."""


@app.task(name="t.odd")
def odd():
    raise Odd("odd")


@app.task(name="t.stubborn", bind=True, max_retries=5)
def stubborn(self, failures):
    if self.request.retries < failures:
        raise self.retry(exc=RuntimeError(f"attempt {self.request.retries}"), countdown=0.05)
    return self.request.retries


@app.task(name="t.hopeless", bind=True, max_retries=1)
def hopeless(self):
    raise self.retry(exc=RuntimeError("hopeless"), countdown=0.05)


@app.task(name="t.gated")
def gated(name):
    gate(name)
    return name


@app.task(name="t.progress", bind=True)
def progress(self, name, steps):
    gate(name)
    for step in range(1, steps + 1):
        self.update_state(state="PROGRESS", meta={"percent": step * 100 // steps})
    return "done"


@app.task(name="t.note", bind=True)
def note(self, text):
    """Leaves a trace, one for each run."""
    redis().rpush("notes", text)
    return text


@app.task(name="t.nap")
def nap(seconds):
    import time

    time.sleep(seconds)
    return seconds


@app.task(name="t.when")
def when():
    import time

    return time.time()


@app.task(name="t.about", bind=True)
def about(self):
    request = self.request
    return {
        "id": request.id, "correlation_id": request.correlation_id, "root_id": request.root_id,
        "parent_id": request.parent_id, "origin": request.origin, "timelimit": request.timelimit,
        "priority": request.delivery_info["priority"], "queue": request.delivery_info["routing_key"],
    }
