"""A tenant's producer on the servers of ops/deploy/nats, over TLS and with its own inboxes; and what
it tries beyond that. The password comes in PASSWORD. Prints what it saw as one JSON object.

    nats_tenant.py URLS CA USER readers TENANT...   as an operator: a consumer for each tenant's events
    nats_tenant.py URLS CA USER written SUBJECT...  as an operator: which of these subjects hold a message
    nats_tenant.py URLS CA USER limits STREAM...    as an operator: how much they may hold, how often
    nats_tenant.py URLS CA USER job NAME            a job: its answer, its outcome as told and as kept
    nats_tenant.py URLS CA USER misuse SUBJECT      a message whose acknowledgement is to go there
    nats_tenant.py URLS CA USER try WHAT...         pub:SUBJECT or sub:SUBJECT; which of them are refused
"""

import asyncio
import json
import os
import ssl
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

EVENTS = "cellbus_events"


def event(name):
    data = {"name": name, "vcpus": 1, "memory_mib": 256, "disk_gib": 1, "image": "debian-12"}
    return {
        "specversion": "1.0",
        "id": name,
        "source": "/producers/python",
        "type": "io.cellbus.job.provision.v1",
        "datacontenttype": "application/json",
        "data": data,
    }


async def publish(client, user, payload):
    """Publishes until a server has stored it, as a producer does that loses its server meanwhile; the same
    event again is the same job. Gives the cluster's answer, from an inbox of the tenant's own."""
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    for _ in range(60):
        try:
            await client.jetstream().publish(
                f"cellbus.jobs.{user}", payload, timeout=5, headers={"cellbus-reply-to": inbox}
            )
            return json.loads((await answers.next_msg(timeout=10)).data)
        except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError) as error:
            print(f"again: {error!r}", file=sys.stderr)
            await asyncio.sleep(0.5)
    raise SystemExit("no answer")


def ended(message, job):
    outcome = json.loads(message.data)
    return outcome if outcome["data"]["job_id"] == job and "accepted" not in outcome["type"] else None


async def job(client, user, name):
    told = await client.subscribe(f"cellbus.events.{user}")
    answer = await publish(client, user, json.dumps(event(name)).encode())
    number = answer["data"]["job_id"]
    seen = {"answer": answer, "told": None, "kept": None}
    while not seen["told"]:
        seen["told"] = ended(await told.next_msg(timeout=60), number)
    reader = await client.jetstream().pull_subscribe_bind(consumer=user, stream=EVENTS)
    for _ in range(60):
        try:
            for message in await reader.fetch(10, timeout=3):
                await message.ack()
                seen["kept"] = seen["kept"] or ended(message, number)
        except (nats.errors.Error, nats.js.errors.Error, asyncio.TimeoutError) as error:
            # While a leader is elected the servers say at once that there is none.
            print(f"again: {error!r}", file=sys.stderr)
            await asyncio.sleep(0.5)
        if seen["kept"]:
            return seen
    raise SystemExit("its outcome was told and is not kept")


async def readers(client, tenants):
    for tenant in tenants:
        await client.jetstream().add_consumer(
            EVENTS,
            ConsumerConfig(
                durable_name=tenant, filter_subject=f"cellbus.events.{tenant}", ack_policy=AckPolicy.EXPLICIT
            ),
        )
    return {"made": tenants}


async def written(client, subjects):
    found = []
    for subject in subjects:
        try:
            stream = await client.jetstream().find_stream_name_by_subject(subject)
            await client.jetstream().get_last_msg(stream, subject)
            found.append(subject)
        except NotFoundError:
            pass
    return {"written": found}


async def limits(client, streams):
    configs = [(await client.jetstream().stream_info(stream)).config for stream in streams]
    return [[config.max_bytes, config.num_replicas] for config in configs]


async def misuse(client, user, subject):
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox)
    headers = {"cellbus-reply-to": inbox}
    await client.publish(f"cellbus.jobs.{user}", b"{}", reply=subject, headers=headers)
    return {"answer": json.loads((await answers.next_msg(timeout=60)).data)}


async def attempt(client, errors, what):
    """What the server says about each of these."""
    for entry in what:
        kind, subject = entry.split(":", 1)
        if kind == "pub":
            await client.publish(subject, b"{}", reply=client.new_inbox())
        else:
            await client.subscribe(subject)
        await client.flush(timeout=30)
    # The server answers in order, but this client tells of errors a little later than of answers.
    for _ in range(3):
        await client.flush(timeout=30)

    def refused(entry):
        kind, subject = entry.lower().split(":", 1)
        word = "publish" if kind == "pub" else "subscription"
        return any(f'permissions violation for {word} to "{subject}"' in text for text in errors)

    return {entry: "refused" if refused(entry) else "let through" for entry in what}


async def main(urls, ca, user, what, *more):
    errors = []

    async def on_error(error):
        errors.append(str(error).lower())

    client = await nats.connect(
        urls.split(","),
        user=user,
        password=os.environ["PASSWORD"],
        tls=ssl.create_default_context(cafile=ca),
        inbox_prefix=f"_INBOX_{user}" if what in ("job", "misuse", "try") else "_INBOX",
        error_cb=on_error,
        allow_reconnect=what == "job",
        connect_timeout=10,
        max_reconnect_attempts=100,
    )
    if what == "readers":
        seen = await readers(client, more)
    elif what == "written":
        seen = await written(client, more)
    elif what == "limits":
        seen = await limits(client, more)
    elif what == "misuse":
        seen = await misuse(client, user, *more)
    elif what == "job":
        seen = await job(client, user, *more)
    else:
        seen = await attempt(client, errors, more)
    await client.close()
    print(json.dumps(seen))


asyncio.run(main(*sys.argv[1:]))
