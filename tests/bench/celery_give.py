"""celery_give.py KIND COUNT: gives the worker so many tasks and prints how long they took, as JSON.

The clock runs from before the first is published until the last result is in the database, by the time that is
stored with it. Images that the tasks made are removed afterwards.
"""

import datetime
import json
import os
import sqlite3
import sys
import time

import docker
from celery_tasks import app, noop, step

# A machine whose cores are busy finishes ten tasks a second.
PATIENCE_SECONDS = 180
# The database is looked at through the file itself: less work for the other side than Celery's own way.
LOOK_SECONDS = 0.05


def published(kind, count):
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            if kind == "noop":
                yield noop.apply_async(producer=producer).id
            else:
                yield step.apply_async((number,), producer=producer).id


def newest(database):
    """The number of the last result; 0 while there is none."""
    try:
        return database.execute("SELECT coalesce(max(id), 0) FROM celery_taskmeta").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # the first result makes the table


def finished(database, before, count):
    """When the last of so many results behind number `before` was stored, once all are."""
    until = time.monotonic() + PATIENCE_SECONDS
    # Numbers have no holes: results are inserted once and never removed.
    while newest(database) < before + count:
        if time.monotonic() > until:
            sys.exit("the tasks do not end")
        time.sleep(LOOK_SECONDS)
    query = "SELECT status, date_done, traceback FROM celery_taskmeta WHERE id > ?"
    rows = database.execute(query, (before,)).fetchall()
    failed = [row for row in rows if row[0] != "SUCCESS"]
    if failed:
        sys.exit(f"{len(failed)} tasks failed, one of them with {failed[0]}")
    return max(datetime.datetime.fromisoformat(row[1]) for row in rows)


def main():
    kind, count = sys.argv[1], int(sys.argv[2])
    path = os.environ["BENCH_RESULTS"]
    database = sqlite3.connect(f"file:{path}?mode=rwc", uri=True, timeout=60)
    before = newest(database)
    began = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    ids = list(published(kind, count))
    ended = finished(database, before, count)
    if kind == "step":
        client = docker.from_env()
        for task in ids:
            client.images.remove(app.AsyncResult(task).get(), force=True)
    print(json.dumps({"seconds": (ended - began).total_seconds()}))


if __name__ == "__main__":
    main()
