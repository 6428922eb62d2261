"""A real receiver of Celery's events: each event on a line of stdout, with what Celery's own picture of the cluster has
of its task; before them, how far this zone is behind UTC."""

import json
import os

from celery import Celery
from celery.utils.time import utcoffset

URL = os.environ["CELERY_TEST_URL"]
app = Celery("events", broker=URL, backend=URL)
state = app.events.State()


def show(event):
    raw = dict(event)
    state.event(event)
    task, worker = state.tasks.get(event.get("uuid")), state.workers.get(event["hostname"])
    line = {"event": raw, "state": task and task.state, "name": task and task.name, "alive": bool(worker and worker.alive)}
    print(json.dumps(line), flush=True)


def main():
    print(json.dumps({"utcoffset": utcoffset()}), flush=True)
    with app.connection_for_read() as connection:
        app.events.Receiver(connection, handlers={"*": show}).capture(limit=None, timeout=None, wakeup=True)


main()
