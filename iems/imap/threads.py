"""The threading algorithms of RFC 5256 on plain values: numbers of messages in, trees of numbers out."""

from __future__ import annotations

from collections.abc import Sequence

#: A message (or None for one that is not here) and its replies.
Node = tuple[int | None, list["Node"]]

#: References of one message that are followed.
MAX_REFERENCES = 100


def ordered_subject(numbers: Sequence[int], subjects: Sequence[str], dates: Sequence[int]) -> list[Node]:
    """ORDEREDSUBJECT: by base subject, each thread by date, the threads by the date of their first message.

    numbers: ascending; subjects, dates: of each of them.
    """
    groups: dict[str, list[int]] = {}
    for at in sorted(range(len(numbers)), key=lambda at: (dates[at], numbers[at])):
        groups.setdefault(subjects[at], []).append(at)
    return [(numbers[group[0]], [(numbers[at], []) for at in group[1:]]) for group in groups.values()]


class _Container:
    __slots__ = ("at", "children", "parent")

    def __init__(self) -> None:
        self.at = -1  # of its message; -1: not here
        self.parent: _Container | None = None
        self.children: list[_Container] = []

    def adopt(self, child: _Container) -> None:
        child.parent = self
        self.children.append(child)

    def leave(self) -> None:
        if self.parent is not None:
            self.parent.children.remove(self)
            self.parent = None

    def is_below(self, other: _Container) -> bool:
        """Whether `other` is this one or above it."""
        node: _Container | None = self
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False


def references(
    numbers: Sequence[int],
    ids: Sequence[bytes],
    parents: Sequence[Sequence[bytes]],
    subjects: Sequence[tuple[str, bool]],
    dates: Sequence[int],
) -> list[Node]:
    """REFERENCES (RFC 5256 3).

    numbers: ascending. Of each message: ids its Message-ID (b"" without one), parents its references (oldest first),
    subjects (base subject, whether a reply), dates.
    """
    known: dict[bytes, _Container] = {}
    every: list[_Container] = []
    for at in range(len(numbers)):
        own = known.get(ids[at]) if ids[at] else None
        if own is None or own.at >= 0:
            own = _Container()  # no id, or one that an earlier message has: unique
            every.append(own)
            if ids[at] and ids[at] not in known:
                known[ids[at]] = own
        own.at = at
        above: _Container | None = None
        for reference in parents[at][-MAX_REFERENCES:]:
            container = known.get(reference)
            if container is None:
                container = known[reference] = _Container()
                every.append(container)
            if above is not None and container.parent is None and not above.is_below(container):
                above.adopt(container)
            above = container
        if above is not None and above is not own:
            if own.parent is not above and not above.is_below(own):
                # What this message says of its own parent counts for more than what others guessed.
                own.leave()
                above.adopt(own)
        elif above is None:
            own.leave()
    roots = [container for container in every if container.parent is None]
    roots = _pruned(roots)
    _sort(roots, dates)
    roots = _by_subject(roots, subjects, dates)
    _sort(roots, dates)
    return _nodes(roots, numbers)


def _post_order(roots: list[_Container]) -> list[_Container]:
    """All containers, children before parents; threads may be thousands deep."""
    found: list[_Container] = []
    stack = list(roots)
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(node.children)
    found.reverse()
    return found


def _pruned(roots: list[_Container]) -> list[_Container]:
    """Step 3: empty containers go; their children move up, to the root only if there is just one."""
    for node in _post_order(roots):
        if any(child.at < 0 for child in node.children):
            kept: list[_Container] = []
            for child in node.children:
                if child.at >= 0:
                    kept.append(child)
                else:
                    for grandchild in child.children:
                        grandchild.parent = node
                        kept.append(grandchild)
            node.children = kept
    found = []
    for root in roots:
        if root.at >= 0 or len(root.children) > 1:
            found.append(root)
        elif root.children:
            root.children[0].parent = None
            found.append(root.children[0])
    return found


def _date(node: _Container, dates: Sequence[int]) -> tuple[int, int]:
    """Of a message, or of the first child of an empty container, whose children are sorted already."""
    at = node.at if node.at >= 0 else node.children[0].at
    return dates[at], at


def _sort(roots: list[_Container], dates: Sequence[int]) -> None:
    for node in _post_order(roots):
        if len(node.children) > 1:
            node.children.sort(key=lambda child: _date(child, dates))
    roots.sort(key=lambda root: _date(root, dates))


def _by_subject(
    roots: list[_Container], subjects: Sequence[tuple[str, bool]], dates: Sequence[int]
) -> list[_Container]:
    """Step 5: threads with the same base subject come together."""

    def subject(root: _Container) -> tuple[str, bool]:
        return subjects[root.at if root.at >= 0 else root.children[0].at]

    table: dict[str, _Container] = {}
    for root in roots:
        base, reply = subject(root)
        if not base:
            continue
        other = table.get(base)
        if other is None or (root.at < 0 <= other.at) or (other.at >= 0 and subject(other)[1] and not reply):
            table[base] = root
    merged: dict[int, _Container] = {id(root): root for root in roots}
    for root in list(roots):
        base, reply = subject(root)
        other = table.get(base) if base else None
        if other is None or other is root:
            continue
        if root.at < 0 and other.at < 0:
            for child in root.children:
                other.adopt(child)
            del merged[id(root)]
        elif other.at < 0 or (reply and not subject(other)[1]):
            other.adopt(root)
            del merged[id(root)]
        else:
            pair = _Container()
            pair.adopt(other)
            pair.adopt(root)
            pair.children.sort(key=lambda child: _date(child, dates))
            del merged[id(root)], merged[id(other)]
            merged[id(pair)] = pair
            table[base] = pair
    return list(merged.values())


def _nodes(roots: list[_Container], numbers: Sequence[int]) -> list[Node]:
    built: dict[int, Node] = {}
    for node in _post_order(roots):
        built[id(node)] = (
            numbers[node.at] if node.at >= 0 else None,
            [built.pop(id(child)) for child in node.children],
        )
    return [built[id(root)] for root in roots]


def render(threads: list[Node]) -> bytes:
    """The thread lists of a THREAD response (RFC 5256 4)."""
    out: list[bytes] = []
    # An explicit stack: a chain of ten thousand replies is no reason to fail.
    stack: list[bytes | tuple[Node, bool]] = []
    for thread in reversed(threads):
        stack += [b")", (thread, False), b"("]
    while stack:
        item = stack.pop()
        if isinstance(item, bytes):
            out.append(item)
            continue
        (number, children), spaced = item
        if number is not None:
            out.append(b" %d" % number if spaced else b"%d" % number)
        if len(children) == 1 and number is not None:
            stack.append((children[0], True))
        elif children:
            if number is not None:
                out.append(b" ")
            for child in reversed(children):
                stack += [b")", (child, False), b"("]
    return b"".join(out)
