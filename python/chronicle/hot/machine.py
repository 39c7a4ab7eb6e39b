"""The machine net of the audit: the object file that will run, instruction by instruction.

pyelftools reads symbols, sections and relocations, capstone the instructions. What is asked:

- every symbol that is not defined here is on the list of what compiled code may call;
- every call and jump goes to a place in this object, or to such a symbol: none is computed;
- the graph of calls has no cycle, and no function's stack grows by a computed amount, so the stack
  has a size that can be told beforehand;
- no instruction enters the kernel, or reads the processor's clock or random numbers; all are known;
- the object has no data that can change, and nothing that runs when it is loaded.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import Any, Final, NamedTuple

from chronicle.hot.link import ALLOWED_SYMBOLS, missing
from chronicle.hot.rules import Finding

__all__ = ["Function", "MachineReport", "inspect_object"]

_OURS: Final = "this is a fault of the compiler, not of the handler: report it with the handler"

_FORBIDDEN_X86: Final = frozenset(
    {
        *("syscall", "sysenter", "sysexit", "sysret", "int", "int1", "int3", "into", "iret"),
        *("iretd", "iretq", "ud0", "ud1", "ud2", "hlt", "in", "out", "cpuid", "rdtsc", "rdtscp"),
        *("rdpmc", "rdrand", "rdseed", "rdmsr", "wrmsr", "rdpid", "xbegin", "xend", "xabort"),
        *("monitor", "mwait", "monitorx", "mwaitx", "umonitor", "umwait", "tpause", "wrfsbase"),
        *("wrgsbase", "rdfsbase", "rdgsbase", "swapgs", "wrpkru", "xrstor", "xsave", "fxsave"),
        *("fxrstor", "ldmxcsr", "std", "cli", "sti", "lgdt", "lidt", "ltr", "retf", "lcall"),
        *("ljmp", "enter"),
    }
)
_FORBIDDEN_ARM: Final = frozenset(
    {
        *("svc", "hvc", "smc", "brk", "hlt", "udf", "mrs", "msr", "sys", "sysl", "eret"),
        *("blr", "br", "blraa", "blrab", "braa", "brab", "wfe", "wfi", "dcps1", "dcps2", "dcps3"),
    }
)
_DIRECT_CALLS: Final = {
    "EM_X86_64": frozenset({"R_X86_64_PLT32", "R_X86_64_PC32"}),
    "EM_AARCH64": frozenset({"R_AARCH64_CALL26", "R_AARCH64_JUMP26"}),
}
_RETURN_ADDRESS_BYTES: Final = 8


class Function(NamedTuple):
    """One function of the object.

    Attributes
    ----------
    name
        Its symbol.
    size_bytes
        Of its code.
    stack_bytes
        What it takes of the stack, without what it calls.
    calls
        Symbols that it calls or jumps to.
    """

    name: str
    size_bytes: int
    stack_bytes: int
    calls: tuple[str, ...]


class MachineReport(NamedTuple):
    """What an object file can do.

    Attributes
    ----------
    functions
        By name.
    undefined
        Symbols that it takes from elsewhere.
    code_bytes
        Size of its code.
    stack_bytes
        The most that it takes of the stack, without what it calls elsewhere.
    findings
        What must not be.
    """

    functions: dict[str, Function]
    undefined: tuple[str, ...]
    code_bytes: int
    stack_bytes: int
    findings: tuple[Finding, ...]


def inspect_object(image: bytes, *, file: str = "", line: int = 0) -> MachineReport:
    """Look at an object file.

    Parameters
    ----------
    image
        Its bytes.
    file, line
        Where the handler stands, for findings.

    Raises
    ------
    CompileError
        If pyelftools or capstone is missing.
    """
    try:
        import capstone  # noqa: F401  (used further down, where it is too late to say so)
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise missing(error) from None
    return _Inspection(ELFFile(io.BytesIO(image)), file, line).report()


class _Inspection:
    def __init__(self, elf: Any, file: str, line: int) -> None:
        self.elf = elf
        self.file = file
        self.line = line
        self.machine: str = elf["e_machine"]
        self.findings: list[Finding] = []
        table = elf.get_section_by_name(".symtab")
        self.symbols: list[Any] = [] if table is None else list(table.iter_symbols())
        self.undefined = tuple(
            sorted({s.name for s in self.symbols if s["st_shndx"] == "SHN_UNDEF" and s.name})
        )

    def refuse(self, construct: str, remedy: str = _OURS) -> None:
        finding = Finding(construct, self.file, self.line, remedy, "machine")
        if finding not in self.findings:
            self.findings.append(finding)

    def report(self) -> MachineReport:
        for name in self.undefined:
            if name not in ALLOWED_SYMBOLS:
                self.refuse(
                    f"machine code that calls {name!r}",
                    "it may call the core, libm, memcpy and its kin; write it in Python, or pass a "
                    "NativeHandler",
                )
        for symbol in self.symbols:
            if symbol["st_shndx"] == "SHN_COMMON":
                self.refuse(f"data that can change, {symbol.name!r}")
        if self.machine not in _DIRECT_CALLS:
            self.refuse(f"machine code for {self.machine}", "x86-64 and aarch64 can be audited")
            return MachineReport({}, self.undefined, 0, 0, tuple(self.findings))
        functions: dict[str, Function] = {}
        code_bytes = 0
        for index, section in enumerate(self.elf.iter_sections()):
            flags = section["sh_flags"]
            if flags & 4:  # SHF_EXECINSTR
                code_bytes += section["sh_size"]
                functions |= self.code(index, section)
            else:
                self.data(section, flags)
        stack_bytes = self.deepest(functions)
        return MachineReport(
            functions, self.undefined, code_bytes, stack_bytes, tuple(self.findings)
        )

    def data(self, section: Any, flags: int) -> None:
        """Look at a section that is no code."""
        name: str = section.name
        if name.startswith((".init", ".fini", ".ctors", ".dtors")) and section["sh_size"]:
            self.refuse(f"machine code that runs when it is loaded, in {name}")
        writable = flags & 1 and flags & 2  # SHF_WRITE, SHF_ALLOC
        # Constants that hold addresses are written once, by the linker.
        if writable and section["sh_size"] and not name.startswith(".data.rel.ro"):
            self.refuse(
                f"data that can change, in {name}", "make it a field of the handler's state"
            )
        if flags & 0x400 and section["sh_size"]:  # SHF_TLS
            self.refuse(f"data of a thread, in {name}")

    def code(self, index: int, section: Any) -> dict[str, Function]:
        """Look at a section of code."""
        defined = [
            s for s in self.symbols if s["st_shndx"] == index and s["st_info"]["type"] == "STT_FUNC"
        ]
        starts = {s["st_value"]: s.name for s in defined}
        relocations = self.relocations(section)
        data = section.data()
        covered = 0
        found: dict[str, Function] = {}
        for symbol in sorted(defined, key=lambda s: int(s["st_value"])):
            start, size = symbol["st_value"], symbol["st_size"]
            covered += size
            walk = _WALKS[self.machine](self, symbol.name, start, size, starts, relocations)
            found[symbol.name] = walk.function(data[start : start + size])
        gaps = len(data) - covered
        # Between functions there is padding only.
        if gaps > 16 * max(1, len(defined)):
            self.refuse(f"machine code of {gaps} bytes that belongs to no function")
        return found

    def relocations(self, section: Any) -> dict[int, tuple[str, str, bool]]:
        """Return kind, symbol and whether it is defined, by offset, of a section's relocations."""
        from elftools.elf.enums import ENUM_RELOC_TYPE_AARCH64, ENUM_RELOC_TYPE_x64

        kinds = ENUM_RELOC_TYPE_x64 if self.machine == "EM_X86_64" else ENUM_RELOC_TYPE_AARCH64
        names = {value: name for name, value in kinds.items() if isinstance(value, int)}
        table = self.elf.get_section_by_name(f".rela{section.name}")
        found: dict[int, tuple[str, str, bool]] = {}
        for each in () if table is None else table.iter_relocations():
            symbol = self.symbols[each["r_info_sym"]]
            shndx = symbol["st_shndx"]
            name = symbol.name
            if not name and isinstance(shndx, int):
                name = self.elf.get_section(shndx).name
            kind = names.get(each["r_info_type"], str(each["r_info_type"]))
            found[each["r_offset"]] = (kind, name, shndx != "SHN_UNDEF")
        return found

    def deepest(self, functions: dict[str, Function]) -> int:
        """Return the deepest stack; refuse cycles."""
        depths: dict[str, int] = {}

        def depth(name: str, path: tuple[str, ...]) -> int:
            function = functions.get(name)
            if function is None:
                return 0  # Elsewhere, on the list.
            if name in path:
                cycle = " -> ".join([*path[path.index(name) :], name])
                self.refuse(f"recursion in machine code: {cycle}", "write a loop")
                return 0
            if name not in depths:
                below = [depth(callee, (*path, name)) for callee in function.calls]
                own = function.stack_bytes + _RETURN_ADDRESS_BYTES
                depths[name] = own + max(below, default=0)
            return depths[name]

        return max((depth(name, ()) for name in functions), default=0)


