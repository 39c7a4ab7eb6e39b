"""The command `chronicle`, used as people and scripts use it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import chronicle
import pytest
from chronicle.cli import main
from chronicle.cli.machine import file_system_of
from chronicle.cli.program import build_parser
from chronicle.feeds.generate import MarketGenerator, write_pcap
from chronicle.message import MessageBase, Scale, char8, f64, i64, message, u32

from tests.queue_support import fill, fill_segments, overwrite, publisher, segment_file, subscriber
from tools.site import subcommands

COMMANDS = [
    ["import"],
    ["inspect"],
    ["tail"],
    ["top"],
    ["doctor"],
    ["audit"],
    ["bench"],
    ["reader"],
    ["reader", "rm"],
    ["retain"],
    ["restore"],
    ["replay"],
    ["report"],
    ["completion"],
]
ROOT = Path(__file__).resolve().parents[2]
EXECUTABLE = Path(sys.executable).with_name("chronicle")


@message(21)
class Level(MessageBase):
    price: Annotated[i64, Scale(4)]
    symbol: char8
    size: u32


@message(22)
class Rate(MessageBase):
    value: f64


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "chronicle.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


class Cli:
    """Runs the command in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        """Return what was printed on stdout; what was printed on stderr is in `errors`."""
        found = main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        self.errors = captured.err
        assert found == code, captured
        return captured.out

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(capsys)


def levels(path: Path, count: int) -> None:
    with publisher(path, schema=[Level]) as writer:
        for number in range(1, count + 1):
            writer.publish(
                Level(price=number * 12_345, symbol=b"AAPL", size=number), timestamp_ns=number
            )


# --- The program ---


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_examples(cli: Cli, command: Sequence[str]):
    text = cli(*command, "--help")
    assert "Examples:" in text
    assert f"chronicle {' '.join(command)}" in text.partition("Examples:")[2]


def examples_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the examples that a command's help shows, each with its pipe and its remark."""
    text = (parser.epilog or "").partition("Examples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("name", "command"), list(subcommands(build_parser())), ids=lambda value: str(value)[:20]
)
def test_the_examples_of_every_command_parse(name: str, command: argparse.ArgumentParser):
    examples = examples_of(command)
    if any(isinstance(action, argparse._SubParsersAction) for action in command._actions):
        return  # The commands below it have them.
    assert examples, f"chronicle {name} --help has no examples"
    for example in examples:
        # Two spaces begin a remark; a pipe, a redirection or a shell's quotes are not for us.
        found = re.search(r"chronicle (.*?)(?:   .*| [|>] .*|\)\"| &&.*)?$", example)
        assert found is not None, example
        assert found[1].startswith(name), example
        build_parser().parse_args(shlex.split(found[1]))


def test_help_names_every_command_and_the_exit_codes(cli: Cli):
    text = cli("--help")
    for command in COMMANDS:
        assert f"  {command[0]} " in text
    assert "Exit codes:" in text


def test_help_imports_neither_numpy_nor_asyncio_nor_msgspec():
    program = "import sys; from chronicle.cli import main; main(['--help']); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    modules = set(found.stdout.splitlines()[-1].split())
    assert modules.isdisjoint({"asyncio", "msgspec", "numpy", "chronicle.feeds"})
    assert "rich" in modules


def test_json_output_does_not_load_rich(path: Path):
    levels(path, 1)
    program = (
        "import sys; from chronicle.cli import main; "
        "main(['tail', sys.argv[1], '--json']); print(*sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True
    )
    assert "rich" not in found.stdout.splitlines()[-1].split()


def test_the_version_is_that_of_the_package(cli: Cli):
    assert cli("--version") == f"chronicle {chronicle.__version__}\n"


def test_the_installed_command_works():
    found = subprocess.run([EXECUTABLE, "--version"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, f"chronicle {chronicle.__version__}\n")


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "chronicle", "--version"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, f"chronicle {chronicle.__version__}\n")


