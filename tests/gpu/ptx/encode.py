"""Turns a kernel's instructions into the rows of numbers that the machine runs: state.h."""

from __future__ import annotations

import re
import struct

import numpy as np

from tests.gpu.ptx.parser import Entry, Instruction, bytes_of

MOST_OPERANDS = 12
ROW = np.dtype(
    [
        *((name, "<i4") for name in ("handler", "predicate", "negated", "starts_block")),
        *((name, "<i4") for name in ("outputs", "inputs", "target", "space", "size", "code")),
        *((name, "<i4") for name in ("variant", "lanes")),
        ("output", "<i4", MOST_OPERANDS),
        ("input", "<i4", MOST_OPERANDS),
        ("offset", "<i8"),
    ]
)
NOTHING, ZERO, FIRST_FREE = 0, 15, 16  # registers: a sink, one that holds 0, the kernel's own
_SPECIAL = {
    f"%{name}.{axis}": 1 + 3 * i + j
    for i, name in enumerate(("tid", "ntid", "ctaid", "nctaid"))
    for j, axis in enumerate("xyz")
}
_SPECIAL |= {"%laneid": 13, "%warpid": 14, "_": NOTHING}
_TYPE_NAMES = "s8 s16 s32 s64 u8 u16 u32 u64 f16 bf16 f32 f64"
_TYPES = {name: i for i, name in enumerate(_TYPE_NAMES.split())}
_COMPARISONS = "eq ne lt le gt ge equ neu ltu leu gtu geu num nan"
_COMPARE = {name: i for i, name in enumerate(_COMPARISONS.split())}
_COMPARE |= {"lo": 2, "ls": 3, "hi": 4, "hs": 5}
_JOIN = {"and": 1, "or": 2, "xor": 3}
_ROUND = {"rni": 1, "rzi": 2, "rmi": 3, "rpi": 4}
_SPACES = {"global": 0, "shared": 1, "param": 2}
_GENERIC = 3
# Suffixes that change neither a result nor a check here. Approximate functions are computed
# exactly; subnormal numbers are kept where `ftz` would flush them.
_IGNORED = "rn full approx uni sync aligned ftz relaxed weak gpu sys cta nc cs cg ca wrap"
_IGNORED += " volatile cv wb wt lu"


