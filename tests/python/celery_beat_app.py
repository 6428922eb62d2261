"""An application whose `celery beat` sends to our worker: each second, or (CELERY_BEAT=crontab) at the full minute by a
clock that is set so that one comes two seconds after the start."""

import os
from datetime import timedelta

from celery.schedules import crontab
from celery_feed import app

START = app.now()
AHEAD = timedelta(seconds=58 - START.second) - timedelta(microseconds=START.microsecond)


def soon():
    return app.now() + AHEAD


# One of them alone: beat sorts its entries by their clocks.
NAME = os.environ.get("CELERY_BEAT", "interval")
SCHEDULES = {"interval": 1.0, "crontab": crontab(nowfun=soon)}
app.conf.beat_schedule = {NAME: {"task": "tick", "schedule": SCHEDULES[NAME], "args": (NAME,)}}