def test_wrong_usage_is_exit_code_2(cli: Cli):
    assert cli("tail", code=2) == ""
    assert "required: QUEUE" in cli.errors
    cli("no-such-command", code=2)
    assert cli(code=2) == ""
    for command in COMMANDS:
        assert f"  {command[0]} " in cli.errors


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_and_names_pages_that_are_there(
    cli: Cli, command: Sequence[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    text, _, examples = cli(*command, "--help").partition("Examples:")
    assert max(map(len, text.splitlines())) <= 80
    for page in re.findall(r"docs/[\w/-]+\.md", text + examples):
        assert (ROOT / page).exists(), page


@pytest.mark.parametrize("command", ["inspect", "tail", "doctor"])
def test_a_path_without_a_queue_is_one_line_with_the_cure(cli: Cli, tmp_path: Path, command: str):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing" / "below"):
        assert cli(command, path, code=1) == ""
        assert cli.errors.startswith(f"chronicle: '{path}' is not a queue: ")
        assert "check the path" in cli.errors
        assert cli.errors.count("\n") == 1


def test_verbose_shows_the_traceback_wherever_it_stands(cli: Cli, tmp_path: Path):
    cli("inspect", tmp_path, "-v", code=1)
    assert "Traceback" in cli.errors
    cli("-v", "inspect", tmp_path, code=1)
    assert "Traceback" in cli.errors


@pytest.mark.parametrize("arguments", [["--help"], ["inspect"], ["doctor"]], ids=str)
def test_no_color_means_no_escape_codes(path: Path, arguments: list[str]):
    levels(path, 3)
    where = [] if arguments == ["--help"] else [str(path)]
    plain = run(*arguments, *where, NO_COLOR="1", FORCE_COLOR="1")
    assert "\x1b" not in plain.stdout + plain.stderr
    assert "\x1b" in run(*arguments, *where, FORCE_COLOR="1", NO_COLOR="", TERM="xterm").stdout


# --- import ---


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "market.pcap"
    write_pcap(path, [MarketGenerator(venue=0), MarketGenerator(venue=1)], count=2_000)
    return path


def test_import_tells_what_was_in_the_capture_and_where_it_is_now(
    cli: Cli, capture: Path, path: Path
):
    report = cli.json("import", capture, path)
    assert report["feed"] == "iex"
    assert report["messages"] == report["published"] == 4_000
    assert {(t["name"], t["wire"]) for t in report["types"]} == {
        ("QuoteUpdate", "Q"),
        ("Trade", "T"),
    }
    assert sum(t["count"] for t in report["types"]) == 4_000
    assert (report["first_seq"], report["last_seq"]) == (1, 4_000)
    assert (report["gaps"], report["restarts"], report["truncated"]) == (0, 0, False)
    with subscriber(path, None) as reader:
        assert sum(1 for _ in reader) == 4_000
    facts = chronicle.inspect(path)
    assert facts["durable_seq"] == 4_000


def test_import_shows_the_same_counts_to_people(cli: Cli, capture: Path, path: Path):
    report = cli.json("import", capture, path)
    text = cli("import", capture, path)
    assert "sequence 4,001 to 8,000" in text
    for entry in report["types"]:
        row = next(line for line in text.splitlines() if line.startswith(entry["name"]))
        assert f"{entry['count']:,}" in row.split()
    for name in ("packets", "messages", "restarts", "gaps"):
        assert [name, f"{report[name]:,}"] in [line.split() for line in text.splitlines()]


def test_import_of_text_has_no_column_for_codes_on_the_wire(cli: Cli, tmp_path: Path, path: Path):
    capture = tmp_path / "btcusdt.txt"
    trade = {"e": "trade", "E": 12, "T": 11, "s": "BTCUSDT", "t": 5, "p": "1.5", "q": "3"}
    line = {"stream": "btcusdt@trade", "data": {**trade, "X": "MARKET", "m": True}}
    capture.write_text(f"1 {json.dumps(line)}\n")
    text = cli("import", capture, path)
    assert "Trade" in text
    assert "wire" not in text


def test_import_of_a_cut_capture_is_a_warning_and_not_an_error(cli: Cli, capture: Path, path: Path):
    capture.write_bytes(capture.read_bytes()[:-5])
    report = cli.json("import", capture, path)
    assert report["truncated"] is True
    assert "ends in the middle of a record" in cli.errors
    assert 3_900 < report["messages"] < 4_000


def test_import_refuses_a_queue_whose_schema_says_otherwise(cli: Cli, capture: Path, path: Path):
    @message(0x8154)
    class Trade(MessageBase):
        price: f64

    publisher(path, schema=[Trade]).close()
    assert cli("import", capture, path, code=1) == ""
    assert "give a changed message a new type id" in cli.errors
    with subscriber(path, None) as reader:
        assert reader.next() is None


def test_import_makes_no_queue_of_what_is_not_a_capture(cli: Cli, tmp_path: Path, path: Path):
    notes = tmp_path / "notes"
    notes.write_text("buy milk\n")
    cli("import", notes, path, code=1)
    assert "cannot tell the feed" in cli.errors
    cli("import", tmp_path / "absent", path, code=1)
    assert cli.errors.endswith("No such file or directory; check the path\n")
    cli("import", tmp_path, path, code=1)
    assert "name a file, not a directory" in cli.errors
    assert not path.exists()


def test_import_says_when_options_of_creation_come_too_late(cli: Cli, capture: Path, path: Path):
    publisher(path).close()
    cli("import", capture, path, "--checksum", "--segment-bytes", "1MiB")
    assert "--segment-bytes has no effect: the queue exists, with 64 KiB" in cli.errors
    assert "--checksum has no effect" in cli.errors


def test_import_creates_the_queue_as_told(cli: Cli, capture: Path, path: Path):
    cli("import", capture, path, "--checksum", "--segment-bytes", "1MiB")
    facts = chronicle.inspect(path)
    assert (facts["checksum"], facts["segment_bytes"]) == (True, 1 << 20)
    assert {0x8151, 0x8154} <= chronicle.Queue(path).types.keys()


@pytest.mark.parametrize("size", ["100000", "1KiB", "2GiB"])
def test_import_explains_what_a_segment_size_may_be(cli: Cli, capture: Path, path: Path, size: str):
    cli("import", capture, path, "--segment-bytes", size, code=1)
    assert "expected=a power of two, 64KiB to 1GiB" in cli.errors


def test_import_into_a_queue_with_a_writer_names_its_pid(cli: Cli, capture: Path, path: Path):
    with publisher(path):
        cli("import", capture, path, code=1)
    assert f"pid={os.getpid()}" in cli.errors


# --- inspect ---


def test_inspect_shows_what_the_library_says_and_the_schema(cli: Cli, path: Path):
    levels(path, 5)
    with subscriber(path, "risk") as reader:
        reader.next()
        reader.commit()
        shown = cli.json("inspect", path)
    facts = chronicle.inspect(path)
    assert shown["queue_id"] == facts["queue_id"]
    assert (shown["first_seq"], shown["next_seq"], shown["newest_ns"]) == (1, 6, 5)
    assert shown["schema"] == [Level.schema]
    assert [(r["name"], r["lag_messages"]) for r in shown["readers"]] == [("risk", 4)]
    text = cli("inspect", path)
    for part in ("1 to 5 (5 messages)", "risk", "Level", "price i64/10^4", facts["queue_id"]):
        assert part in text


def test_inspect_promises_no_disk_where_there_is_none(cli: Cli, tmp_path: Path, path: Path):
    for place in (path, tmp_path / "ticks"):
        with publisher(place) as writer:
            writer.append(1, b"x")
            writer.flush()
        kind = file_system_of(place).kind
        expected = f"flushed, to a {kind}" if kind == "tmpfs" else "on disk for certain"
        assert re.search(rf"{expected} +up to 1\b", cli("inspect", place))


def test_inspect_shortens_a_long_list_of_segments(cli: Cli, path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 30)
    assert "more (--all)" in cli("inspect", path)
    everything = cli("inspect", path, "--all")
    assert "more (--all)" not in everything
    assert len([x for x in everything.splitlines() if " sealed " in x]) == 30


def test_inspect_shows_a_queue_that_was_never_written(cli: Cli, path: Path):
    publisher(path).close()
    text = cli("inspect", path)
    assert "none (the next one is 1)" in text
    assert "no schema" in text
    assert "no registered readers" in text


# --- tail ---


def tail_json(cli: Cli, *arguments: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli("tail", *arguments, "--json").splitlines()]


def test_tail_prints_the_last_ten_messages_decoded(cli: Cli, path: Path):
    levels(path, 25)
    lines = cli("tail", path).splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(16, 26))
    assert lines[-1].split() == [
        "25",
        "1970-01-01T00:00:00.000000025Z",
        "Level",
        "price=30.8625",
        "symbol=AAPL",
        "size=25",
    ]


def test_tail_prints_json_with_exact_decimals(cli: Cli, path: Path):
    levels(path, 2)
    assert tail_json(cli, path, "-n", "1") == [
        {
            "seq": 2,
            "time": "1970-01-01T00:00:00.000000002Z",
            "timestamp_ns": 2,
            "type_id": 21,
            "type": "Level",
            "fields": {"price": "2.4690", "symbol": "AAPL", "size": 2},
        }
    ]


def test_tail_prints_small_decimals_without_an_exponent(cli: Cli, path: Path):
    @message(23)
    class Tiny(MessageBase):
        quantity: Annotated[i64, Scale(8)]

    with publisher(path, schema=[Tiny]) as writer:
        writer.publish(Tiny(quantity=0))
    assert "quantity=0.00000000" in cli("tail", path)
    assert tail_json(cli, path)[0]["fields"] == {"quantity": "0.00000000"}


def test_tail_json_stays_json_where_a_number_is_none(cli: Cli, path: Path):
    with publisher(path, schema=[Rate]) as writer:
        for value in (float("nan"), float("inf"), 0.5):
            writer.publish(Rate(value=value))
    assert [line["fields"]["value"] for line in tail_json(cli, path)] == ["nan", "inf", 0.5]


def test_tail_shows_bytes_of_unknown_types(cli: Cli, path: Path):
    with publisher(path) as writer:
        writer.append(9, b"hi\x1b[2J")
        writer.append(9, b"")
        writer.append(9, bytes(100))
    first, second, third = cli("tail", path).splitlines()
    assert first.endswith("type 9           68 69 1b 5b 32 4a  |hi.[2J|")
    assert second.endswith("(empty)")
    assert third.endswith("... 100 bytes")
    assert tail_json(cli, path)[0]["hex"] == "68691b5b324a"


def test_inspect_does_not_let_names_steer_the_terminal(cli: Cli, path: Path):
    with publisher(path) as writer:
        fill(writer, 3)
    (path / "readers" / "\x1b[2J.cursor").write_bytes(b"no cursor")
    (path / "readers" / "\x9b2J.cursor").write_bytes(bytes(4096))
    text = cli("inspect", path)
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert r"\x1b[2J" in text


def test_tail_does_not_let_text_steer_the_terminal(cli: Cli, path: Path):
    with publisher(path, schema=[Level]) as writer:
        writer.publish(Level(price=1, symbol=b"\x1b[2J\n", size=1))
    text = cli("tail", path)
    assert "\x1b" not in text
    assert r"symbol=\x1b[2J\n" in text


def test_tail_shows_a_message_that_is_shorter_than_its_schema_as_bytes(cli: Cli, path: Path):
    with publisher(path, schema=[Level]) as writer:
        writer.append(Level.type_id, b"abc")
    assert tail_json(cli, path)[0]["hex"] == "616263"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", [1, 2, 3]),
        ("4", [4, 5, 6]),
        ("1970-01-01T00:00:00.000000005Z", [5, 6, 7]),
        ("1970-01-01 00:00:00.000000005", [5, 6, 7]),
        ("1970-01-01T01:00:00.000000005+01:00", [5, 6, 7]),
        ("1970-01-01", [1, 2, 3]),
        ("latest", []),
        ("26", []),
    ],
)
def test_tail_starts_where_it_is_told(cli: Cli, path: Path, start: str, expected: list[int]):
    levels(path, 25)
    found = tail_json(cli, path, "--from", start, "-n", "3")
    assert [line["seq"] for line in found] == expected