class _Walk(ABC):
    """One function's instructions. What an instruction means, each CPU says for itself."""

    def __init__(
        self,
        inspection: _Inspection,
        name: str,
        start: int,
        size: int,
        starts: dict[int, str],
        relocations: dict[int, tuple[str, str, bool]],
    ) -> None:
        self.inspection = inspection
        self.name = name
        self.start = start
        self.end = start + size
        self.starts = starts
        self.relocations = relocations
        self.calls: dict[str, None] = {}
        self.targets: set[int] = set()
        self.stack = 0

    def function(self, code: bytes) -> Function:
        """Walk over the instructions."""
        decoder = self.decoder()
        decoder.detail = True
        end = self.start
        begins: set[int] = set()
        for instruction in decoder.disasm(code, self.start):
            begins.add(instruction.address)
            end = instruction.address + instruction.size
            self.instruction(instruction)
        for target in sorted(self.targets - begins):
            self.refuse(f"a branch into the middle of an instruction, to {target:#x},")
        if end != self.end:
            self.refuse(f"an instruction that is not known, at {end:#x}")
        return Function(self.name, len(code), self.stack, tuple(self.calls))

    @abstractmethod
    def decoder(self) -> Any: ...

    @abstractmethod
    def instruction(self, instruction: Any) -> None: ...

    def refuse(self, what: str) -> None:
        self.inspection.refuse(f"machine code with {what} in {self.name!r}")

    def relocated(self, instruction: Any) -> tuple[str, str, bool] | None:
        for offset in range(instruction.address, instruction.address + instruction.size):
            if offset in self.relocations:
                return self.relocations[offset]
        return None

    def branch(self, instruction: Any, target: int | None, *, is_call: bool) -> None:
        """Look at a call or a jump to a place that stands in the instruction."""
        found = self.relocated(instruction)
        text = f"{instruction.mnemonic} {instruction.op_str}"
        if found is not None:
            kind, name, _ = found
            if kind not in _DIRECT_CALLS[self.inspection.machine]:
                self.refuse(f"the indirect branch `{text}` by {kind}")
            self.calls[name] = None
            return
        if target is None:
            self.refuse(f"the indirect branch `{text}`")
        elif target in self.starts and (is_call or not self.start <= target < self.end):
            self.calls[self.starts[target]] = None
        elif is_call or not self.start <= target < self.end:
            self.refuse(f"a branch to {target:#x}, outside of every function")
        else:
            self.targets.add(target)


