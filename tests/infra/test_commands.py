"""The commands of this project that infra/ gives exist, with the options they are given."""

from __future__ import annotations

import re

import publisher.cli
import puller.cli
from tests.conftest import ROOT

GROUPS = {"publisher": publisher.cli.main, "puller": puller.cli.main}
COMMAND = re.compile(r"\b(publisher|puller) ([a-z]+)((?: --?[\w-]+)*)")


def code(path) -> str:
    """A file without its prose: what stands in fences, or what is no comment."""
    text = path.read_text()
    if path.suffix == ".md":
        return "\n".join(re.findall(r"^```\w+\n(.*?)^```", text, re.S | re.M))
    return re.sub(r"^\s*(#|Description).*$", "", text, flags=re.M)


def test_commands_and_their_options_exist():
    seen = set()
    for path in sorted((ROOT / "infra").rglob("*")):
        for program, command, options in COMMAND.findall(code(path) if path.is_file() else ""):
            assert command in GROUPS[program].commands, (path, command)
            known = {name for option in GROUPS[program].commands[command].params for name in option.opts}
            assert set(options.split()) <= known, (path, options)
            seen.add((path.suffix, program, command))
    assert seen >= {(".service", "publisher", "watch"), (".service", "puller", "follow"), (".md", "puller", "pull")}