def test_tail_from_a_place_goes_to_the_end(cli: Cli, path: Path):
    levels(path, 25)
    assert [line["seq"] for line in tail_json(cli, path, "--from", "22")] == [22, 23, 24, 25]


@pytest.mark.parametrize("start", ["yesterday", "12:00", "1970-13-01", "-5", ""])
def test_tail_explains_what_a_place_is(cli: Cli, path: Path, start: str):
    levels(path, 1)
    cli("tail", path, f"--from={start}", code=2)
    assert "write a sequence number, a time like" in cli.errors


def test_tail_refuses_a_number_that_was_not_written(cli: Cli, path: Path):
    levels(path, 3)
    cli("tail", path, "--from", "99", code=1)
    assert "sequence=99 next=4" in cli.errors


def test_tail_finds_the_last_messages_of_a_rare_type(cli: Cli, path: Path):
    with publisher(path, schema=[Level, Rate]) as writer:
        for number in range(3):
            writer.publish(Rate(value=float(number)))
            fill(writer, 500)
        assert writer.next_seq == 1504
    found = tail_json(cli, path, "--type", "rate", "-n", "2")
    assert [line["seq"] for line in found] == [502, 1003]
    assert [line["seq"] for line in tail_json(cli, path, "--type", "22")] == [1, 502, 1003]
    assert tail_json(cli, path, "--type", "Level") == []
    cli("tail", path, "--type", "Bar", code=1)
    assert "expected=one of the schema (Level, Rate)" in cli.errors


