"""Sieve (RFC 5228): scripts of users that say what becomes of their mail. Text in, actions out; no I/O.

`lexer` and `parser` read a script, `compiler` checks it (all errors at once, with line and column) and makes closures of
it, by the tables in `tests` and `commands`; `run` executes it on a message and gives a list of `actions`. Who carries the
actions out is the LMDA; who keeps scripts is `scripts`; `mailsort` writes scripts from rules.
"""

from __future__ import annotations

from iems.sieve.compiler import EXTENSIONS, Script, compile_script
from iems.sieve.errors import Problem, ScriptError
from iems.sieve.run import Environment, Outcome, run

__all__ = ["EXTENSIONS", "Environment", "Outcome", "Problem", "Script", "ScriptError", "compile_script", "run"]
