"""Settings of this process and of those that it starts: path, warnings, proxies, open files."""

from __future__ import annotations

import os
import resource
import warnings
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from trainer.storage.local_cache import cache_folder, temporary_cache, unwritable

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
"""Variables of a proxy. Each counts in capital letters, too."""


def prepare_process() -> None:
    """Set what the command and the processes that it starts need, whatever the shell has set.

    Call it once, at the start of a process of sptune's own.
    """
    # Processes that sptune starts do not import from the working directory. A file `types.py` there would end them.
    os.environ["PYTHONSAFEPATH"] = "1"
    # A warning of a library is no error of the user's.
    if os.environ.pop("PYTHONWARNINGS", None):
        warnings.simplefilter("ignore")

    bypass_proxy_for_loopback()
    raise_file_limit()
    set_home()


def set_home() -> None:
    """Let libraries that keep files in the user's home find another folder, if that home cannot be written."""
    try:
        Path.home()
    except RuntimeError:
        # Ray asks for a home and ends without one. The name `~` in a path means this folder now.
        os.environ["HOME"] = str(temporary_cache())
    # Without a folder of its own, matplotlib would read all fonts again in each process.
    if home_problem() is not None:
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))


def home_problem() -> str | None:
    """Return why the home of this user cannot be written; None if it can."""
    try:
        home = Path.home()
    except RuntimeError:
        home = temporary_cache()
    # The command may have set HOME to this folder.
    if home == temporary_cache():
        return "HOME is not set, and the list of users has no home of this user"
    return unwritable(home)


def bypass_proxy_for_loopback() -> None:
    """Exclude the addresses of this machine from the proxy, if there is one. No proxy can reach them."""
    if not any(variable_set(name) for name in PROXY_VARIABLES):
        return

    # Libraries read the small letters first, so both get what either has.
    excluded = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    hosts = [host.strip() for host in excluded if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = ",".join(hosts)
    os.environ["NO_PROXY"] = os.environ["no_proxy"]


def proxy_variable(address: str) -> str | None:
    """Return the variable whose proxy requests to an address go through; None if they go straight."""
    parts = urlsplit(address)
    # With the port, because no_proxy may name it.
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not host or proxy_bypass(host):
        return None
    return variable_set(f"{parts.scheme}_proxy") or variable_set("all_proxy")


def proxy_hint(address: str) -> str:
    """Return a sentence about the proxy that requests to an address go through; an empty text if there is none."""
    variable = proxy_variable(address)
    if variable is None:
        return ""
    host = urlsplit(address).hostname
    return f" Requests to it go through the proxy of {variable}; if {host} is in your own network, add it to no_proxy."


def variable_set(name: str) -> str | None:
    """Return the spelling of a variable that is set, in small letters first; None if neither is."""
    return next((spelling for spelling in (name, name.upper()) if os.environ.get(spelling)), None)


def raise_file_limit() -> None:
    """Allow as many open files as the system permits. Ray and SQLite open hundreds; many shells start with 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            # macOS has a limit below the one it reports. The doctor names a limit that is too low.
            return
