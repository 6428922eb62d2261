"""A real Celery producer and inspector: a request of JSON on each line of stdin, its answer on a line of stdout.

Also the Celery app of the real worker beside ours: `celery -A celery_feed worker`, with CELERY_TEST_URL in the environment.
"""

import json
import os
import sys
import tempfile
import time
import urllib.request
import uuid
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from celery import Celery, chain, chord, chunks, group
from celery.canvas import xmap, xstarmap
from celery.exceptions import TimeoutError as NotYet
from kombu import Connection
from kombu.exceptions import OperationalError

URL = os.environ["CELERY_TEST_URL"]
SETTINGS = json.loads(os.environ.get("CELERY_TEST_SETTINGS", "{}"))
app = Celery("feed", broker=URL, backend=SETTINGS.pop("result_backend", URL))
app.conf.broker_transport_options = {
    "visibility_timeout": float(os.environ.get("CELERY_VISIBILITY", "3600")),
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    **SETTINGS.pop("broker_transport_options", {}),
}
app.conf.update(SETTINGS)
app.conf.result_extended = False
app.conf.broker_connection_retry_on_startup = True
# Tests restart Redis while it sends.
app.conf.task_publish_retry_policy = {
    "max_retries": 1000, "interval_start": 0, "interval_step": 0.02, "interval_max": 0.2,
}


@app.task(name="noop")
def noop(*args, **kwargs):
    return None


