"""Reads the outline of a pickle without executing any of it.

A pickle is a program for a small stack machine. This is that machine with every instruction that would import or call
something replaced by one that only remembers the name. What comes out are the strings, numbers and dictionaries of the
pickle, and a :class:`Opaque` for everything else. The instructions and what they do to the stack are those that the
standard library documents in :mod:`pickletools`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any, Final, Protocol, cast


class Opaque:
    """Something in a pickle that would have to be executed to be known.

    :param name: Dotted name of the class or function that would make it, or an empty string.
    """

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Opaque({self.name!r})"


class PickleOutlineError(ValueError):
    """The bytes are no complete pickle."""


class ByteStream(Protocol):
    """What the reader needs of a file."""

    def read(self, size: int, /) -> bytes:
        """Returns up to so many bytes."""

    def readline(self) -> bytes:
        """Returns the bytes up to and including the next line end."""


class BoundedStream:
    """A file from its current position on, of which no more than a number of bytes can be asked for.

    A damaged pickle can claim to hold a string of any length; asking for more than there is shows it.
    """

    def __init__(self, file: ByteStream, limit: int) -> None:
        self._file = file
        self._left = limit

    def read(self, size: int, /) -> bytes:
        """Returns exactly so many bytes."""
        if size > self._left:
            raise PickleOutlineError(f"{size} bytes are announced where {self._left} are left")
        data = self._file.read(size)
        if len(data) != size:
            raise PickleOutlineError("the data end too early")
        self._left -= size
        return data

    def readline(self) -> bytes:
        """Returns the bytes up to and including the next line end."""
        line = self._file.readline()
        self._left -= len(line)
        return line


Stack = list[Any]
MARK: Final = Opaque("MARK")
_STOP_CHECK_AFTER = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "SETITEM", "SETITEMS", "BINGET", "GET"}


def read_outline(stream: ByteStream, is_enough: Callable[[dict[str, Any]], bool] | None = None) -> Any:
    """Returns what a pickle holds, with an :class:`Opaque` for each object that would have to be built by code.

    :param stream: Positioned at the first byte of the pickle; afterwards just behind it, if all of it was read.
    :param is_enough: Asked with the entries of the outermost dictionary that are known so far; reading stops when it
        returns True, and these entries are the result.
    :raises PickleOutlineError: If the bytes are no pickle, or end too early.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            machine.execute(instruction, argument)
            if is_enough is not None and instruction.name in _STOP_CHECK_AFTER:
                entries = machine.entries_so_far()
                if entries is not None and is_enough(entries):
                    return entries
        return machine.stack[0]
    except PickleOutlineError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise PickleOutlineError(str(error) or type(error).__name__) from error


class _Machine:
    """The stack and the memo."""

    def __init__(self) -> None:
        self.stack: Stack = []
        self.memo: dict[int, Any] = {}

    def entries_so_far(self) -> dict[str, Any] | None:
        """Returns the entries of the outermost dictionary that are complete, or None while one of them is built."""
        stack = self.stack
        if not stack or not isinstance(stack[0], dict):
            return None
        if len(stack) == 1:
            return stack[0]
        if stack[1] is not MARK or any(value is MARK for value in stack[2:]):
            return None
        # A value is final only once something follows it: until then, the next instruction may still consume it.
        pending = stack[2:-1]
        return {**stack[0], **_string_keyed(pending)}

    def execute(self, instruction: pickletools.OpcodeInfo, argument: Any) -> None:
        """Does to the stack what the instruction does, without importing or calling anything."""
        handler = _HANDLERS.get(instruction.name)
        if handler is not None:
            handler(self, argument)
        else:
            self._replace_operands(instruction)

    def pop_to_mark(self) -> Stack:
        """Removes everything above the last mark, and the mark, and returns what was above it."""
        index = len(self.stack) - 1
        while self.stack[index] is not MARK:
            index -= 1
            if index < 0:
                raise PickleOutlineError("an instruction lacks its mark")
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def _replace_operands(self, instruction: pickletools.OpcodeInfo) -> None:
        """Pops what the instruction takes and pushes as many unknown objects as it leaves."""
        operands = list(instruction.stack_before)
        if pickletools.markobject in operands:
            self.pop_to_mark()
            del operands[operands.index(pickletools.markobject) :]
        for _ in operands:
            self.stack.pop()
        self.stack.extend(Opaque() for _ in instruction.stack_after)


def _string_keyed(items: Stack) -> dict[str, Any]:
    return {key: value for key, value in zip(items[::2], items[1::2], strict=False) if isinstance(key, str)}


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _empty_dictionary(machine: _Machine, _: Any) -> None:
    machine.stack.append({})


def _dictionary(machine: _Machine, _: Any) -> None:
    machine.stack.append(_string_keyed(machine.pop_to_mark()))


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine, [key, value])


def _set_items(machine: _Machine, _: Any) -> None:
    _update(machine, machine.pop_to_mark())


def _update(machine: _Machine, items: Stack) -> None:
    if isinstance(machine.stack[-1], dict):
        machine.stack[-1].update(_string_keyed(items))


def _drop_marked(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _drop_one(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _duplicate(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.stack[-1])


def _memorise(machine: _Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _recall(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[argument])


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(Opaque(str(argument).replace(" ", ".")))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    # A name made of the names of other objects could double with each instruction until the memory is full.
    is_plain = isinstance(name, str) and isinstance(module, str)
    machine.stack.append(Opaque(f"{module}.{name}" if is_plain else ""))


def _call(operands: int) -> Callable[[_Machine, Any], None]:
    def call(machine: _Machine, _: Any) -> None:
        del machine.stack[len(machine.stack) - operands :]
        called = machine.stack.pop()
        name = called.name if isinstance(called, Opaque) else ""
        machine.stack.append({} if name == "collections.OrderedDict" else Opaque(name))

    return call


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _memorise),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    **dict.fromkeys(("APPENDS", "ADDITEMS", "POP_MARK"), _drop_marked),
    **dict.fromkeys(("APPEND", "BUILD", "POP"), _drop_one),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _call(operands=1)),
    "NEWOBJ_EX": _call(operands=2),
    "MARK": _constant(MARK),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_DICT": _empty_dictionary,
    "DICT": _dictionary,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "DUP": _duplicate,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "STOP": lambda machine, _: None,
}
