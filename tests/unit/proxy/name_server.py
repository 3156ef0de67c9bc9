"""A small name server on loopback, real UDP and TCP, whose records a test changes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from dns.rdatatype import RdataType

UDP_BYTES_MAX = 512


class NameServer(asyncio.DatagramProtocol):
    """Records: {(name, type): [data, …]}; a name without any is none that exists."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.rcode = dns.rcode.NOERROR  # of every answer
        self.is_silent = False
        self.asked = 0
        self.port = 0

    def make_resolver(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self.port
        return resolver

    def answer(self, query: bytes) -> dns.message.Message:
        self.asked += 1
        asked = dns.message.from_wire(query)
        (question,) = asked.question
        name, kind = question.name.to_text(omit_final_dot=True), RdataType.to_text(question.rdtype)
        response = dns.message.make_response(asked)
        response.set_rcode(self.rcode)
        if self.rcode is dns.rcode.NOERROR and not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.rcode is dns.rcode.NOERROR and (records := self.records.get((name, kind))):
            response.answer.append(dns.rrset.from_text_list(question.name, 5, "IN", kind, records))
        return response

    # -- UDP

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.is_silent:
            return
        response = self.answer(data)
        if len(response.to_wire(max_size=65535)) > UDP_BYTES_MAX:
            response.answer.clear()
            response.flags |= dns.flags.TC
        self._transport.sendto(response.to_wire(), addr)

    # -- TCP, for answers that are too long

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        response = self.answer(query).to_wire(max_size=65535)
        writer.write(len(response).to_bytes(2) + response)
        await writer.drain()
        writer.close()

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator["NameServer"]:
        server = await asyncio.start_server(self._talk, host, port)
        self.port = server.sockets[0].getsockname()[1]
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=(host, self.port)
        )
        try:
            yield self
        finally:
            transport.close()
            server.close()
            await server.wait_closed()
