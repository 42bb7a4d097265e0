"""A device's push client, as somebody writes it who has aiocoap and push's documentation.

    aiocoap_device.py ADDRESS PORT

One socket for everything. Reads requests from stdin and writes what happens to stdout, a line of JSON each:

    <- {"method": "POST", "uri": "coap://10.64.0.1/rd", "query": ["ep=phone"], "body": {"1": "mail"}}
    -> {"answer": {"code": "2.01", "location": ["rd", "ID"], "body": {"1": "ID"}, "challenged": true}}
    -> {"asked": {"method": "DELETE", "path": ["s", "SESSION"], "body": {"1": "revoked"}, "from": "10.64.0.1:5683"}}
"""

import asyncio
import json
import sys

import aiocoap
import cbor2
from aiocoap.numbers.codes import Code
from aiocoap.resource import PathCapable, Resource, Site

CBOR = 60


def say(what, **fields):
    print(json.dumps({what: fields}), flush=True)


def decoded(message):
    """The body, with keys as JSON has them."""
    if message.opt.content_format != CBOR:
        return message.payload.decode() or None
    return {str(key): value for key, value in cbor2.loads(message.payload).items()}


class Asked(Resource, PathCapable):
    """Everything below one segment of the path, so that an identifier may follow."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def tell(self, request):
        say(
            "asked",
            method=str(request.code),
            path=[self.name, *request.opt.uri_path],
            body=decoded(request),
            **{"from": request.remote.hostinfo},
        )

    async def render_post(self, request):
        self.tell(request)
        return aiocoap.Message(code=Code.CHANGED)

    async def render_delete(self, request):
        self.tell(request)
        return aiocoap.Message(code=Code.DELETED)


async def ask(context, order, echo=None):
    message = aiocoap.Message(code=Code[order["method"]], uri=order["uri"])
    message.opt.uri_query = tuple(order.get("query", ()))
    body = order.get("body")
    if body is not None:
        message.opt.content_format = CBOR
        message.payload = cbor2.dumps({int(key): value for key, value in body.items()})
    if echo is not None:
        message.opt.echo = echo
    answer = await context.request(message).response
    if answer.code == Code.UNAUTHORIZED and answer.opt.echo is not None and echo is None:
        return await ask(context, order, answer.opt.echo)
    say(
        "answer",
        code=answer.code.dotted,
        location=list(answer.opt.location_path),
        max_age_s=answer.opt.max_age,
        body=decoded(answer),
        challenged=echo is not None,
    )


async def main(address, port):
    site = Site()
    for name in ("s", "rd"):
        site.add_resource([name], Asked(name))
    context = await aiocoap.Context.create_server_context(
        site, bind=(address, port), transports=["udp6"]
    )
    say("ready")
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await ask(context, json.loads(line))
    await context.shutdown()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
