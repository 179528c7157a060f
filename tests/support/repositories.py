"""Git repositories that tests make: files in, commits out."""

from __future__ import annotations

import os
import subprocess
from textwrap import dedent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Repository:
    """A repository in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str) -> str:
        who = [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b.c",
            "-c",
            "commit.gpgsign=false",
            "-c",
            "protocol.file.allow=always",
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return subprocess.run(
            ["git", *who, *arguments],
            cwd=self.folder,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def write(self, **files: str) -> None:
        """Write files; ``__`` in a name stands for ``/``, and ``.py`` is put behind a name without a suffix."""
        for name, text in files.items():
            self.put(name.replace("__", "/") + ".py", text)

    def put(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(dedent(text))

    def commit(self, **files: str) -> str:
        """Write files and commit everything; the name of the commit."""
        self.write(**files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a change")
        return self.git("rev-parse", "HEAD")

    def state(self) -> dict[str, str]:
        """What a check must leave as it was: files, index, stash, branches and worktrees."""
        asked = (
            ("status", "--porcelain", "--ignored"),
            ("stash", "list"),
            ("worktree", "list", "--porcelain"),
            ("for-each-ref",),
            ("symbolic-ref", "-q", "HEAD") if self.git("branch", "--show-current") else ("rev-parse", "HEAD"),
            ("diff", "--cached"),
            ("diff",),
        )
        return {" ".join(each): self.git(*each) for each in asked}
