"""curl, and the commands and the Python of docs/serving.md, as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zaya_jax import cli

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def here(text, server):
    """An example, with this server's address and model in place of the page's."""
    return text.replace("http://127.0.0.1:8000", server.url).replace("zaya1_8b", "tiny")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("number", range(len(blocks("sh"))))
def test_the_pages_curl_commands(server, number):
    command = here(blocks("sh")[number], server)
    assert command.startswith("curl ")
    done = subprocess.run(
        ["bash", "-euc", command], capture_output=True, text=True, timeout=120, check=True
    )
    if '"stream": true' in command:
        events = [line[6:] for line in done.stdout.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert all("choices" in json.loads(event) for event in events[:-1])
    else:
        answer = json.loads(done.stdout)
        assert "error" not in answer


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_pages_python(server, number):
    pytest.importorskip("openai")
    exec(here(blocks("python")[number], server), {})


def test_the_page_names_every_option_and_metric(server, capsys):
    text = PAGE.read_text(encoding="utf-8")
    assert cli.main(["help", "serve"]) == 0
    options = re.findall(r"^  --(?:\[no\])?([a-z_]+)", capsys.readouterr().out, re.MULTILINE)
    assert len(options) > 15
    assert not [name for name in options if f"`--{name}" not in text]
    metrics = re.findall(r"^# TYPE (\w+)", server.get("/metrics")[1].decode(), re.MULTILINE)
    names = {name.removesuffix("_created").removesuffix("_total") for name in metrics}
    assert not [name for name in names if f"`{name}" not in text]
