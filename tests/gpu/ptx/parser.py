"""Reads PTX: the kernels of a module, with their parameters, shared memory and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', re.M)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{;]*\{")
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.[bu](\d+)\s+([\w$]+)(?:\[(\d*)\])?")
_ARRAY = re.compile(r"\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]$")
_SCALAR = re.compile(r"\.param\s+\.(\w+)\s+(?:.*\s)?([\w$]+)$", re.S)
_STATEMENT = re.compile(
    r"\.loc\s+(?P<file>\d+)\s+(?P<line>\d+)[^\n]*"
    r"|(?P<label>[$\w]+):(?!:)"
    r"|(?P<text>[^\s{};][^;]*);"
)
_GUARDED = re.compile(r"@(!?)(%\w+)\s+")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


@dataclass(frozen=True)
class Instruction:
    """One statement: `@!predicate opcode operands`, and the line of source that it comes from.
    A vector operand in braces is a list of its elements."""

    text: str
    path: str
    line: int
    predicate: str | None
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[str | list[str], ...]
    starts_block: bool

    @property
    def place(self) -> str:
        return f"{Path(self.path).name}:{self.line}"


@dataclass
class Entry:
    """A kernel as it stands in the text. Parameters: name -> (offset, bytes). Symbols, in shared
    memory: name -> (offset, bytes); one of unknown size, at the end, has 0 bytes."""

    module: Module
    name: str
    parameters: dict[str, tuple[int, int]]
    symbols: dict[str, tuple[int, int]]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def parameter_bytes(self) -> int:
        return max((at + size for at, size in self.parameters.values()), default=0)

    @property
    def shared_bytes(self) -> int:
        return max((at + size for at, size in self.symbols.values()), default=0)


class Module:
    """The kernels of one PTX text, which `text` holds without comments. They are read when first
    asked for: nvcc writes dozens of long ones into a module."""

    def __init__(self, text: str) -> None:
        self._files = {int(n): str(Path(first, second)) for n, first, second in _FILE.findall(text)}
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
        self.text, self._starts, outside, end = text, {}, [], 0
        for match in _ENTRY.finditer(text):
            outside.append(text[end : match.start()])
            end = _closing_brace(text, match.end())
            self._starts[match[1]] = match.end(), end, match[2]
        self._outside = "".join([*outside, text[end:]])
        if re.search(r"\.func\b", self._outside):
            raise NotImplementedError("PTX with functions that are not kernels")

    @property
    def names(self) -> list[str]:
        return list(self._starts)

    def entry(self, name: str) -> Entry:
        begin, end, parameters = self._starts[name]
        entry = Entry(self, name, _parameters(parameters), {})
        _read_body(entry, self.text[begin:end], self._files)
        _add_symbols(entry, self._outside)  # last, for what has no size lies behind the rest
        return entry


def bytes_of(kind: str) -> int:
    """Of one value of a PTX type."""
    if kind == "pred":
        return 1
    pair = kind.endswith("x2")
    return int(re.search(r"\d+$", kind.removesuffix("x2"))[0]) // 8 * (2 if pair else 1)


def _closing_brace(text: str, at: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, at):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.start()
    raise ValueError("a kernel without end")


def _placed(at: int, align: int) -> int:
    return -(-at // align) * align


def _parameters(text: str) -> dict[str, tuple[int, int]]:
    found, at = {}, 0
    for part in filter(None, (part.strip() for part in text.split(","))):
        if array := _ARRAY.search(part):
            align, name, size = int(array[1]), array[2], int(array[3])
        else:
            kind, name = _SCALAR.match(part).groups()
            align = size = bytes_of(kind)
        at = _placed(at, align)
        found[name] = at, size
        at += size
    return found


def _add_symbols(entry: Entry, text: str) -> None:
    # Without a size: memory that the launch adds, behind everything else.
    found = sorted(_SHARED.findall(text), key=lambda part: part[3] == "")
    for align, bits, name, count in found:
        size = int(bits) // 8
        at = _placed(entry.shared_bytes, int(align or size))
        entry.symbols[name] = at, size * int(count or 0)


def _read_body(entry: Entry, body: str, files: dict[int, str]) -> None:
    statements, place, declared = [], ("?", 0), set()
    for match in _STATEMENT.finditer(body):
        text = match["text"]
        if match["file"]:
            place = files.get(int(match["file"]), "?"), int(match["line"])
        elif match["label"]:
            entry.labels[match["label"]] = len(statements)
        elif text.startswith(".reg"):
            names = {name.strip() for name in text.split(None, 2)[2].split(",")}
            if names & declared:
                raise NotImplementedError(f"{text}: the name is taken in an outer scope")
            declared |= names
        elif text.startswith(".shared"):
            _add_symbols(entry, text)
        elif text.startswith("."):
            if not text.startswith(".pragma"):
                raise NotImplementedError(text)
        else:
            statements.append((" ".join(text.split()), place))
    statements.append(("ret", place))
    starts = set(entry.labels.values())
    for number, (text, place) in enumerate(statements):
        entry.instructions.append(_instruction(text, *place, number in starts))


def _instruction(text: str, path: str, line: int, starts_block: bool) -> Instruction:
    guard = _GUARDED.match(text)
    opcode, _, rest = (text[guard.end() :] if guard else text).partition(" ")
    operands = [
        [part.strip() for part in operand[1:-1].split(",")]
        if operand[0] == "{"
        else operand.strip()
        for operand in _OPERAND.findall(rest)
    ]
    return Instruction(
        text,
        path,
        line,
        guard[2] if guard else None,
        bool(guard and guard[1]),
        tuple(opcode.split(".")),
        tuple(operands),
        starts_block,
    )
