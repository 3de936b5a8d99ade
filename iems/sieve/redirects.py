"""Where a script may send mail on to, as far as it can be read in it: addresses made of variables are not among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from iems.sieve.errors import Places
from iems.sieve.parser import Node, Parser


def redirects(text: str) -> list[str]:
    """The addresses of all `redirect` commands of a script (RFC 5228 4.2), each once, in order. What is no script has none."""
    return list(dict.fromkeys(_of(Parser(text, Places(text)).parse())))


def _of(nodes: Iterable[Node]) -> Iterator[str]:
    for node in nodes:
        if node.name.lower() == "redirect":
            for argument in node.arguments:
                if argument.tag is None and argument.strings:
                    yield from (address.strip() for address in argument.strings if "${" not in address)
        yield from _of(node.block or ())
