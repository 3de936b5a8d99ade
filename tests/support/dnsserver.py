"""A small DNS server on loopback, UDP and TCP on one port, for tests: zones as text, and faults by name."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

SOA = ("ns.test. hostmaster.test. 1 3600 600 86400 60", 60)


class DnsServer:
    """Answers from `records`: {(name, type): [text, ...]}; a name in no record is NXDOMAIN.

    faults: {name: word} or {(name, type): word}; words: an rcode such as "SERVFAIL"; "silent"; "garbage"; "wrong-id"
    (then silence); "wrong-question"; "truncated" (UDP only, TCP answers); "first-silent" (the first query only);
    "no-chase" (aliases not followed). `asked` is the list of (name, type, transport) seen. ttl: of every record.
    """

    def __init__(self, records: dict[tuple[str, str], list[str]], faults: dict[Any, str] | None = None, ttl: int = 300) -> None:
        self.records = {(name.lower(), kind): values for (name, kind), values in records.items()}
        self.faults = faults or {}
        self.ttl = ttl
        self.secure = False  # the AD bit of its answers
        self.asked: list[tuple[str, str, str]] = []
        self.port = 0
        self._closers: list[Any] = []

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def __aenter__(self) -> DnsServer:
        loop = asyncio.get_running_loop()
        server = self

        class Udp(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, peer: Any) -> None:
                for wire in server.answer(data, "udp"):
                    self.transport.sendto(wire, peer)

        while True:  # one port free for both
            tcp = await asyncio.start_server(self._tcp, "127.0.0.1", 0)
            self.port = tcp.sockets[0].getsockname()[1]
            try:
                udp, _ = await loop.create_datagram_endpoint(Udp, ("127.0.0.1", self.port))
            except OSError:
                tcp.close()
                continue
            self._closers = [tcp, udp]
            return self

    async def __aexit__(self, *_: object) -> None:
        for closer in self._closers:
            closer.close()

    async def _tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            for wire in self.answer(await reader.readexactly(length), "tcp"):
                writer.write(struct.pack("!H", len(wire)) + wire)
            await writer.drain()
        except (EOFError, OSError):
            pass
        finally:
            writer.close()

    def answer(self, data: bytes, transport: str) -> list[bytes]:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        first = (name, kind, transport) not in self.asked
        self.asked.append((name, kind, transport))
        fault = self.faults.get((name, kind), self.faults.get(name, ""))
        if fault == "silent" or (fault == "first-silent" and first):
            return []
        if fault == "garbage":
            return [data[:2] + b"\x81\x80" + b"\xff" * 30]
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA | (dns.flags.AD if self.secure else 0)
        if fault.isupper():
            reply.set_rcode(dns.rcode.from_text(fault))
            return [reply.to_wire()]
        if fault == "truncated" and transport == "udp":
            reply.flags |= dns.flags.TC
            return [reply.to_wire()]
        self._fill(reply, name, kind, chase=fault != "no-chase")
        if fault == "wrong-id":
            reply.id ^= 1
        if fault == "wrong-question":
            reply.question = [dns.rrset.RRset(dns.name.from_text("other.test"), dns.rdataclass.IN, question.rdtype)]
        return [reply.to_wire(max_size=65535)]

    def _fill(self, reply: dns.message.Message, name: str, kind: str, chase: bool) -> None:
        for _ in range(20):
            if (name, kind) in self.records:
                reply.answer.append(dns.rrset.from_text(name + ".", self.ttl, "IN", kind, *self.records[name, kind]))
                return
            alias = self.records.get((name, "CNAME"))
            if alias is None:
                break
            rrset = dns.rrset.from_text(name + ".", self.ttl, "IN", "CNAME", *alias)
            if rrset in reply.answer:
                return
            reply.answer.append(rrset)
            name = alias[0].rstrip(".").lower()
            if not chase:
                return
        if not any(known == name for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        reply.authority.append(dns.rrset.from_text("test.", SOA[1], "IN", "SOA", SOA[0]))
