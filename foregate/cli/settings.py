"""Defaults of options from a file, foregate.toml: `[run] memory = "25%"`. What an option means is its command's.

A key is an option as it is typed, without its dashes; a table is a command. The command line wins.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from foregate.components import meant
from foregate.errors import ChoiceError, SourceError

HERE = "foregate.toml"
TYPED_ONLY = ("--trust-remote-code", "--help", "--version", "--install-completion", "--show-completion")
"""Never taken from a file: it may have come with a folder that somebody else made."""


def settings_file() -> Path | None:
    """The one file that is read: what $FOREGATE_CONFIG names (nothing: none); else foregate.toml in the current folder;
    else config.toml in the settings folder.

    Raises: SourceError if $FOREGATE_CONFIG names what is no file.
    """
    from foregate.folders import settings_folder

    named = os.environ.get("FOREGATE_CONFIG")
    if named is None:
        return next((file for file in (Path(HERE), settings_folder() / "config.toml") if file.is_file()), None)
    if named and not Path(named).expanduser().is_file():
        raise SourceError(f"FOREGATE_CONFIG names {named}, which is not a file; name one, or unset it")
    return Path(named).expanduser() if named else None


def defaults(app: Any) -> dict[str, Any]:
    """What the file says, as nested tables of parameters' names, for the commands below `app`; empty without a file.

    Raises: SourceError for a file that is not TOML; ChoiceError for what no command or option is called, or takes.
    """
    file = settings_file()
    return {} if file is None else _fitted(_read(file), app, file, [])


def _read(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{file} cannot be read as settings ({reason}); mend or remove it") from None


def _fitted(table: dict[str, Any], command: Any, file: Path, path: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    commands = getattr(command, "commands", {})
    options = {opt: p for p in command.params for opt in p.opts if opt.startswith("--") and opt not in TYPED_ONLY}
    for key, value in table.items():
        if isinstance(value, dict) and key in commands:
            found[key] = _fitted(value, commands[key], file, [*path, key])
            continue
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, dict) or option not in options:
            raise ChoiceError(_unknown(key, value, file, path, commands, options))
        found[options[option].name] = _value(value, options[option], f"{_place(file, path)} {key}")
    return found


def _value(value: Any, option: Any, place: str) -> Any:
    """As if it had been typed."""
    several = option.multiple or option.nargs != 1
    if getattr(option, "is_flag", False):
        if not isinstance(value, bool):
            raise ChoiceError(f"{place} is {value!r}; it must be true or false")
        return value
    if isinstance(value, list) and several:
        return [str(one) for one in value]
    if several or not isinstance(value, str | int | float) or isinstance(value, bool):
        wanted = "a list" if several else "text or a number, as it would be typed"
        raise ChoiceError(f"{place} is {value!r}; it must be {wanted}")
    return str(value)


def _unknown(key: str, value: Any, file: Path, path: list[str], commands: Any, options: Any) -> str:
    if f"--{key.replace('_', '-')}" in TYPED_ONLY:
        return f"{_place(file, path)} {key} cannot be set in a file; type it"
    kind = "command" if isinstance(value, dict) else "option"
    known = list(commands) if isinstance(value, dict) else [option.removeprefix("--") for option in options]
    words = " ".join(["foregate", *path])
    return f"{_place(file, path)} {key} is no {kind} of {words}{meant(key, known)}; see {words} --help"


def _place(file: Path, path: list[str]) -> str:
    return f"{file}: [{'.'.join(path)}]" if path else f"{file}:"
