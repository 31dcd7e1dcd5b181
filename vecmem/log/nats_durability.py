"""Whether NATS servers sync before they acknowledge: by default they do not, and lose what they acknowledged with the power.

Only the monitoring page of a server tells (`/varz`, `sync_always`), so its address has to be known for each of them.
"""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

from vecmem.errors import ConfigurationError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection

MONITORING_SECONDS_MAX: Final = 2.0

_logger = logging.getLogger(__name__)


def check_durability(
    servers: Collection[str], monitoring_urls: Collection[str], *, allow_lazy: bool = False, allow_unknown: bool = False
) -> None:
    """Prove that servers sync each message before they acknowledge it.

    Args:
        servers: names of the servers that keep the log.
        monitoring_urls: `http://HOST:PORT` of their monitoring pages.
        allow_lazy: take servers that sync later, with a warning: a power cut then loses acknowledged writes.
        allow_unknown: take servers that could not be asked, with a warning.

    Raises:
        ConfigurationError: a server syncs lazily.
        UnavailableError: a server could not be asked.
    """
    found: dict[str, bool] = {}
    problems: list[str] = []
    for url in monitoring_urls:
        try:
            name, syncs_always = sync_of(url)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            problems.append(f"{url}: {error}")
        else:
            found[name] = syncs_always
    lazy = sorted(name for name, syncs_always in found.items() if not syncs_always)
    if lazy:
        what = (
            f"the NATS servers {', '.join(lazy)} acknowledge before they sync, so a power cut loses acknowledged writes: "
            "their configuration lacks `sync_interval: always` in its part `jetstream`"
        )
        if not allow_lazy:
            raise ConfigurationError(what)
        _logger.warning("%s", what)
    unknown = sorted(set(servers) - set(found))
    if unknown:
        what = f"whether the NATS servers {', '.join(unknown)} sync before they acknowledge is not known"
        what += f" ({'; '.join(problems)})" if problems else ": none of the monitoring pages given is theirs"
        if not allow_unknown:
            raise UnavailableError(what)
        _logger.warning("%s", what)


def sync_of(monitoring_url: str) -> tuple[str, bool]:
    """A server's name, and whether it syncs each message before it acknowledges it.

    Raises:
        OSError: the page cannot be reached.
        ValueError, KeyError, AttributeError: it is no such page.
    """
    page = fetch_page(monitoring_url + "/varz")
    jetstream = page["jetstream"].get("config") or {}
    return str(page["server_name"]), bool(jetstream.get("sync_always"))


def fetch_page(url: str) -> dict[str, Any]:
    """A monitoring page, also one that comes with an error status. Raises OSError, ValueError."""
    # A proxy that the environment names is for others: these pages are on the inside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=MONITORING_SECONDS_MAX) as reply:
            content = reply.read()
    except urllib.error.HTTPError as error:
        content = error.read()
    except http.client.HTTPException as error:
        raise ValueError(f"no page of a monitoring port: {error!r}") from error
    return dict(json.loads(content))
