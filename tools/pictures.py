"""Pictures of a report for the documentation, taken with a real browser.

    chronicle bench --report out.html
    python -m tools.pictures out.html

writes docs/pictures/report-*.png: desktop and phone, light and dark. Needs Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = Path(__file__).resolve().parents[1] / "docs" / "pictures"
_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")


class View(NamedTuple):
    """What a reader has before them."""

    name: str
    width: int
    height: int
    is_dark: bool


VIEWS: Final = (
    View("desktop-light", 1000, 1900, False),
    View("desktop-dark", 1000, 1900, True),
    View("phone-light", 390, 1900, False),
    View("phone-dark", 390, 1900, True),
)


def take(browser: str, page: Path, view: View, target: Path) -> None:
    """Take one picture, with a profile that is thrown away and without a network."""
    with tempfile.TemporaryDirectory(prefix="chronicle-browser-") as profile:
        command = [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}",
            f"--window-size={view.width},{view.height}",
            f"--blink-settings=preferredColorScheme={0 if view.is_dark else 1}",
            f"--screenshot={target}",
            page.absolute().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> int:
    """Take them all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("page", type=Path, help="a report")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to put the pictures")
    options = parser.parse_args()
    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        print(f"no browser found: looked for {', '.join(_BROWSERS)}; install one", file=sys.stderr)
        return 1
    options.folder.mkdir(parents=True, exist_ok=True)
    for view in VIEWS:
        target = options.folder / f"report-{view.name}.png"
        take(browser, options.page, view, target)
        print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