class _WalkX86(_Walk):
    def decoder(self) -> Any:
        import capstone

        return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def instruction(self, instruction: Any) -> None:
        from capstone import CS_GRP_CALL, CS_GRP_INT, CS_GRP_JUMP, CS_GRP_PRIVILEGE
        from capstone.x86 import X86_OP_IMM

        groups = instruction.groups
        name = instruction.mnemonic.split(" ")[-1]
        if name in _FORBIDDEN_X86 or CS_GRP_INT in groups or CS_GRP_PRIVILEGE in groups:
            self.refuse(f"the instruction `{instruction.mnemonic}`")
        if CS_GRP_CALL in groups or CS_GRP_JUMP in groups:
            operand = instruction.operands[0]
            target = operand.imm if operand.type == X86_OP_IMM else None
            self.branch(instruction, target, is_call=CS_GRP_CALL in groups)
            return
        self.frame(instruction)

    def frame(self, instruction: Any) -> None:
        """Follow what the function takes of the stack."""
        from capstone.x86 import X86_OP_IMM, X86_OP_REG, X86_REG_RSP

        name = instruction.mnemonic
        if name == "push":
            self.stack += 8
            return
        operands = instruction.operands
        if not operands or operands[0].type != X86_OP_REG or operands[0].reg != X86_REG_RSP:
            return
        if name == "sub" and operands[1].type == X86_OP_IMM:
            self.stack += operands[1].imm
        elif name == "and" and operands[1].type == X86_OP_IMM:
            self.stack += -operands[1].imm - 1  # Aligning takes less than the alignment.
        elif name == "add" and operands[1].type == X86_OP_IMM:
            self.stack += max(0, -operands[1].imm)
        elif name in ("lea", "mov", "pop"):
            source = instruction.op_str.partition(",")[2]
            if "rbp" not in source and "rsp" not in source:
                self.refuse(f"a stack of computed size, `{name} {instruction.op_str}`,")
        elif name not in ("cmp", "test"):
            self.refuse(f"a stack of computed size, `{name} {instruction.op_str}`,")


