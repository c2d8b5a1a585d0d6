"""A producer as others would write it: jobs on NATS in both modes of CloudEvents, answers in a reply
inbox, outcomes from the events of its tenant. Prints what it saw as one JSON object.

    nats_producer.py URL
"""

import asyncio
import json
import sys

import nats

SUBJECT = "cellbus.jobs.acme"
PROVISION = {"name": "py", "vcpus": 1, "memory_mib": 256, "disk_gib": 1, "image": "debian-12"}


def event(number, data=PROVISION):
    """A provision job in structured mode."""
    return {
        "specversion": "1.0",
        "id": f"py-{number}",
        "source": "/producers/python",
        "type": "io.cellbus.job.provision.v1",
        "datacontenttype": "application/json",
        "data": data | {"name": f"py-{number}"} if data else data,
    }


async def ask(client, payload, headers=None):
    """Publishes, durably, and waits for the cluster's answer in an inbox of its own."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox, max_msgs=1)
    stored = await client.jetstream().publish(
        SUBJECT, payload, headers={**(headers or {}), "cellbus-reply-to": inbox}
    )
    assert stored.seq > 0
    answer = await answers.next_msg(timeout=60)
    return json.loads(answer.data)


async def main(url):
    client = await nats.connect(url)
    outcomes = await client.subscribe("cellbus.events.acme")

    structured = await ask(client, json.dumps(event(1)).encode())
    attributes = event(2)
    data = attributes.pop("data")
    headers = {f"ce-{name}": value for name, value in attributes.items() if name != "datacontenttype"}
    headers["content-type"] = "application/json"
    binary = await ask(client, json.dumps(data).encode(), headers)
    again = await ask(client, json.dumps(event(1)).encode())
    conflict = await ask(client, json.dumps(event(1, PROVISION | {"vcpus": 2})).encode())
    refused = await ask(client, b"{ this is no JSON")
    typo = await ask(client, json.dumps(event(3, PROVISION | {"vcpu": 2})).encode())

    wanted = {structured["data"]["job_id"], binary["data"]["job_id"]}
    ended = {}
    while wanted - ended.keys():
        outcome = json.loads((await outcomes.next_msg(timeout=60)).data)
        if "succeeded" in outcome["type"] or "failed" in outcome["type"]:
            ended[outcome["data"]["job_id"]] = outcome
    await client.close()
    print(
        json.dumps(
            {
                "structured": structured,
                "binary": binary,
                "again": again,
                "conflict": conflict,
                "refused": refused,
                "typo": typo,
                "outcomes": ended,
            }
        )
    )


asyncio.run(main(sys.argv[1]))
