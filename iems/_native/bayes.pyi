from typing_extensions import Buffer as Octets

HEADER: int
PART: int
TEXT: int
HTML: int
MAX_FEATURES: int
MIN_BITS: int
MAX_BITS: int
KEY_BITS: int
SLOTS: int

def features(sections: list[tuple[int, bytes]], limit: int = ...) -> bytes: ...
def add(octets: Octets, bits: int, keys: Octets, start: int, change: int) -> int: ...
def grow(old: Octets, old_bits: int, new: Octets, bits: int) -> bool: ...
def items(octets: Octets, bits: int) -> bytes: ...
def halve(octets: Octets, bits: int) -> int: ...
def weigh(
    found: bytes,
    good: Octets,
    good_bits: int,
    goods: int,
    spam: Octets,
    spam_bits: int,
    spams: int,
    prior_good: Octets | None = None,
    prior_good_bits: int = 0,
    prior_goods: int = 0,
    prior_spam: Octets | None = None,
    prior_spam_bits: int = 0,
    prior_spams: int = 0,
) -> bytes: ...
def score(
    found: bytes,
    good: Octets,
    good_bits: int,
    goods: int,
    spam: Octets,
    spam_bits: int,
    spams: int,
    prior_good: Octets | None = None,
    prior_good_bits: int = 0,
    prior_goods: int = 0,
    prior_spam: Octets | None = None,
    prior_spam_bits: int = 0,
    prior_spams: int = 0,
) -> tuple[float, float, float]: ...
