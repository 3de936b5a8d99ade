from typing_extensions import Buffer as Octets

PARENT: int
DEPTH: int
NUMBER: int
KIND: int
FLAGS: int
HEADER_START: int
BODY_START: int
BODY_END: int
LINES: int
TYPE_START: int
TYPE_END: int
ENCODING_START: int
ENCODING_END: int
COLUMNS: int
LEAF: int
MULTIPART: int
MESSAGE: int
NO_HEADER_END: int
NO_CLOSE: int
CUT_DEPTH: int
CUT_PARTS: int
CUT_HEADER: int

MAX_DEPTH: int
MAX_PARTS: int
MAX_FIELDS: int
MAX_HEADER: int
MAX_ADDRESSES: int
MAX_PARAMETERS: int
MAX_BOUNDARY: int
MAX_SEGMENTS: int
MAX_COMMENTS: int
MAX_QUOTED: int
MAX_STRING: int

def scan(content: Octets) -> memoryview[int]: ...
def summarize(content: Octets) -> tuple[bytes, bytes]: ...
def body(content: Octets) -> bytes: ...
def select(content: Octets, names: list[bytes], invert: bool = False, start: int = 0, stop: int = -1) -> bytes: ...
