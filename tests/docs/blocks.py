"""Reads the documents: their fenced blocks as steps that can be run. Runs nothing.

`console` blocks have prompts and what is printed; `bash` blocks commands alone; `python` blocks are programs, whose
`print(...)  # text` says what is printed. Every other language is no command. In what is printed `…` stands for what
differs from run to run: a line of it alone for any lines. `host-a$ ` is a prompt on the host of that name.

All blocks of a document run one after the other in one shell, with a network of their own, so that documents may use
the default ports. Comments in front of a block say otherwise:

    <!-- a new cluster -->                       the rest of the document starts with nothing running
    <!-- on the cluster of FILE.md#heading -->   the same, but what that section starts is running
    <!-- not run: REASON -->                     the next block is not run; the test knows the reasons
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^( *)```(\w*)\s*$")
_COMMENT = re.compile(r"^<!-- (a new cluster|on the cluster of \S+|not run: .+?) -->$")
_PROMPT = re.compile(r"^(?:(host-\w+))?\$ (.*)$")
_HEADING = re.compile(r"^#+ (.+)$")
_PRINTED = re.compile(r"^ *print\(.*\)  # (.*)$")


@dataclass
class Step:
    """One command, or one program."""

    where: str  # FILE:LINE
    text: str
    host: str = ""
    printed: list[str] | None = None  # None: not shown
    is_python: bool = False


@dataclass
class Session:
    """Steps that share a cluster."""

    name: str
    steps: list[Step] = field(default_factory=list)
    based_on: str = ""  # FILE.md#heading
    sections: list[str] = field(default_factory=list)  # of each step, the heading above it as a link names it


@dataclass
class Document:
    sessions: list[Session]
    reasons: list[str]  # why blocks are not run
    left_out: list[Step]  # what is in those blocks


def read(path: Path) -> Document:
    """Raises ValueError where a block cannot be understood."""
    session = Session(path.stem)
    document = Document([session], [], [])
    section, skipped, lines = "", "", path.read_text().splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if heading := _HEADING.match(line):
            section = slug(heading[1])
        if said := _COMMENT.match(line):
            if said[1].startswith("not run: "):
                skipped = said[1].removeprefix("not run: ")
            else:
                session = Session(f"{path.stem}-{section}", based_on=said[1].partition("on the cluster of ")[2])
                document.sessions.append(session)
        elif line.startswith("<!--"):
            raise ValueError(f"{path.name}:{at + 1}: the tests do not know what {line} means")
        fence = _FENCE.match(line)
        at += 1
        if not fence:
            continue
        end = next(number for number in range(at, len(lines)) if lines[number].strip() == "```")
        body = [text.removeprefix(fence[1]) for text in lines[at:end]]
        steps = _steps(fence[2], body, path.name, at + 1)
        if skipped:
            document.reasons.append(skipped)
            document.left_out += steps
            skipped = ""
        else:
            session.steps += steps
            session.sections += [section] * len(steps)
        at = end + 1
    document.sessions = [each for each in document.sessions if each.steps]
    return document


def slug(heading: str) -> str:
    """What a link to this heading is called, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def expected(printed: list[str]) -> str:
    """A pattern for what is printed, with runs of blanks as one."""
    pattern = ""
    for line in printed:
        text = squeeze(line)
        pattern += "(?:.*\n)*?" if text == "…" else ".*".join(map(re.escape, text.split("…"))) + "\n"
    return pattern


def squeeze(line: str) -> str:
    return " ".join(line.split())


def _steps(language: str, body: list[str], name: str, number: int) -> list[Step]:
    if language == "python":
        printed = [found[1] for line in body if (found := _PRINTED.match(line))]
        return [Step(f"{name}:{number}", "\n".join(body) + "\n", printed=printed, is_python=True)]
    if language == "bash":
        return _commands(body, name, number)
    return _dialogue(body, name, number) if language == "console" else []


def _commands(body: list[str], name: str, number: int) -> list[Step]:
    steps: list[Step] = []
    text = ""
    for offset, line in enumerate(body):
        text += line + "\n"
        if _is_whole(text):
            if text.strip() and not text.lstrip().startswith("#"):
                steps.append(Step(f"{name}:{number + offset}", text))
            text = ""
    if text:
        raise ValueError(f"{name}:{number}: the last command of this block has no end")
    return steps


def _dialogue(body: list[str], name: str, number: int) -> list[Step]:
    steps: list[Step] = []
    is_open = False
    for offset, line in enumerate(body):
        if is_open:
            steps[-1].text += line + "\n"
        elif prompt := _PROMPT.match(line):
            steps.append(Step(f"{name}:{number + offset}", prompt[2] + "\n", prompt[1] or "", printed=[]))
        elif steps and steps[-1].printed is not None:
            steps[-1].printed.append(line)
        else:
            raise ValueError(f"{name}:{number}: a console block begins with a prompt, `$ `")
        is_open = not _is_whole(steps[-1].text)
    return steps


def _is_whole(text: str) -> bool:
    """Whether a shell would run it, and not wait for another line."""
    if text.rstrip("\n").endswith("\\"):
        return False
    if here := re.search(r"<<'?(\w+)'?", text):
        return text.rstrip("\n").endswith("\n" + here[1])
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True