def test_tail_shows_missing_messages_where_they_are_missing(cli: Cli, path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 4)
    chronicle.apply_retention(path, bytes_max=2 << 16)
    first = chronicle.inspect(path)["segments"][0]["first_seq"]
    lines = cli("tail", path, "--from", "earliest", "-n", "1").splitlines()
    assert lines[0] == f"--- messages 1 to {first - 1} are missing: retention ---"
    assert lines[1].split()[0] == str(first)
    gap, _ = tail_json(cli, path, "--from", "1", "-n", "1")
    assert gap == {"gap": {"first_missing": 1, "next": first, "reason": "retention"}}
    assert "missing" not in cli("tail", path, "-n", "1000")


def test_tail_leaves_no_trace(cli: Cli, path: Path):
    levels(path, 3)
    cli("tail", path)
    assert chronicle.inspect(path)["readers"] == []


def test_tail_stops_at_damage_and_says_so(cli: Cli, path: Path):
    levels(path, 3)
    # The second record's number.
    overwrite(segment_file(path), 4224 + 56 + 8, b"\xff")
    out = cli("tail", path, "--from", "earliest", code=1)
    assert out.count("\n") == 1
    assert "is damaged at position=" in cli.errors


def follow(path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "chronicle.cli", "tail", "-f", str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_tail_follows_a_writer_until_ctrl_c(path: Path):
    with publisher(path, schema=[Rate]) as writer:
        writer.publish(Rate(value=1.0))
        with follow(path) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "value=1.0" in process.stdout.readline()
            writer.publish(Rate(value=2.0))
            assert "value=2.0" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.stdout.read() == ""
            assert process.stderr.read() == ""
        assert process.returncode == 0


def test_tail_that_follows_ends_when_nobody_reads_it_any_more(path: Path):
    levels(path, 1)
    with follow(path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""


def test_a_closed_pipe_ends_the_output_without_a_word(path: Path):
    with publisher(path) as writer:
        fill(writer, 20_000)
    command = (
        f"{sys.executable} -m chronicle.cli tail {path} --from 1 | head -1; echo ${{PIPESTATUS[0]}}"
    )
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 2
    assert found.stdout.splitlines()[1] == "141"


def test_tail_follows_until_the_queue_is_removed(path: Path):
    import shutil

    levels(path, 1)
    with follow(path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        shutil.rmtree(path)
        assert process.wait(timeout=60) == 1
        assert "was removed" in process.stderr.read()


# --- doctor ---


def findings(cli: Cli, path: Path, *arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
    report = cli.json("doctor", path, *arguments, code=code)
    assert report["healthy"] == (code == 0)
    return {finding["code"]: finding for finding in report["findings"]}


def test_doctor_finds_nothing_wrong_with_a_queue_in_use(cli: Cli, path: Path):
    with (
        chronicle.Provisioner() as provisioner,
        publisher(path, schema=[Level], provisioner=provisioner) as writer,
    ):
        writer.publish(Level(price=1, symbol=b"A", size=1))
        assert findings(cli, path, "--verify").keys() <= {"on-disk"}
        text = cli("doctor", path, "--verify")
    assert "nothing is wrong" in text
    assert "verified 1 message: 1 to 1" in text


def test_doctor_says_why_each_segment_is_there(cli: Cli, path: Path):
    with publisher(path) as writer, subscriber(path, "slow") as slow:
        fill_segments(writer, 2)
        while slow.position >> 16 < 2:
            slow.next()
        slow.commit()
        fill_segments(writer, 2)
        held = cli.json("doctor", path, code=1)["segments"]
        text = cli("doctor", path, code=1)
    assert held == [
        {"first": 0, "last": 1, "reason": "no policy", "readers": []},
        {"first": 2, "last": 3, "reason": "reader", "readers": ["slow"]},
        {"first": 4, "last": 4, "reason": "tail", "readers": []},
    ]
    assert "live reader 'slow' has not committed it" in text
    assert "no retention policy has let it go" in text
    assert "is being written" in text


def test_doctor_finds_a_live_reader_that_lags(cli: Cli, path: Path):
    with publisher(path) as writer, subscriber(path, "slow"):
        next_seq = fill_segments(writer, 2)
        found = findings(cli, path, code=1)["reader-lags"]
    assert found["severity"] == "warning"
    assert f"reader 'slow' (pid {os.getpid()}) is {next_seq - 1} messages" in found["text"]
    assert "commit more often" in found["cure"]


def test_doctor_finds_a_reader_that_is_gone_and_its_cure_works(cli: Cli, path: Path):
    levels(path, 5)
    subscriber(path, "gone").close()
    found = findings(cli, path)["reader-stale"]
    assert "'gone' is not running; 5 messages" in found["text"]
    assert found["cure"].endswith(f"chronicle reader rm {path} gone")
    cli("reader", "rm", path, "other", code=1)
    assert "found='other' expected=gone" in cli.errors
    assert cli("reader", "rm", path, "gone") == "forgot reader 'gone'\n"
    cli("reader", "rm", path, "gone", code=1)
    assert "expected=no name: it has no readers" in cli.errors
    assert "reader-stale" not in findings(cli, path)


def test_doctor_finds_that_nobody_writes(cli: Cli, path: Path):
    levels(path, 1)
    found = findings(cli, path)["no-writer"]
    assert found["severity"] == "note"
    assert f"pid {os.getpid()}" in found["text"]


def test_doctor_finds_a_writer_that_was_killed(cli: Cli, path: Path):
    program = (
        "import sys, time, chronicle; w = chronicle.Queue.open_publisher(sys.argv[1]); "
        "w.append(1, b'x'); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert "no-writer" not in findings(cli, path)
        writer.kill()
        writer.wait()
    assert f"pid {writer.pid}" in findings(cli, path)["no-writer"]["text"]


def test_doctor_finds_damage_and_the_way_past_it_works(cli: Cli, path: Path):
    with publisher(path, checksum=True) as writer:
        fill_segments(writer, 2)
    # A payload byte of the first message.
    overwrite(segment_file(path), 4224 + 32 + 5, b"\xff")
    assert "damage" not in findings(cli, path)
    found = findings(cli, path, "--verify", code=1)["damage"]
    assert "checksum of sequence=1 does not hold" in found["text"]
    after = chronicle.inspect(path)["segments"][1]["first_seq"]
    assert found["cure"].endswith(f"chronicle tail {path} --from {after}")
    assert tail_json(cli, path, "--from", str(after), "-n", "1")[0]["seq"] == after
    assert "1 problem found" in cli("doctor", path, "--verify", code=1)


def test_doctor_finds_a_missing_segment_without_reading(cli: Cli, path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 3)
    segment_file(path, 1).unlink()
    found = findings(cli, path, code=1)["segment-missing"]
    assert found["severity"] == "error"
    held = cli.json("doctor", path, code=1)["segments"]
    assert [(hold["first"], hold["last"]) for hold in held] == [(0, 0), (2, 2), (3, 3)]
    assert found["text"].endswith(": 1")
    assert "missing" in findings(cli, path, "--verify", code=1)["damage"]["text"]


def test_doctor_finds_a_segment_that_cannot_be_read(cli: Cli, path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 2)
    overwrite(segment_file(path, 1), 0, b"WRONG")
    found = findings(cli, path, code=1)["segment-unreadable"]
    assert "magic" in found["text"]
    assert "unreadable" in cli("inspect", path)


def test_doctor_finds_a_damaged_tail(cli: Cli, path: Path):
    levels(path, 3)
    os.truncate(segment_file(path), 100)
    codes = findings(cli, path, code=1)
    assert {"segment-unreadable", "end-unreadable"} <= codes.keys()


def test_doctor_finds_a_damaged_control_block(cli: Cli, path: Path):
    levels(path, 1)
    overwrite(path / "control", 12, b"\xff")
    found = findings(cli, path, code=1)
    assert list(found) == ["unreadable"]
    assert "header_crc" in found["unreadable"]["text"]


def test_doctor_finds_a_damaged_cursor_and_its_cure_works(cli: Cli, path: Path):
    levels(path, 1)
    subscriber(path, "risk").close()
    overwrite(path / "readers" / "risk.cursor", 0, b"WRONG")
    found = findings(cli, path, code=1)["cursor-unreadable"]
    subprocess.run(found["cure"], shell=True, check=True)
    assert "cursor-unreadable" not in findings(cli, path)


def test_doctor_finds_files_that_were_set_aside_and_its_cure_works(cli: Cli, path: Path):
    levels(path, 1)
    (path / "segments" / f"{0:020}.0.cut").write_bytes(b"lost")
    found = findings(cli, path, code=1)["set-aside"]
    subprocess.run(found["cure"].partition(": ")[2], shell=True, check=True)
    assert "set-aside" not in findings(cli, path)


def test_doctor_finds_loose_permissions_and_its_cure_works(cli: Cli, path: Path):
    levels(path, 1)
    segment_file(path).chmod(0o644)
    found = findings(cli, path, code=1)["permissions"]
    assert "segments/00000000000000000000.seg" in found["text"]
    subprocess.run(found["cure"], shell=True, check=True)
    assert "permissions" not in findings(cli, path)
    assert stat.S_IMODE(segment_file(path).stat().st_mode) == 0o600


def test_doctor_accepts_a_group_readable_queue(cli: Cli, path: Path):
    publisher(path, group_readable=True).close()
    assert "permissions" not in findings(cli, path)


def test_doctor_finds_links(cli: Cli, path: Path, folder: Path):
    levels(path, 1)
    (path / "readers" / "odd").symlink_to(folder)
    assert "'readers/odd'" in findings(cli, path, code=1)["foreign-files"]["text"]


def test_doctor_counts_rolls_that_were_done_inline(cli: Cli, path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 3)
    found = findings(cli, path)["rolls-inline"]
    assert "3 of 3 rolls" in found["text"]
    assert "Provisioner" in found["cure"]


def test_doctor_finds_a_table_that_is_nearly_full_and_its_cure_works(cli: Cli, path: Path):
    with publisher(path, segments_max=8) as writer:
        fill_segments(writer, 7)
        found = findings(cli, path, code=1)["table-nearly-full"]
        assert "8 of at most 8 segments" in found["text"]
        subprocess.run(
            found["cure"].replace("chronicle", str(EXECUTABLE), 1), shell=True, check=True
        )
        assert "table-nearly-full" not in findings(cli, path)


def test_doctor_finds_a_schema_that_cannot_be_read(cli: Cli, path: Path):
    levels(path, 1)
    (path / "queue.json").write_text("{")
    assert findings(cli, path, code=1)["schema-unreadable"]["severity"] == "error"


def test_doctor_finds_that_there_is_no_schema(cli: Cli, path: Path):
    publisher(path).close()
    assert findings(cli, path)["no-schema"]["severity"] == "note"


def test_doctor_knows_memory_from_disk(tmp_path: Path):
    from chronicle.cli.findings import check_place
    from chronicle.cli.machine import FileSystem, file_system_of

    assert list(check_place(FileSystem("tmpfs", "/dev/shm"))) == []
    assert [f.code for f in check_place(FileSystem("ext4", "/"))] == ["on-disk"]
    assert [f.severity for f in check_place(FileSystem("nfs4", "/mnt"))] == ["warning"]
    assert file_system_of("/proc").kind == "proc"


def test_doctor_finds_that_there_is_little_room(
    cli: Cli, path: Path, monkeypatch: pytest.MonkeyPatch
):
    levels(path, 1)
    real = os.statvfs(path)
    full = os.statvfs_result([*real[:3], 0, 0, *real[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert "append raises DiskFull" in findings(cli, path, code=1)["little-room"]["text"]


# --- reader, retain, bench ---


def test_a_reader_that_runs_is_not_forgotten(cli: Cli, path: Path):
    levels(path, 1)
    with subscriber(path, "risk"):
        cli("reader", "rm", path, "risk", code=1)
        assert "is open already" in cli.errors
    cli("reader", "rm", path, "typo", code=1)
    assert "expected=risk" in cli.errors


def test_retain_deletes_by_size_and_says_who_holds_the_rest(cli: Cli, path: Path):
    with publisher(path) as writer:
        fill_segments(writer, 5)
    with subscriber(path, "slow") as slow:
        while slow.position >> 16 < 2:
            slow.next()
        slow.commit()
        text = cli("retain", path, "--bytes", "64KiB")
    assert text.splitlines() == [
        "deleted 2 segments (128 KiB)",
        "reader 'slow' holds 3 more segments: it is live and has not committed them",
    ]
    report = cli.json("retain", path, "--bytes", "64KiB")
    assert (report["segments_deleted"], report["held_by"]) == (3, None)


def test_retain_deletes_by_age(cli: Cli, path: Path):
    with publisher(path) as writer:
        for _ in range(40):
            writer.append(1, bytes(4_000), timestamp_ns=time.time_ns() - 3_600 * 10**9)
    assert cli("retain", path, "--age", "2h") == "deleted 0 segments (0 B)\n"
    assert cli("retain", path, "--age", "30m") == "deleted 2 segments (128 KiB)\n"


def test_retain_without_a_policy_deletes_nothing(cli: Cli, path: Path):
    levels(path, 1)
    cli("retain", path, code=1)
    assert "give --bytes, --age or both" in cli.errors
    cli("retain", path, "--bytes", "much", code=2)
    assert "write for example 64MiB" in cli.errors


def test_bench_puts_a_floor_beside_every_figure(cli: Cli, folder: Path):
    report = cli.json("bench", "--path", folder)
    names = [figure["name"] for figure in report["figures"]]
    assert {"append(bytes)", "next()", "next().payload", "commit()", "append_many"} <= set(names)
    for figure in report["figures"]:
        assert figure["floor"] > 0
        assert figure["value"] > 0
        assert figure["floor_name"]
    assert report["machine"].keys() >= {"cpu", "kernel", "file system", "clock source"}
    assert list(folder.iterdir()) == []


def test_bench_refuses_a_directory_that_is_not_there(cli: Cli, folder: Path):
    cli("bench", "--path", folder / "nowhere", code=1)
    assert "choose one with --path" in cli.errors