class Encoder:
    """The rows of one kernel, the values of its constants by register, and its opcodes by name."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.opcodes, self.constants = entry, {}, {}
        self._registers: dict[str | int, int] = {}
        self.rows = np.zeros(len(entry.instructions), dtype=ROW)
        for row, instruction in zip(self.rows, entry.instructions, strict=True):
            try:
                self._encode(row, instruction)
            except (KeyError, ValueError, IndexError, AttributeError) as error:
                message = f"{entry.name}: `{instruction.text}`: {error!r}"
                raise NotImplementedError(message) from error

    @property
    def register_count(self) -> int:
        return FIRST_FREE + len(self._registers)

    def _register(self, name: str | int) -> int:
        return self._registers.setdefault(name, self.register_count)

    def _constant(self, value: int) -> int:
        register = self._register(value % 2**64)
        self.constants[register] = value % 2**64
        return register

    def operand(self, text: str, kind: str) -> int:
        """The register that holds an operand of type `kind`."""
        if text in _SPECIAL:
            return _SPECIAL[text]
        if re.fullmatch(r"%[\w$]+", text):
            return self._register(text)
        if single := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", text):
            bits = int(single[1], 16)
            if kind == "f64":
                (value,) = struct.unpack("<f", bits.to_bytes(4, "little"))
                bits = int.from_bytes(struct.pack("<d", value), "little")
            return self._constant(bits)
        if double := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", text):
            return self._constant(int(double[1], 16))
        for table in (self.entry.symbols, self.entry.parameters):
            if text in table:
                return self._constant(table[text][0])
        if text in ("true", "false"):
            return self._constant(int(text == "true"))
        return self._constant(int(text.rstrip("U"), 0))

    def _operands(self, operand: str | list[str], kind: str) -> list[int]:
        return [self.operand(text, kind) for text in _parts(operand)]

    def _encode(self, row: np.void, instruction: Instruction) -> None:
        row["predicate"] = row["lanes"] = -1
        if instruction.predicate:
            row["predicate"] = self._register(instruction.predicate)
        row["negated"], row["starts_block"] = instruction.negated, instruction.starts_block
        parts = [part for part in instruction.opcode if part not in _IGNORED.split()]
        # `shared::cta` is the block's own memory; a cache's `L1::no_allocate` is a hint.
        parts = [part.removesuffix("::cta") for part in parts if part[0] != "L"]
        base, operands = parts[0], instruction.operands
        if "L2::cache_hint" in instruction.opcode:
            operands = operands[:-1]  # the hint itself
        encode = getattr(self, f"_encode_{_FAMILY.get(base, 'plain')}")
        key, outputs, inputs = encode(row, parts, operands)
        if instruction.opcode == ("rsqrt", "approx", "ftz", "f64"):
            key = "rsqrt.rough.f64"  # reads and returns the upper 32 bits alone
        row["handler"] = self.opcodes.setdefault(key, len(self.opcodes))
        row["outputs"], row["inputs"] = len(outputs), len(inputs)
        row["output"][: len(outputs)] = outputs
        row["input"][: len(inputs)] = inputs

    def _encode_plain(self, row, parts, operands):
        kind = parts[-1]
        inputs = [self.operand(operand, kind) for operand in operands[1:]]
        key = "selp" if parts[0] == "selp" else ".".join(parts)
        return key, self._operands(operands[0], kind), inputs

    def _encode_memory(self, row, parts, operands):
        loads, kind = parts[0] == "ld", parts[-1]
        row["space"] = _SPACES[parts[1]] if len(parts) > 2 and parts[1][0] != "v" else _GENERIC
        if set(parts[1:-1]) - {"global", "shared", "param", "v2", "v4", "v8"}:
            raise ValueError("an unknown suffix")
        row["size"], row["variant"] = bytes_of(kind), kind[0] == "s"
        address, values = operands if not loads else reversed(operands)
        where, values = self._address(row, address), self._operands(values, kind)
        return parts[0], *((values, [where]) if loads else ([], [where, *values]))

    def _encode_matrix(self, row, parts, operands):
        loads = parts[0] == "ldmatrix"
        if set(parts[1:]) - {"m8n8", "x1", "x2", "x4", "trans", "shared", "b16"}:
            raise ValueError("an unknown suffix")
        row["space"], row["size"], row["variant"] = _SPACES["shared"], 16, "trans" in parts
        address, values = operands if not loads else reversed(operands)
        where, values = self._address(row, address), self._operands(values, "b32")
        return parts[0], *((values, [where]) if loads else ([], [where, *values]))

    def _encode_branch(self, row, parts, operands):
        row["target"] = self.entry.labels[operands[0]]
        return "bra", [], []

    def _encode_end(self, row, parts, operands):
        return "ret", [], []

    def _encode_barrier(self, row, parts, operands):
        if parts[1:] == ["warp"]:
            row["lanes"] = self.operand(operands[0], "b32")
            return "bar.warp", [], []
        if parts[1:]:
            raise ValueError("a barrier that does not just wait")
        return "bar", [], [self.operand(operand, "b32") for operand in operands]

    def _encode_nothing(self, row, parts, operands):
        return "nothing", [], []

    def _encode_exchange(self, row, parts, operands):
        # The last operand names the lanes that must come together.
        row["lanes"] = self.operand(operands[-1], "b32")
        outputs = [self.operand(text, parts[-1]) for text in operands[0].split("|")]
        inputs = [self.operand(operand, parts[-1]) for operand in operands[1:-1]]
        return ".".join(parts[:2] if parts[0] == "shfl" else parts), outputs, inputs

    def _encode_comparison(self, row, parts, operands):
        join = _JOIN[parts[2]] if len(parts) > 3 else 0
        row["code"] = _COMPARE[parts[1]] + 16 * join
        inputs = [self.operand(operand, parts[-1]) for operand in operands[1:]]
        return f"setp.{parts[-1]}", [self.operand(operands[0], "pred")], inputs

    def _encode_conversion(self, row, parts, operands):
        to, source = parts[-2:]
        if set(parts[1:-2]) - set(_ROUND):
            raise ValueError("saturation or a rounding that the machine has not")
        row["variant"] = to.endswith("x2")
        rounding = next((_ROUND[part] for part in parts[1:-2]), 0)
        row["code"] = _TYPES[to.removesuffix("x2")] + 16 * _TYPES[source] + 256 * rounding
        inputs = [self.operand(operand, source) for operand in operands[1:]]
        return "cvt", [self.operand(operands[0], to)], inputs

    def _encode_address(self, row, parts, operands):
        # Global addresses are generic ones as they are; so are no others.
        if "global" not in parts[1:3]:
            raise ValueError("a generic address of other memory")
        row["size"] = 64
        return "mov", self._operands(operands[0], "u64"), self._operands(operands[1], "u64")

    def _encode_move(self, row, parts, operands):
        row["size"] = 8 * bytes_of(parts[-1])
        return "mov", *(self._operands(operand, parts[-1]) for operand in operands)

    def _address(self, row: np.void, text: str) -> int:
        name, offset = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", text).groups()
        row["offset"] = int(offset or "0", 0)
        if name[0] == "%":
            return self._register(name)
        for table in (self.entry.symbols, self.entry.parameters):
            if name in table:
                row["offset"] += table[name][0]
                return ZERO
        row["offset"] += int(name, 0)
        return ZERO


def _parts(operand: str | list[str]) -> list[str]:
    return operand if isinstance(operand, list) else [operand]


_FAMILY = {"ld": "memory", "st": "memory", "ldmatrix": "matrix", "stmatrix": "matrix"}
_FAMILY |= {"bra": "branch", "ret": "end", "exit": "end", "bar": "barrier", "barrier": "barrier"}
_FAMILY |= {"membar": "nothing", "fence": "nothing", "createpolicy": "nothing"}
_FAMILY |= {"shfl": "exchange", "redux": "exchange", "vote": "exchange"}
_FAMILY |= {"setp": "comparison", "cvt": "conversion", "cvta": "address"}
_FAMILY |= {"mov": "move"}
