"""The report in a real browser: it loads without an error, asks nothing of the network, and runs nothing out of the data."""

import json
import shutil
import subprocess
from urllib.parse import urlsplit

import pytest
from test_report import IMAGE, SCRIPT, change, make_run

from ftjax.report import html, read_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions"),
)
ITS_OWN = (".google.com", ".googleapis.com", ".gvt1.com")  # what the browser asks for by itself, whatever the page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def test_the_page_loads_without_error_network_or_script(tmp_path):
    runs = [read_run(make_run(tmp_path / method, method)) for method in ("full", "partial")]
    alarm = "<script>document.title = 'alarm'</script><img src=x onerror=\"document.title = 'alarm'\">"
    predictions = [p | {"text": f"{alarm}{SCRIPT}{IMAGE}"} for p in runs[0].predictions]
    hostile = change(runs[0], config={"model": alarm, "command": alarm, "labels": [alarm, "rotten"]})
    hostile.predictions[:] = predictions
    page, log = tmp_path / "report.html", tmp_path / "net.json"
    page.write_text(html([hostile, runs[1]]), encoding="utf-8")
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", "--enable-logging=stderr"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<h2>") >= 9 and "<script" not in done.stdout
    assert "<title>Fine-tuning" in done.stdout and "<title>alarm" not in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr
    events = json.loads(log.read_text())["events"]
    asked = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    network = [url for url in asked if urlsplit(url).scheme not in ("file", "data", "chrome", "devtools", "about", "")]
    assert not [url for url in network if not urlsplit(url).hostname.endswith(ITS_OWN)]
    assert {url for url in asked if url.startswith("file:")} <= {page.as_uri()}
