"""A small name server on loopback, real UDP and TCP, whose records a test changes."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
from dns.rdatatype import RdataType

from tests.free_ports import free_ports

UDP_BYTES_MAX = 512


class NameServer:
    """Records: {(name, type): [data, …]}; a name without any does not exist."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.rcode = dns.rcode.NOERROR  # of every answer
        self.is_silent = False
        self.asked = 0
        self.port = 0

    def make_resolver(self) -> dns.resolver.Resolver:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self.port
        return resolver

    def answer(self, query: bytes) -> dns.message.Message:
        self.asked += 1
        asked, records = dns.message.from_wire(query), self.records
        (question,) = asked.question
        name, kind = question.name.to_text(omit_final_dot=True), RdataType.to_text(question.rdtype)
        response = dns.message.make_response(asked)
        response.set_rcode(self.rcode)
        if self.rcode is dns.rcode.NOERROR and not any(known == name for known, _ in records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.rcode is dns.rcode.NOERROR and (found := records.get((name, kind))):
            response.answer.append(dns.rrset.from_text_list(question.name, 5, "IN", kind, found))
        return response

    def _by_udp(self, query: bytes) -> bytes:
        response = self.answer(query)
        if len(response.to_wire(max_size=65535)) > UDP_BYTES_MAX:  # to be asked for by TCP
            response.answer.clear()
            response.flags |= dns.flags.TC
        return response.to_wire()

    @contextmanager
    def serving(self, host: str = "127.0.0.1", port: int = 0) -> Iterator["NameServer"]:
        names = self

        class Udp(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                query, own = self.request
                if not names.is_silent:
                    own.sendto(names._by_udp(query), self.client_address)

        class Tcp(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                response = names.answer(self.rfile.read(int.from_bytes(self.rfile.read(2)))).to_wire(max_size=65535)
                self.wfile.write(len(response).to_bytes(2) + response)

        with ExitStack() as stack:
            if not port:  # one that is free for both
                with free_ports(1) as ports:
                    port = int(ports.partition("-")[0])
            self.port = port
            servers: list[Any] = [
                stack.enter_context(socketserver.UDPServer((host, port), Udp)),
                stack.enter_context(socketserver.TCPServer((host, port), Tcp)),
            ]
            for server in servers:
                thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
                thread.start()
                stack.callback(thread.join)
                stack.callback(server.shutdown)
            yield self
