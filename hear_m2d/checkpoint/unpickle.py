"""Pickle opcodes → plain Python values, without unpickling.

``pickletools`` takes the stream apart, and this module interprets the opcodes. A global is only a name: see
``allowed.py`` for those that stand for something.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import IO, Any

from hear_m2d.checkpoint.allowed import Attributes, NumpyType, RefusedTypeError, call, dict_of, named, set_of
from hear_m2d.utils.errors import InputError

MAX_STEPS = 2_000_000  # a full M2D file with its optimizer has 50,000
# The opcodes of protocols 2 to 5, Python 2's bytes included; the older text opcodes are in no .pth.
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_pickle(file: IO[bytes], storage: Callable[[Any], Any]) -> Any:
    """Interpret one pickle, from the file's position to the pickle's end.

    Args:
        file: Binary; afterwards it stands behind the pickle.
        storage: Called with each persistent id; what it returns stands for the storage.

    Returns:
        Dicts, lists, tuples, sets, numbers, texts, bytes, and what ``allowed.py`` gives for names: a
        ``StoredTensor``, ``Attributes`` for a namespace, a text for a path, a number for a numpy scalar.

    Raises:
        RefusedTypeError: It names anything else.
        ValueError: Damaged, or too long.
    """
    try:
        return _Interpreter(file, storage).run()
    except RefusedTypeError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, EOFError, Warning) as error:
        why = ascii(str(error)[:200])[1:-1]  # it may quote the file
        raise InputError(f"its pickle is damaged, or holds what no checkpoint does ({why})") from error
    except (MemoryError, RecursionError) as error:
        raise InputError(f"its pickle asks for more than this machine has ({error!r})") from error


class _Interpreter:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, file: IO[bytes], storage: Callable[[Any], Any]) -> None:
        self.opcodes: Iterator[tuple[Any, Any, int | None]] = pickletools.genops(file)
        self.storage = storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for step, (opcode, argument, _) in enumerate(self.opcodes):
            if step > MAX_STEPS:
                raise InputError(f"more than {MAX_STEPS} opcodes")
            name = opcode.name
            if name in LITERALS:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in {"BINPUT", "LONG_BINPUT"}:
                self.memo[argument] = self.stack[-1]
            elif name in {"BINGET", "LONG_BINGET"}:
                self.stack.append(self.memo[argument])
            elif name not in {"PROTO", "FRAME", "STOP"}:
                getattr(self, f"_{name.lower()}", self._unknown)(argument)
        (value,) = self.stack
        return value

    def _unknown(self, _: Any) -> None:
        raise InputError("an opcode that no checkpoint needs")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise InputError(f"a {type(self.stack[-1]).__name__} where a {kind.__name__} belongs")
        return self.stack[-1]

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_set(self, _: Any) -> None:
        self.stack.append(set())

    def _tuple(self, _: Any) -> None:
        values = self._since_mark()
        self.stack.append(tuple(values))

    def _tuple1(self, _: Any) -> None:
        self.stack.append((self.stack.pop(),))

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _frozenset(self, _: Any) -> None:
        values = self._since_mark()
        self.stack.append(set_of(values))

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        values = self._since_mark()
        self._top(list).extend(values)

    def _additems(self, _: Any) -> None:
        values = self._since_mark()
        self._top(set).update(set_of(values))

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict).update(dict_of([key, value]))

    def _setitems(self, _: Any) -> None:
        values = self._since_mark()
        self._top(dict).update(dict_of(values))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.storage(self.stack.pop()))

    def _global(self, argument: str) -> None:
        self.stack.append(named(*argument.split(" ", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(named(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(call(name, arguments))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        if type(value) is Attributes and type(state) is dict:
            value.values.update({key: state[key] for key in state if type(key) is str})
        elif type(value) is NumpyType and type(state) is tuple and state[1] in ("<", ">", "|", "="):
            value.order = state[1]
        elif type(value) is not dict or type(state) is not dict:
            # (An OrderedDict's own attributes are not needed.)
            raise InputError(f"a state for a {type(value).__name__}")
