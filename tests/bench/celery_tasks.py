"""The Celery side of the benchmark: the same promises as Longshore's, and the same calls.

A task is lost by no crash of a worker or broker: the queue is durable, messages are persistent and their publishing
is confirmed, a task is acknowledged after its result is on disk.
"""

import os

import docker
from celery import Celery, Task
from sqlalchemy import event
from sqlalchemy.engine import Engine

app = Celery(
    "bench",
    broker=os.environ["BENCH_AMQP"],
    backend="db+sqlite:///" + os.environ["BENCH_RESULTS"],
)
app.conf.update(
    task_default_queue=os.environ["BENCH_QUEUE"],
    task_default_delivery_mode="persistent",
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=False,
    task_track_started=False,
    worker_send_task_events=False,
    task_send_sent_event=False,
    # One connection a process for all of its results; its processes wait for each other's writes.
    database_short_lived_sessions=False,
    database_engine_options={"connect_args": {"timeout": 60}},
)


@event.listens_for(Engine, "connect")
def on_disk(connection, _record):
    """What Longshore's store does too: a log ahead of the file, and on disk when it is committed."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


class WithEngine(Task):
    """Keeps one client a process: its connections are reused."""

    _client = None

    @property
    def client(self):
        if self._client is None:
            self._client = docker.from_env()
        return self._client


@app.task
def noop():
    return None


@app.task(base=WithEngine, bind=True)
def step(self, number):
    """A step with a commit: create, start, wait, logs, commit, remove. Gives the image's id."""
    container = self.client.containers.create(
        os.environ["BENCH_IMAGE"], ["sh", "-c", f"echo {number} > /state"], network_mode="none"
    )
    container.start()
    status = container.wait()["StatusCode"]
    container.logs()
    image = container.commit()
    container.remove()
    if status != 0:
        raise RuntimeError(f"exit {status}")
    return image.id
