"""Settings of a service: flags, then `HEADWATER_…` variables, then one TOML file, then defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import click

from puller.console import together
from puller.errors import UsageError
from puller.service.log import DEBUG, ERROR, FORMATS, INFO

PREFIX = "HEADWATER_"
SECRETS = ("SECRET", "SIGNING_KEY")
"""Variables that have a text where the option of that name has a file."""
GIVEN = ("NAME", "EPOCH", "VERSION", "PREVIOUS_EPOCH", "PREVIOUS_VERSION", "CANDIDATE", "TARGET", "URL", "CHANGES")
"""Variables that commands which headwater starts are given; one of these may be a service."""
CONFIG = "config"
Made = TypeVar("Made")
_ORIGINS = "headwater.origins"
"""In a context's `meta`: what errors call each job, empty without a file."""


@dataclass(frozen=True)
class Settings:
    """What every service is told: where to listen (`host:port`), the metrics file, the log's format and level."""

    listen: str | None = None
    metrics_file: str | None = None
    log_format: str = "text"
    level: str = INFO


class ServiceCommand(click.Command):
    """A command that runs jobs: one from its own arguments, or one for each `[[table]]` in the file of `--config`.

    Every option and argument can be given as a flag; in the environment, by its name in capitals after the prefix, those
    that can be repeated with a value in each line; in the file, by its name with `_` for `-`. What stands first of flag,
    variable, job's table, top of the file counts. Its function gets `jobs`, a list of the values of each job, and the
    values of the options named in `shared`, which belong to the process and stand at the file's top only.
    """

    def __init__(self, *arguments: Any, table: str, shared: Iterable[str] = (), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.table = table
        self.shared = {*shared, *SHARED}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if {*args} & {*ctx.help_option_names}:
            return super().parse_args(ctx, args)
        given = self._environment(os.environ)
        probe = click.Context(self, info_name=ctx.info_name, parent=ctx.parent, resilient_parsing=True)
        probe.default_map = given
        super().parse_args(probe, list(args))
        path = probe.params.get(CONFIG)
        top, tables, origins = ({}, [], [""]) if path is None else self._load(path)
        if tables and any(probe.params.get(p.name or "") for p in self.params if isinstance(p, click.Argument)):
            raise UsageError(
                f"{path} has [[{self.table}]] tables, and arguments name another job; give one or the other"
            )
        jobs = []
        for table, origin in zip(tables or [{}], origins, strict=True):
            child = click.Context(self, info_name=ctx.info_name, parent=ctx.parent)
            child.default_map = {**top, **table, **given}
            try:
                super().parse_args(child, list(args))
            except click.UsageError as error:
                if not _is_of_file(error, child, given):
                    raise
                with _said_of(origin):
                    raise
            jobs.append({name: value for name, value in child.params.items() if name not in self.shared})
            shared = {name: value for name, value in child.params.items() if name in self.shared}
        ctx.params = {**shared, "jobs": jobs}
        ctx.meta[_ORIGINS] = origins
        return []

    def _load(self, path: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
        """The settings at the top of a file, those of each job, and what errors call each job. Raises UsageError."""
        top = read_toml(path)
        tables = top.pop(self.table, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UsageError(f"{path}: write a job as [[{self.table}]], not otherwise")
        _check_keys(path, top, {*self._named(), self.table} - {CONFIG})
        with _said_of(path):
            above = self._by_param(top)
        origins = [f"{path}: [[{self.table}]] {n}{self._about(table)}" for n, table in enumerate(tables, 1)]
        below = []
        for origin, table in zip(origins, tables, strict=True):
            _check_keys(origin, table, {*self._named()} - self.shared)
            with _said_of(origin):
                below.append(self._by_param(table))
        return above, below, origins or [path]

    def _about(self, table: Mapping[str, Any]) -> str:
        """What a job's arguments are, as far as its table says."""
        names = [param.name for param in self.params if isinstance(param, click.Argument)]
        said = [str(table[name]) for name in names if name in table]
        return f" ({' -> '.join(said)})" if said else ""

    def _environment(self, environment: Mapping[str, str]) -> dict[str, Any]:
        """The values that variables give. Raises UsageError for one with our prefix that nobody knows."""
        known = {PREFIX + name.upper(): param for name, param in self._named().items() if name.upper() not in SECRETS}
        check_environment(known, environment)
        given = {name: environment[name] for name in known if environment.get(name)}
        return {
            str(known[name].name): text.splitlines() if getattr(known[name], "multiple", False) else text
            for name, text in given.items()
        }

    def _named(self) -> dict[str, click.Parameter]:
        """Options and arguments by the names that they have as settings."""
        return {max(param.opts, key=len).lstrip("-").replace("-", "_"): param for param in self.params}

    def _by_param(self, table: Mapping[str, Any]) -> dict[str, Any]:
        named = self._named()
        return {str(named[name].name): _typed(name, named[name], value) for name, value in table.items()}


def _typed(name: str, param: click.Parameter, value: Any) -> Any:
    """A setting of a TOML file as the flag would have it. Raises UsageError for another type of value."""
    several = param.multiple or param.nargs != 1
    values = value if isinstance(value, list) and several else [value]
    if any(isinstance(one, (list, dict)) for one in values):
        raise UsageError(f"{name} = {value!r}: {'texts are' if several else 'one value is'} meant here")
    if isinstance(param.type, click.types.StringParamType) and not all(isinstance(one, str) for one in values):
        raise UsageError(f"{name} = {value!r}: a text is meant here, in quotes")
    return values if several else value


def made(jobs: Sequence[dict[str, Any]], make: Callable[[dict[str, Any]], Made]) -> list[Made]:
    """What `make` makes of each job of the command under way. A UsageError names the file and the job that it is about."""
    found = []
    for job, origin in zip(jobs, click.get_current_context().meta[_ORIGINS], strict=True):
        with _said_of(origin):
            found.append(make(job))
    return found


def check_distinct(jobs: Sequence[dict[str, Any]], place: Callable[[dict[str, Any]], str], what: str) -> None:
    """Raise UsageError, which names both, where two jobs of the command under way have the same `place`; `what` that is."""
    seen: dict[str, str] = {}
    for job, origin in zip(jobs, click.get_current_context().meta[_ORIGINS], strict=True):
        before = seen.setdefault(place(job), origin)
        if before is not origin:
            raise UsageError(f"{before} and {origin} have the same {what}; give each its own")


@contextmanager
def _said_of(origin: str) -> Iterator[None]:
    """Let an error say what it is about: a file, and a job in it."""
    try:
        yield
    except (UsageError, click.UsageError) as error:
        if not origin:
            raise
        text = error.format_message() if isinstance(error, click.UsageError) else str(error)
        raise UsageError(f"{origin}: {text}") from error


def _is_of_file(error: click.UsageError, context: click.Context, given: Mapping[str, Any]) -> bool:
    """Whether an error is about what a file says, or lacks, and not about a flag or a variable."""
    param = error.param if isinstance(error, click.BadParameter) else None
    if param is None or param.name is None or isinstance(error, click.MissingParameter):
        return True
    source = context.get_parameter_source(param.name)
    return source is click.core.ParameterSource.DEFAULT_MAP and param.name not in given


def read_toml(path: str) -> dict[str, Any]:
    """What a TOML file holds. Raises UsageError."""
    import tomllib

    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def check_environment(known: Iterable[str], environment: Mapping[str, str]) -> None:
    """Raise UsageError for a variable with our prefix that is not `known`: it is a slip of the pen, not to be passed over."""
    names = {*known, *(PREFIX + name for name in (*SECRETS, *GIVEN))}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in names:
            raise UsageError(f"the variable {name} is no setting here{_near(name, names)}")


def _check_keys(where: str, table: Mapping[str, Any], names: set[Any]) -> None:
    for key in table:
        if key not in names:
            raise UsageError(f"{where}: {key!r} is no setting here{_near(key, names)}")


def _near(name: str, names: set[str]) -> str:
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(sorted(names))}"


def _address(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    from puller.service.web import parse_address

    try:
        if value is not None:
            parse_address(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error
    return value


service_options = together(
    click.option(
        "--config", metavar="FILE", help="A TOML file with settings, and with several jobs, each as a table of its own."
    ),
    click.option(
        "--listen",
        callback=_address,
        metavar="HOST:PORT",
        help="Serve /healthz, /livez and /metrics there (as 127.0.0.1:9100; default: nowhere).",
    ),
    click.option("--metrics-file", metavar="FILE", help="Keep metrics in a file, for node_exporter (*.prom)."),
    click.option(
        "--log-format", type=click.Choice(FORMATS), default="text", show_default=True, help="What log lines look like."
    ),
    click.option("-v", "--verbose", is_flag=True, help="Log more."),
    click.option("-q", "--quiet", is_flag=True, help="Log nothing but errors."),
)
"""The options that every service has."""
SHARED = (CONFIG, "listen", "metrics_file", "log_format", "verbose", "quiet")


def settings(options: Mapping[str, Any]) -> Settings:
    """What these options say."""
    level = ERROR if options["quiet"] else DEBUG if options["verbose"] else INFO
    return Settings(options["listen"], options["metrics_file"], options["log_format"], level)