class _WalkArm(_Walk):
    def decoder(self) -> Any:
        import capstone

        return capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)

    def instruction(self, instruction: Any) -> None:
        from capstone.arm64 import ARM64_OP_IMM

        name = instruction.mnemonic
        if name in _FORBIDDEN_ARM:
            self.refuse(f"the instruction `{name} {instruction.op_str}`")
            return
        if name in ("b", "bl", "cbz", "cbnz", "tbz", "tbnz") or name.startswith("b."):
            operand = instruction.operands[-1]
            target = operand.imm if operand.type == ARM64_OP_IMM else None
            self.branch(instruction, target, is_call=name == "bl")
            return
        self.frame(instruction)

    def frame(self, instruction: Any) -> None:
        """Follow what the function takes of the stack."""
        name, text = instruction.mnemonic, instruction.op_str
        if name in ("str", "stp") and text.endswith("]!") and "[sp, #-" in text:
            self.stack += int(text.split("#-")[1].rstrip("]!"), 0)
        if not text.startswith("sp, ") or name in ("cmp", "cmn", "tst"):
            return
        operands = text.split(", ")
        is_number = len(operands) > 2 and operands[2].startswith("#")
        if name == "sub" and operands[1] == "sp" and is_number:
            shift = int(operands[3].removeprefix("lsl #"), 0) if len(operands) > 3 else 0
            self.stack += int(operands[2][1:], 0) << shift
        elif name in ("add", "sub") and operands[1] in ("sp", "x29") and is_number:
            pass  # Gives back what was taken.
        elif (name, operands[1]) != ("mov", "x29"):
            self.refuse(f"a stack of computed size, `{name} {text}`,")


_WALKS: Final[dict[str, type[_Walk]]] = {"EM_X86_64": _WalkX86, "EM_AARCH64": _WalkArm}