@app.task(name="record", bind=True, acks_late=True)
def record(self, path, seconds=0, ignores_stop=False):
    redelivered = bool(self.request.delivery_info.get("redelivered"))
    with open(path, "a") as file:
        for what in ("begin", "end"):
            line = {"what": what, "id": self.request.id, "redelivered": redelivered, "pid": os.getpid()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            if what == "begin" and not redelivered:
                time.sleep(seconds)
    return redelivered


@app.task(name="python_add")
def python_add(x, y):
    return x + y


@app.task(name="python_sum")
def python_sum(values):
    return sum(python_sum(value) if isinstance(value, list) else value for value in values)


@app.task(name="python_fail")
def python_fail(*args):
    raise ValueError("of Python")


@app.task(name="python_note")
def python_note(first, second):
    app.backend.client.rpush("notes", json.dumps([first, second]))


@app.task(name="python_spread", bind=True)
def python_spread(self, x):
    queue = self.request.delivery_info["routing_key"]
    return self.replace(group(python_add.s(x, y).set(queue=queue) for y in (1, 2)))


@app.task(name="python_about", bind=True)
def python_about(self, *args):
    request = self.request
    return {"id": request.id, "root": request.root_id, "parent": request.parent_id, "stamps": request.stamps}


def signature(spec):
    options = dict(spec.get("options", {}))
    for key in ("link", "link_error"):
        if key in options:
            options[key] = [canvas(one) for one in options[key]]
    made = app.signature(spec["task"], args=spec.get("args", ()), kwargs=spec.get("kwargs", {}),
                         immutable=spec.get("immutable", False))
    made.options.update({k: v for k, v in options.items() if k not in ("link", "link_error")})
    for one in options.get("link", []):
        made.link(one)
    for one in options.get("link_error", []):
        made.link_error(one)
    return made


def described(error):
    kind = type(error)
    return {"type": kind.__name__, "module": kind.__module__, "args": [str(arg) for arg in error.args]}


def shown(result):
    # In one look, so that both are of the same moment.
    meta = result.backend.get_task_meta(result.id)
    value = meta["result"]
    if isinstance(value, BaseException):
        value = described(value)
    return {"state": meta["status"], "result": value, "children": [child.id for child in result.children or []]}


def send(request):
    return {"id": signature(request).apply_async().id}


def canvas(spec):
    """A signature, or a canvas as `{"chord": [header, body]}`, with `link`, `link_error` and `stamps`."""
    if "task" in spec:
        made = signature(spec)
    else:
        kind = next(kind for kind in ("chain", "group", "chord", "map", "starmap", "chunks") if kind in spec)
        first, rest = spec[kind][0] if spec[kind] else None, spec[kind][1:]
        if kind == "chain":
            made = chain(*[canvas(one) for one in spec[kind]])
        elif kind == "group":
            made = group(*[canvas(one) for one in spec[kind]])
        elif kind == "chord":
            made = chord([canvas(one) for one in first], canvas(rest[0]))
        else:
            made = {"map": xmap, "starmap": xstarmap, "chunks": chunks}[kind](app.signature(first), *rest, app=app)
        for one in spec.get("link", []):
            made.link(canvas(one))
        for one in spec.get("link_error", []):
            made.link_error(canvas(one))
    if "stamps" in spec:
        made.stamp(**spec["stamps"])
    return made


def run_canvas(request):
    """What a caller has of it: its value, or what is raised."""
    result, raised, value = canvas(request["canvas"]).apply_async(), None, None
    # Else what is raised is that of the part.
    result.parent = None
    try:
        value = result.get(timeout=request.get("timeout", 30))
    except Exception as error:  # Whatever a task has failed with.
        raised = described(error)
    return {"id": result.id, "value": value, "raised": raised}


def restore(request):
    """A group that was saved, and one that is saved for others."""
    saved = group(canvas(one) for one in request["group"]).apply_async()
    saved.get(timeout=30)
    saved.save()
    restored = app.GroupResult.restore(request["id"])
    return {"id": saved.id, "restored": restored and restored.get(timeout=30)}


def send_many(request):
    ids = []
    for spec in request["specs"]:
        made, id_ = signature(spec), str(uuid.uuid4())
        while True:
            try:
                ids.append(made.apply_async(task_id=id_).id)
                break
            except (OperationalError, AttributeError):
                # A Redis that is full, or lacks a replica, says so at once, and nobody but the caller repeats it. The next
                # attempts find kombu without its channel.
                time.sleep(0.05)
    return {"ids": ids}


def send_chain(request):
    result = chain(*[signature(spec) for spec in request["specs"]]).apply_async()
    ids = []
    while result is not None:
        ids.append(result.id)
        result = result.parent
    return {"ids": ids[::-1]}


def wait(request):
    """What a caller of `get` has of it: its value, or what is raised."""
    result, raised = app.AsyncResult(request["id"]), None
    try:
        result.get(timeout=request.get("timeout", 30))
    except NotYet:
        return dict(shown(result), late=True)
    except Exception as error:  # Whatever the task has failed with.
        raised = described(error)
    return dict(shown(result), raised=raised, traceback=result.traceback)


def watch(request):
    """As `wait`, with the states that were seen on the way."""
    states = []
    app.AsyncResult(request["id"]).get(timeout=30, propagate=False, on_message=lambda meta: states.append(meta["status"]))
    return dict(wait(request), states=states)


def wait_many(request):
    deadline = time.monotonic() + request.get("timeout", 60)
    states = {}
    for id_ in request["ids"]:
        result = app.AsyncResult(id_)
        try:
            result.get(timeout=max(0.01, deadline - time.monotonic()), propagate=False, interval=0.05)
        except NotYet:
            pass
        states[result.state] = states.get(result.state, 0) + 1
    return {"states": states}


def state(request):
    return shown(app.AsyncResult(request["id"]))


def extended(request):
    """What the result says beside what came of the task."""
    result = app.AsyncResult(request["id"])
    return {"name": result.name, "args": result.args, "kwargs": result.kwargs, "worker": result.worker,
            "retries": result.retries, "queue": result.queue}


def revoke(request):
    app.control.revoke(request["ids"], terminate=request.get("terminate", False))
    return {}


def inspect(request):
    inspector = app.control.inspect(timeout=request.get("timeout", 20), destination=request["destination"])
    return {"answer": getattr(inspector, request["method"])(*request.get("args", []))}


def broadcast(request):
    answer = app.control.broadcast(request["method"], arguments=request.get("arguments"), reply=True, timeout=20,
                                   destination=request.get("destination"), limit=request.get("limit"),
                                   pattern=request.get("pattern"), matcher=request.get("matcher"))
    return {"answer": answer}


def commands(request):
    """All that a worker of Celery answers."""
    from celery.worker.control import Panel

    return {"answer": sorted(Panel.meta)}


def ping(request):
    return {"answer": app.control.ping(timeout=20, destination=request["destination"])}


def raw(request):
    with Connection(URL) as connection:
        connection.default_channel.client.lpush(request["queue"], request["text"])
    return {}


def body(request):
    """A task message whose body is whatever was asked for."""
    with Connection(URL) as connection:
        producer = connection.Producer()
        producer.publish(request["body"], exchange="", routing_key=request.get("queue", "celery"),
                         headers={"lang": "py", "task": request.get("task", "noop"), "id": request["id"]},
                         content_type=request.get("content_type", "application/json"), content_encoding="utf-8",
                         correlation_id=request["id"])
    return {}


def fetch(request):
    """JSON over HTTP; null as long as nobody answers."""
    try:
        with urllib.request.urlopen(request["url"], timeout=20) as answer:
            return {"answer": json.load(answer)}
    except OSError:
        return {"answer": None}


def send_naive(request):
    """A task for a time without an offset, by the clock on the wall of that zone."""
    at = datetime.now(ZoneInfo(request["zone"])) + timedelta(seconds=request["seconds"])
    return {"id": app.send_task(request["task"], eta=at.replace(tzinfo=None)).id}


def odd(request):
    """Values that `json` writes although they are not JSON."""
    deep = []
    for _ in range(request.get("levels", 1)):
        deep = [deep]
    file = os.fsdecode(b"caf\xe9")
    inf = float("inf")
    return {"inf": inf, "nan": float("nan"), "file": file, "deep": deep, "all": [inf, -inf, float("nan"), file + "\\", deep,
                                                                                {file: 2 ** 70}]}


def odd_echo(request):
    """Whether `echo`, and a callback after it, give such values back as they were."""
    values = odd(request)["all"]
    callback = app.signature("echo", kwargs={"more": values})
    sent = app.send_task("echo", args=[values], kwargs={"named": values}, headers={"odd": values[:4]}, link=[callback])
    first = sent.get(timeout=30)
    after = sent.children[0].get(timeout=30)
    wanted = [[values], {"named": values}]
    same = [repr(first) == repr(wanted), repr(after) == repr([[wanted], {"more": values}])]
    return {"same": same == [True, True], "shown": repr([first, after])[-500:]}


def odd_call(request):
    result, raised = app.send_task(request["task"], args=[odd(request)[request["what"]]]), None
    try:
        value = result.get(timeout=30)
    except Exception as error:  # Whatever the task has failed with.
        value, raised = None, described(error)
    return {"shown": repr(value), "result": value if isinstance(value, (bool, int)) else None, "raised": raised}


def send_signed(request):
    """A task of an application that signs its messages, with the key and the certificate that this takes."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from kombu.serialization import dumps

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "feed")])
    now = datetime.now()
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=2)).not_valid_after(now + timedelta(days=2))
    made = made.sign(key, hashes.SHA256())
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "key.pem": key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                                         serialization.NoEncryption()),
            "cert.pem": made.public_bytes(serialization.Encoding.PEM),
        }
        for file, content in files.items():
            with open(os.path.join(folder, file), "wb") as written:
                written.write(content)
        signing = Celery("signing", broker=URL, backend=URL)
        signing.conf.update(
            security_key=os.path.join(folder, "key.pem"), security_certificate=os.path.join(folder, "cert.pem"),
            security_cert_store=os.path.join(folder, "cert.pem"), security_digest="sha256",
            task_serializer="auth", event_serializer="auth", accept_content=["auth"], result_serializer="json",
            result_accept_content=["json"],
        )
        signing.setup_security(allowed_serializers=["json"])
        sent, raised = signing.send_task(request["task"], args=request["args"]), None
        try:
            sent.get(timeout=30)
        except Exception as error:  # Whatever the task has failed with.
            raised = described(error)
    return {"content_type": dumps([], serializer="auth")[0], "state": sent.state, "result": raised}


def main():
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = globals()[request.pop("do")](request)
        except Exception as error:  # The test says what was wrong.
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
