"""Settings files: taken in full or not at all, and everything that is wrong is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from chronicle import Sidecar
from chronicle.errors import SettingsRefused
from chronicle.message import MessageBase, bool_, char8, f64, message, u16
from chronicle.sidecar.settings import Settings, read_settings

from tests.sidecar_support import eventually


@message(1)
class Limits(MessageBase):
    ratio: f64
    name: char8
    quantity: u16
    trading: bool_


RIGHT = 'ratio = 2\nname = "alpha"\nquantity = 7\ntrading = true\n'
RANGES = {"quantity": (1, 100), "ratio": (1.0, 10.0)}


def test_a_file_that_is_right_becomes_the_message(tmp_path: Path):
    file = tmp_path / "risk.toml"
    file.write_text(RIGHT)
    expected = Limits(ratio=2.0, name=b"alpha", quantity=7, trading=True)
    assert read_settings(file, Limits, RANGES) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RIGHT + "extra = 1\n", ["extra: unknown key; there are ratio, name, quantity, trading"]),
        ("ratio = 2\n", ["name: missing", "quantity: missing", "trading: missing"]),
        (RIGHT.replace("7", "0"), ["quantity: out of range: value=0 range=1..100"]),
        (RIGHT.replace("7", "7.0"), ["quantity: expected=an integer value=7.0"]),
        (RIGHT.replace("7", "true"), ["quantity: expected=an integer value=True"]),
        (RIGHT.replace("2", "nan"), ["ratio: out of range: value=nan"]),
        (RIGHT.replace("= 2", '= "2"'), ["ratio: expected=a number value='2'"]),
        (RIGHT.replace("true", "1"), ["trading: expected=true or false value=1"]),
        (RIGHT.replace("alpha", "alphabeta"), ["name: expected=ASCII text of up to 8 bytes"]),
        (RIGHT.replace('"alpha"', "5"), ["name: expected=ASCII text"]),
        (RIGHT.replace("alpha", "älpha"), ["name: expected=ASCII text"]),
        (
            RIGHT.replace("2", "99").replace("7", "-1"),
            ["ratio: out of range: value=99 range=1.0..10.0", "quantity: out of range: value=-1"],
        ),
        ("ratio = ", ["is no TOML"]),
        ("ratio = 1\nratio = 2\n", ["is no TOML"]),
    ],
)
def test_everything_that_is_wrong_is_told_with_file_and_key(
    tmp_path: Path, text: str, told: list[str]
):
    file = tmp_path / "risk.toml"
    file.write_text(text)
    with pytest.raises(SettingsRefused) as caught:
        read_settings(file, Limits, RANGES)
    assert str(file) in str(caught.value)
    for part in told:
        assert part in str(caught.value)


def test_a_range_of_the_type_holds_without_another_one(tmp_path: Path):
    file = tmp_path / "risk.toml"
    file.write_text(RIGHT.replace("7", "70000"))
    with pytest.raises(SettingsRefused, match=r"quantity: out of range: value=70000 range=0\.\."):
        read_settings(file, Limits)


def test_bytes_that_are_no_text_and_a_file_without_end_are_refused(tmp_path: Path):
    file = tmp_path / "risk.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsRefused, match="is no TOML"):
        read_settings(file, Limits)
    with pytest.raises(SettingsRefused, match="is larger than"):
        read_settings("/dev/zero", Limits)
    with pytest.raises(SettingsRefused, match="cannot be read"):
        read_settings(tmp_path / "none", Limits)


class Sent(list[MessageBase]):
    @property
    def quantities(self) -> list[object]:
        return [getattr(message, "quantity", None) for message in self]


def test_a_change_is_sent_once_and_a_bad_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file = tmp_path / "risk.toml"
    file.write_text(RIGHT)
    sent = Sent()
    settings = Settings(file, Limits, sent.append, RANGES)
    with Sidecar() as sidecar, caplog.at_level(logging.ERROR):
        sidecar.add_service(settings.service("settings"))
        eventually(lambda: sent.quantities == [7], "the first settings")
        file.write_text(RIGHT.replace("7", "8"))
        eventually(lambda: sent.quantities == [7, 8], "a change in place")
        (tmp_path / "new").write_text(RIGHT.replace("7", "9"))
        (tmp_path / "new").rename(file)
        eventually(lambda: sent.quantities == [7, 8, 9], "another file in its place")
        file.write_text(RIGHT.replace("7", "1000"))
        eventually(lambda: not sidecar.healthy, "the complaint")
        health = sidecar.health()["settings"]
        assert f"path='{file}' quantity: out of range: value=1000" in health.detail
        file.unlink()
        eventually(lambda: "cannot be read" in sidecar.health()["settings"].detail, "no file")
        file.write_text(RIGHT.replace("7", "10"))
        eventually(lambda: sidecar.healthy, "health")
    assert sent.quantities == [7, 8, 9, 10]
    assert settings.taken == 4
    assert "the settings stay as they were" in caplog.text
