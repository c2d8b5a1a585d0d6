"""A producer as others would write it: jobs on Kafka in both modes of CloudEvents, outcomes from the topic
of events of its tenant. Prints what it saw as one JSON object.

    kafka_producer.py BROKERS
"""

import json
import sys
import time

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

PROVISION = {"name": "py", "vcpus": 1, "memory_mib": 256, "disk_gib": 1, "image": "debian-12"}
STRUCTURED = [("content-type", b"application/cloudevents+json")]


def event(number, data=PROVISION):
    """A provision job in structured mode."""
    return {
        "specversion": "1.0",
        "id": f"py-{number}",
        "source": "/producers/python",
        "type": "io.cellbus.job.provision.v1",
        "datacontenttype": "application/json",
        "data": data | {"name": f"py-{number}"},
    }


class Tenant:
    """Jobs and events of one tenant, whose topics it makes."""

    def __init__(self, brokers, name):
        topics = [f"cellbus.jobs.{name}", f"cellbus.events.{name}"]
        admin = AdminClient({"bootstrap.servers": brokers})
        made = admin.create_topics([NewTopic(topic, 2 if "jobs" in topic else 1, 1) for topic in topics])
        for topic in made.values():
            topic.result(timeout=30)
        self.topic = topics[0]
        self.producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "compression.type": "zstd"})
        self.consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": f"{name}-outcomes",
                "auto.offset.reset": "earliest",
            }
        )
        self.consumer.subscribe([topics[1]])

    def send(self, payload, headers):
        """Durable on return."""
        failed = []
        self.producer.produce(
            self.topic, payload, headers=headers, on_delivery=lambda error, _: failed.append(error)
        )
        assert self.producer.flush(60) == 0 and failed == [None], failed

    def events(self, wanted, limit=90):
        """Waits for so many outcomes; gives all events, as they came."""
        seen, ended, until = [], set(), time.monotonic() + limit
        while len(ended) < wanted:
            assert time.monotonic() < until, seen
            message = self.consumer.poll(1)
            if message is None or message.error():
                continue
            headers = dict(message.headers())
            assert headers["content-type"] == b"application/cloudevents+json", headers
            event = json.loads(message.value())
            assert headers["cellbus-event-id"].decode() == event["id"], (headers, event)
            seen.append(event)
            if event["type"].split(".")[3] in ("succeeded", "failed", "cancelled"):
                ended.add(event["data"]["job_id"])
        return seen


def main(brokers):
    acme = Tenant(brokers, "acme")
    acme.send(json.dumps(event(1)), STRUCTURED)
    attributes = event(2, PROVISION | {"labels": {"stadt": "Köln"}})
    data = attributes.pop("data")
    headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items() if name != "datacontenttype"]
    acme.send(json.dumps(data), [*headers, ("content-type", b"application/json")])
    acme.send(json.dumps(event(1)), STRUCTURED)
    acme.send(b"{ this is no JSON", STRUCTURED)
    acme.send(json.dumps(event(3, PROVISION | {"vcpu": 2})), STRUCTURED)
    seen = acme.events(2)

    # A tenant that comes while the cells run.
    globex = Tenant(brokers, "globex")
    began = time.monotonic()
    globex.send(json.dumps(event(1)), STRUCTURED)
    late = globex.events(1)
    took = time.monotonic() - began
    print(json.dumps({"acme": seen, "globex": late, "found_after_seconds": took}))


main(sys.argv[1])
