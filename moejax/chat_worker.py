"""Renders Jinja for `moejax.chat_template` in a process of its own, which may be lost without harm.

A line of JSON in, a line of JSON out. It is started as a script and imports nothing of moejax. The template
language reaches no file and no Python object but the data of the request. Its fuel bounds what it runs, but
not what one operation costs, so a timer and a limit of memory end the process where fuel does not end the
work.
"""

import datetime
import json
import re
import resource
import signal
import sys

import minijinja

FUEL = 300_000  # instructions
FUEL_PER_BYTE = 4  # of the data
MAX_FORM = 1000  # characters of a form of dates; fuel does not see what one costs
SECONDS = 0.04  # of processor time
SECONDS_PER_BYTE = 2e-7
MEMORY = 40 << 20  # bytes beyond what the process has when it begins to render
MEMORY_PER_BYTE = 32
# Marks the tokens to train on, for which nothing is done here.
MARK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class Refused(Exception):
    """The template called raise_exception."""


def render(template: str, variables: dict, fuel: int) -> str:
    """The text of a template as transformers renders it."""
    refusals = []

    def raise_exception(message):
        refusals.append(str(message))
        raise Refused

    env = minijinja.Environment(
        debug=False,
        fuel=fuel,
        pycompat=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalizer=_printed,
        auto_escape_callback=lambda name: False,
    )
    env.add_filter("tojson", _to_json)
    env.add_function("raise_exception", raise_exception)
    env.add_function("strftime_now", _now)
    try:
        return env.render_str(MARK.sub(_neutral, template), **variables)
    except Exception:
        if refusals:
            raise Refused(refusals[0]) from None
        raise


def _printed(value):
    """As Python prints it, not as the engine would: True, None, {'a': 1}."""
    return NotImplemented if value is None or isinstance(value, str) else str(value)  # the engine's own way


def _now(form: str) -> str:
    """The local time as strftime writes it."""
    if len(form) > MAX_FORM:
        raise ValueError(f"a form of dates has {len(form)} characters, more than {MAX_FORM}")
    return datetime.datetime.now().strftime(form)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _neutral(mark: re.Match) -> str:
    word = "endif" if mark[2] else "if true"
    return f"{{%{mark[1]} {word} {mark[3]}%}}"


def answer(request: dict) -> dict:
    """{"text": ...}, {"refused": why} or {"error": why}."""
    try:
        fuel = FUEL + FUEL_PER_BYTE * request["size"]
        return {"text": render(request["template"], request["variables"], fuel)}
    except Refused as refusal:
        return {"refused": str(refusal)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:
        return {"error": str(error).partition("\n")[0]}


def _memory() -> int:
    """Bytes of address space in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _bound_memory(limit: int) -> None:
    """Let allocations fail beyond `limit` bytes, or where whoever started the process wants it earlier."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )


def main() -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        request = json.loads(line)
        if sys.platform == "linux":  # elsewhere the address space of a process cannot be bounded
            _bound_memory(_memory() + MEMORY + MEMORY_PER_BYTE * request["size"])
        signal.setitimer(signal.ITIMER_PROF, SECONDS + SECONDS_PER_BYTE * request["size"])
        reply = json.dumps(answer(request))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(reply, flush=True)


if __name__ == "__main__":
    main()
