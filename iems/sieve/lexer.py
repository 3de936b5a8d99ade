"""A script as tokens (RFC 5228 8.1). Lines may end with CRLF or LF; text after `text:` always comes out with CRLF."""

from __future__ import annotations

import re

from msgspec import Struct

#: Numbers above are refused; RFC 5228 2.4.1 asks for 31 bits.
NUMBER_MAX = (1 << 53) - 1

IDENTIFIER, TAG, NUMBER, STRING, PUNCTUATION, END = range(6)

_SKIP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"([0-9]+)([KMGkmg]?)(?![A-Za-z0-9_])")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)
_MULTILINE = re.compile(r"text:[ \t]*(?:#[^\n]*)?\r?\n", re.I)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Token(Struct):
    """One token. at: offset in the script. text: of a name in lower case, of a string its value. number: of a NUMBER."""

    kind: int
    at: int
    text: str
    number: int = 0


class LexError(Exception):
    """What can't be a token; nothing after it is looked at."""

    def __init__(self, at: int, text: str) -> None:
        super().__init__(text)
        self.at = at


class Lexer:
    """Gives the tokens of a script one after the other."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def next(self) -> Token:
        """The next token; END for ever at the end. Raises LexError."""
        text = self._text
        self._skip()
        at = self._at
        if at >= len(text):
            return Token(END, len(text), "")
        char = text[at]
        if char in "[](){},;":
            self._at = at + 1
            return Token(PUNCTUATION, at, char)
        if char == '"':
            quoted = _QUOTED.match(text, at)
            if not quoted:
                raise LexError(at, "the string that begins here has no end")
            self._at = quoted.end()
            value = quoted[1]
            return Token(STRING, at, re.sub(r"\\(.)", r"\1", value, flags=re.S) if "\\" in value else value)
        multi = _MULTILINE.match(text, at)
        if multi:
            return self._multiline(at, multi.end())
        word = _WORD.match(text, at + (char == ":"))
        if word:
            self._at = word.end()
            return Token(TAG if char == ":" else IDENTIFIER, at, word[0].lower())
        number = _NUMBER.match(text, at)
        if number:
            self._at = number.end()
            value = int(number[1][:17]) * _UNITS[number[2].lower()]
            if value > NUMBER_MAX or len(number[1]) > 17:
                raise LexError(at, "the number is too large")
            return Token(NUMBER, at, number[0], value)
        raise LexError(at, f"unexpected character {char!a}")

    def _skip(self) -> None:
        """Go past white space and comments."""
        text = self._text
        while True:
            found = _SKIP.match(text, self._at)
            if found:
                self._at = found.end()
            if not text.startswith("/*", self._at):
                return
            end = text.find("*/", self._at + 2)
            if end < 0:
                raise LexError(self._at, "the comment that begins here has no end")
            self._at = end + 2

    def _multiline(self, at: int, start: int) -> Token:
        text = self._text
        lines: list[str] = []
        while True:
            end = text.find("\n", start)
            line = text[start : end if end >= 0 else len(text)].removesuffix("\r")
            if line == ".":
                self._at = end + 1 if end >= 0 else len(text)
                return Token(STRING, at, "".join(each + "\r\n" for each in lines))
            if end < 0:
                raise LexError(at, "the text that begins here has no end (a line with a dot alone)")
            lines.append(line[1:] if line.startswith(".") else line)
            start = end + 1
