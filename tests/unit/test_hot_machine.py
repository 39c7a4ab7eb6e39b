"""The machine net: object files that do what no handler may do, and what our handlers become."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import llvmlite.binding as llvm
import pytest
from chronicle.errors import CompileError
from chronicle.hot import Handler, emit
from chronicle.hot import link as link_module
from chronicle.hot.compile import build
from chronicle.hot.frontend import translate
from chronicle.hot.link import ALLOWED_SYMBOLS, link
from chronicle.hot.machine import MachineReport, inspect_object
from elftools.elf.elffile import ELFFile

from tests.hot_books import OrderBook
from tests.hot_handlers import HANDLERS, Volatility
from tests.hot_support import SYMBOLS

X86 = "x86_64-unknown-linux-gnu"
ARM = "aarch64-unknown-linux-gnu"


def object_of(ir: str, triple: str = X86) -> bytes:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(
        opt=2, reloc="pic", codemodel="small"
    )
    module = llvm.parse_assembly(f'target triple = "{triple}"\n{ir}')
    module.verify()
    image: bytes = machine.emit_object(module)
    return image


def inspect_ir(ir: str, triple: str = X86) -> MachineReport:
    return inspect_object(object_of(ir, triple), file="handler.py", line=7)


def body(*lines: str) -> str:
    text = "\n".join(lines)
    return f"define i32 @chr_on_message(ptr %c, ptr %m) {{\n{text}\nret i32 0\n}}\n"


class Bad(NamedTuple):
    """An object file that is refused."""

    name: str
    ir: str
    construct: str
    triple: str = X86


INSTRUCTIONS = {
    "syscall": "0f05",
    "int3": "cc",
    "int 0x80": "cd80",
    "sysenter": "0f34",
    "rdtsc": "0f31",
    "rdtscp": "0f01f9",
    "cpuid": "0fa2",
    "ud2": "0f0b",
    "hlt": "f4",
    "rdrand": "480fc7f0",
    "rdseed": "480fc7f8",
    "in": "e401",
    "out": "e601",
    "wrfsbase": "f3480faed0",
    "xend": "0f01d5",
    "std": "fd",
    "cli": "fa",
    "call rax": "ffd0",
    "jmp rax": "ffe0",
    "call [rax]": "ff10",
    "jmp far": "ff28",
    "unknown": "0f04",
    # A jump over the first byte of `mov eax, 0x050f`, whose rest is `syscall`.
    "hidden": "eb01b80f050000",
    "call nowhere": "e800000100",
    "jump out": "e900000100",
    "pop rsp": "5c",
    "mov rsp, rax": "4889c4",
}
ARM_INSTRUCTIONS = {
    "svc": "010000d4",
    "hvc": "020000d4",
    "brk": "200020d4",
    "mrs cntvct": "40e03bd5",
    "msr tpidr": "40d01bd5",
    "blr": "00003fd6",
    "br": "00001fd6",
    "wfe": "5f2003d5",
    "unknown": "00000000",
    "mov sp, x0": "1f000091",
}


def patched(code: bytes, triple: str) -> bytes:
    """Return an object file whose function begins with other instructions."""
    stores = [f"store volatile i64 {n}, ptr %c" for n in range(16)]
    image = object_of(body(*stores), triple)
    section = ELFFile(io.BytesIO(image)).get_section_by_name(".text")
    assert section is not None
    start = section["sh_offset"]
    nop, ret = (b"\x90", b"\xc3") if triple == X86 else (b"\x1f\x20\x03\xd5", b"\xc0\x03\x5f\xd6")
    filled = code + nop * ((section["sh_size"] - len(ret) - len(code)) // len(nop)) + ret
    return image[:start] + filled + image[start + len(filled) :]


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_an_instruction_is_refused(name: str):
    report = inspect_object(patched(bytes.fromhex(INSTRUCTIONS[name]), X86))
    assert report.findings, name
    assert all("machine code with" in finding.construct for finding in report.findings)


@pytest.mark.parametrize("name", ARM_INSTRUCTIONS)
def test_an_instruction_of_aarch64_is_refused(name: str):
    report = inspect_object(patched(bytes.fromhex(ARM_INSTRUCTIONS[name]), ARM))
    assert report.findings, name
    assert all("machine code with" in finding.construct for finding in report.findings)


def test_instructions_that_do_nothing_are_let_pass():
    assert inspect_object(patched(b"", X86)).findings == ()
    assert inspect_object(patched(b"", ARM)).findings == ()


BAD = [
    Bad(
        "unknown symbol",
        "declare void @malloc()\n" + body("call void @malloc()"),
        "calls 'malloc'",
    ),
    Bad("interpreter", "declare void @Py_IncRef()\n" + body("call void @Py_IncRef()"), "Py_IncRef"),
    Bad(
        "indirect call",
        body("%f = load ptr, ptr %c", "call void %f()"),
        "the indirect branch `call",
    ),
    Bad(
        "indirect tail call",
        "define i32 @chr_on_message(ptr %c, ptr %m) {\n%f = load ptr, ptr %c\n"
        "%r = tail call i32 %f(ptr %c, ptr %m)\nret i32 %r\n}",
        "the indirect branch `jmp",
    ),
    Bad(
        "jump table",
        "define i32 @chr_on_message(ptr %c, ptr %m) {\n%x = load i32, ptr %c\n"
        "switch i32 %x, label %d [i32 0, label %a\ni32 1, label %b\ni32 2, label %e\n"
        "i32 3, label %f\ni32 4, label %g]\n"
        + "".join(
            f"{n}:\ncall void @chr_hot_log(i32 {i})\nret i32 {i}\n" for i, n in enumerate("abefgd")
        )
        + "}\ndeclare void @chr_hot_log(i32)\n",
        "the indirect branch `jmp",
    ),
    Bad(
        "address of an allowed function",
        "@p = constant ptr @chr_hot_log\ndeclare void @chr_hot_log()\n"
        + body("%f = load volatile ptr, ptr @p", "call void %f()"),
        "indirect branch",
    ),
    Bad(
        "recursion",
        "define i32 @chr_on_message(ptr %c, ptr %m) noinline {\n"
        "%r = call i32 @chr_on_message(ptr %m, ptr %c)\n%s = add i32 %r, 1\nret i32 %s\n}",
        "recursion in machine code",
    ),
    Bad(
        "mutual recursion",
        "define internal i32 @a(i32 %x) noinline optnone {\n%r = call i32 @b(i32 %x)\n"
        "%s = add i32 %r, 1\nret i32 %s\n}\n"
        "define internal i32 @b(i32 %x) noinline optnone {\n%r = call i32 @a(i32 %x)\n"
        "%s = add i32 %r, 1\nret i32 %s\n}\n" + body("%r = call i32 @a(i32 1)"),
        "recursion in machine code: a -> b -> a",
    ),
    Bad(
        "computed stack",
        "declare void @chr_hot_log(ptr)\n"
        + body("%n = load i64, ptr %c", "%p = alloca i8, i64 %n", "call void @chr_hot_log(ptr %p)"),
        "a stack of computed size",
    ),
    Bad(
        "computed stack on arm",
        "declare void @chr_hot_log(ptr)\n"
        + body("%n = load i64, ptr %c", "%p = alloca i8, i64 %n", "call void @chr_hot_log(ptr %p)"),
        "a stack of computed size",
        ARM,
    ),
    Bad("indirect call on arm", body("%f = load ptr, ptr %c", "call void %f()"), "`blr", ARM),
    Bad(
        "global that changes",
        "@g = global i32 5\n" + body("store i32 7, ptr @g"),
        "data that can change, in .data",
    ),
    Bad("zeroed global", "@g = internal global i64 0\n" + body("store i64 7, ptr @g"), ".bss"),
    Bad("common global", "@g = common global i64 0\n" + body("store i64 7, ptr @g"), "'g'"),
    Bad("thread local", "@g = thread_local global i32 5\n" + body("store i32 7, ptr @g"), ".tdata"),
    Bad(
        "constructor",
        "@llvm.global_ctors = appending global [1 x { i32, ptr, ptr }] "
        "[{ i32, ptr, ptr } { i32 1, ptr @f, ptr null }]\n"
        "define internal void @f() {\nret void\n}\n" + body(),
        "runs when it is loaded",
    ),
    Bad("another machine", body(), "machine code for EM_RISCV", "riscv64-unknown-linux-gnu"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_it_is_refused(bad: Bad):
    report = inspect_ir(bad.ir, bad.triple)
    assert any(bad.construct in f.construct for f in report.findings), report.findings
    assert all(f.net == "machine" and f.remedy for f in report.findings)
    assert {(f.file, f.line) for f in report.findings} == {("handler.py", 7)}


GOOD = [
    "declare double @log(double)\n"
    + body("%x = call double @log(double 2.5)", "store double %x, ptr %c"),
    "declare void @chr_hot_log(ptr)\n"
    + body("%p = alloca [3 x i64]", "call void @chr_hot_log(ptr %p)"),
    "@t = internal constant [4 x i64] [i64 1, i64 2, i64 3, i64 4]\n"
    + body(
        "%i = load i64, ptr %c", "%p = getelementptr i64, ptr @t, i64 %i", "%v = load i64, ptr %p"
    )
    + "",
    "define internal i32 @helper(i32 %x) noinline optnone {\n%y = mul i32 %x, 3\nret i32 %y\n}\n"
    + body("%r = call i32 @helper(i32 1)", "store i32 %r, ptr %c"),
]


@pytest.mark.parametrize("triple", [X86, ARM])
@pytest.mark.parametrize("ir", GOOD)
def test_what_a_handler_needs_is_let_pass(ir: str, triple: str):
    report = inspect_ir(ir, triple)
    assert report.findings == ()
    assert "chr_on_message" in report.functions
    assert set(report.undefined) <= ALLOWED_SYMBOLS


@pytest.mark.parametrize("triple", [X86, ARM])
def test_the_stack_is_that_of_the_deepest_path(triple: str):
    ir = (
        "declare void @chr_hot_log(ptr)\n"
        "define internal i32 @deep(i32 %x) noinline optnone {\n%p = alloca [1000 x i64]\n"
        "call void @chr_hot_log(ptr %p)\nret i32 %x\n}\n"
        "define internal i32 @flat(i32 %x) noinline optnone {\nret i32 %x\n}\n"
        + body("%p = alloca [100 x i64]", "call void @chr_hot_log(ptr %p)")[:-12]
        + "%a = call i32 @flat(i32 1)\n%b = call i32 @deep(i32 1)\nret i32 %b\n}"
    )
    report = inspect_ir(ir, triple)
    assert report.findings == ()
    assert 8_800 <= report.stack_bytes <= 8_800 + 128
    assert report.functions["deep"].stack_bytes >= 8_000
    assert report.functions["flat"].stack_bytes <= 16


def test_an_object_that_asks_for_more_does_not_link():
    image = object_of("declare void @malloc()\n" + body("call void @malloc()"))
    with pytest.raises(CompileError, match="calls what is not allowed: malloc"):
        link(image, undefined=["malloc"], entries=["on_message"], symbols=SYMBOLS)


@pytest.mark.parametrize("image", [b"", b"\x7fELF", b"not an object", bytes(4096)])
def test_what_is_no_object_does_not_link(image: bytes):
    with pytest.raises(CompileError, match="cannot be linked"):
        link(image, undefined=[], entries=["on_message"], symbols=SYMBOLS)


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda cls: cls.__name__)
def test_our_handlers_pass_and_their_stack_is_small(handler: type[Handler]):
    made = build(handler.SPEC)
    report = inspect_object(made.image)
    assert report.findings == ()
    assert report.code_bytes == made.code_bytes > 0
    assert report.stack_bytes == made.stack_bytes < 4_096
    assert set(report.undefined) == set(made.undefined) <= ALLOWED_SYMBOLS


@pytest.mark.parametrize("handler", [OrderBook, Volatility])
def test_our_handlers_pass_on_aarch64_too(handler: type[Handler], monkeypatch: pytest.MonkeyPatch):
    modules: list[str] = []

    class Recorder:
        """Stands for the machine, and keeps what it was to make code of."""

        def __init__(self, machine: object) -> None:
            self.machine = machine

        def __getattr__(self, name: str) -> object:
            return getattr(self.machine, name)

        def emit_object(self, module: object) -> bytes:
            modules.append(str(module))
            return b""

    machine = Recorder(link_module.target_machine())
    monkeypatch.setattr(emit, "target_machine", lambda: machine)
    emit.emit(handler.SPEC, translate(handler.SPEC))
    text = re.sub(r"^target (datalayout|triple) = .*$", "", modules[0], flags=re.MULTILINE)
    report = inspect_ir(text, ARM)
    assert report.findings == ()
    assert report.code_bytes > 0
