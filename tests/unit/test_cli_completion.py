"""Completion in shells: the scripts are run by the shells that they are for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chronicle.cli.program import build_parser

from tools.site import subcommands

#: Not to read what the user has set up.
FLAGS = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}
CHRONICLE = [sys.executable, "-W", "error", "-m", "chronicle.cli"]


def script(shell: str) -> str:
    run = subprocess.run(
        [*CHRONICLE, "completion", shell], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return run.stdout


def in_shell(shell: str, program: str, folder: Path) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"needs the shell {shell}")
    run = subprocess.run(
        [shell, *FLAGS[shell], "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def bash_completes(folder: Path, *words: str) -> list[str]:
    """Return what bash would offer for the last of the words."""
    (folder / "chronicle.bash").write_text(script("bash"), encoding="utf-8")
    line = " ".join(f"'{word}'" for word in words)
    program = f"""
        source chronicle.bash
        COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
        COMP_LINE="{" ".join(words)}"; COMP_POINT=${{#COMP_LINE}}
        function=$(complete -p chronicle | sed -E 's/.* -F ([^ ]+).*/\\1/')
        $function chronicle "{words[-1]}" "{words[-2]}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return sorted(in_shell("bash", program, folder).split())


def test_bash_completes_every_command(tmp_path: Path):
    commands = {name.split()[0] for name, _ in subcommands(build_parser())}
    assert commands <= set(bash_completes(tmp_path, "chronicle", ""))
    assert bash_completes(tmp_path, "chronicle", "ins") == ["inspect"]


def test_bash_completes_commands_of_commands(tmp_path: Path):
    assert "rm" in bash_completes(tmp_path, "chronicle", "reader", "")


def test_bash_completes_options(tmp_path: Path):
    assert bash_completes(tmp_path, "chronicle", "tail", "--fo") == ["--follow"]
    assert bash_completes(tmp_path, "chronicle", "doctor", "--ver") == ["--verbose", "--verify"]


def test_bash_completes_choices(tmp_path: Path):
    found = bash_completes(tmp_path, "chronicle", "import", "--feed", "")
    assert {"binance", "iex", "itch", "mold"} <= set(found)


def test_bash_completes_directories_where_a_queue_is_meant(tmp_path: Path):
    (tmp_path / "ticks").mkdir()
    (tmp_path / "ticks.txt").touch()
    assert bash_completes(tmp_path, "chronicle", "inspect", "ti") == ["ticks"]


def test_bash_completes_files_where_a_capture_is_meant(tmp_path: Path):
    (tmp_path / "day.pcap").touch()
    assert bash_completes(tmp_path, "chronicle", "import", "da") == ["day.pcap"]


def test_zsh_takes_its_script(tmp_path: Path):
    (tmp_path / "_chronicle").write_text(script("zsh"), encoding="utf-8")
    program = """
        fpath=($PWD $fpath)
        autoload -Uz compinit && compinit -u -d ./dump
        autoload -U +X _chronicle
        print -r -- $_comps[chronicle] $+functions[_chronicle]
    """
    assert in_shell("zsh", program, tmp_path) == "_chronicle 1\n"


def test_fish_completes_commands_and_options(tmp_path: Path):
    (tmp_path / "chronicle.fish").write_text(script("fish"), encoding="utf-8")
    offered = in_shell(
        "fish", "source chronicle.fish; complete -C 'chronicle ins'", tmp_path
    ).splitlines()
    assert [line.split("\t")[0] for line in offered] == ["inspect"]
    options = in_shell("fish", "source chronicle.fish; complete -C 'chronicle tail --fo'", tmp_path)
    assert options.startswith("--follow")


def test_an_unknown_shell_is_refused():
    run = subprocess.run([*CHRONICLE, "completion", "tcsh"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "bash" in run.stderr
