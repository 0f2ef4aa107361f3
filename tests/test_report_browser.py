"""The report in a real browser: no console error, no sideways scrolling."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_run import DIGITS, sample_run
from test_report import HOSTILE, read

from tutelage.report import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("/usr/bin/chromium")


def chromium(path: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    switches = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}", "--dump-dom",
    ]  # fmt: skip
    command = [CHROMIUM, *switches, *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_chromium_opens_it_without_a_console_error(tmp_path):
    sample_run(tmp_path / "run", classes=HOSTILE)
    report = build_report(tmp_path / "run")
    done = chromium(report, tmp_path / "profile")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "What ships" in done.stdout
    trap = tmp_path / "trap.html"  # the same check does see an error, and a blocked script
    trap.write_text(report.read_text(encoding="utf-8") + "<script>nothing()</script>")
    assert "CONSOLE" in chromium(trap, tmp_path / "profile").stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_phone_does_not_scroll_sideways(tmp_path):
    names = ("an-unusually-long-class-name-without-any-space-in-it", *DIGITS[1:])
    text = read(sample_run(tmp_path / "run", classes=names, met=False))
    wrapper = tmp_path / "phone.html"
    # headless windows are at least 500 px wide, a frame may be narrower
    wrapper.write_text(
        f'<iframe style="width:375px;height:800px;border:0" srcdoc="{html.escape(text)}"></iframe>'
        "<p></p><script>onload = () => { const root = document.querySelector('iframe')"
        ".contentDocument.documentElement; document.querySelector('p').textContent ="
        " `wide ${root.scrollWidth} of ${root.clientWidth}`; };</script>",
        encoding="utf-8",
    )
    found = re.search(r"wide (\d+) of (\d+)<", chromium(wrapper, tmp_path / "profile").stdout)
    assert found is not None
    assert 300 < int(found[2]) <= 375 and int(found[1]) <= int(found[2])
