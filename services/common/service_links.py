"""Variables that Kubernetes and Docker set in a container for each neighbouring service ("service links").

For a Service named larder-master they have the names of the master's own settings, LARDER_MASTER_PORT among them, but
other meanings. They are recognised as a whole group, never by one name: there is a group only if a variable
BASE_PORT_<port>_<PROTOCOL> holds exactly <protocol>://HOST:<port>. Its members are ignored, nothing else is.
"""

import re
from collections.abc import Mapping
from typing import Final

_URL: Final = re.compile(r"(tcp|udp|sctp)://(?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_PORT: Final = re.compile(r"([A-Z0-9_]+)_PORT_([0-9]{1,5})_(TCP|UDP|SCTP)")
_HOST: Final = re.compile(r"[^\s:/\[\]]+|[0-9A-Fa-f:.]+")
_NUMBER: Final = re.compile(r"[0-9]{1,5}")
_PROTOCOL: Final = re.compile(r"tcp|udp|sctp")
_DOCKER_NAME: Final = re.compile(r"/[\w.-]+/[\w.-]+")
_MEMBERS: Final = (  # the part after BASE_, and its value
    (re.compile(r"SERVICE_HOST"), _HOST),
    (re.compile(r"SERVICE_PORT(_[A-Z0-9_]+)?"), _NUMBER),
    (re.compile(r"PORT"), _URL),
    (re.compile(r"PORT_[0-9]{1,5}_(TCP|UDP|SCTP)"), _URL),
    (re.compile(r"PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_PROTO"), _PROTOCOL),
    (re.compile(r"PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_PORT"), _NUMBER),
    (re.compile(r"PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_ADDR"), _HOST),
    (re.compile(r"NAME"), _DOCKER_NAME),
)
_DOCKER_ENV: Final = "ENV_"  # the linked container's own variables, whatever they are


def service_links(environment: Mapping[str, str]) -> frozenset[str]:
    """The names of variables that belong to service links."""
    bases = {base for name, value in environment.items() if (base := _base(name, value)) is not None}
    return frozenset(
        name
        for name, value in environment.items()
        if any(
            name.startswith(f"{base}_") and _belongs(name.removeprefix(f"{base}_"), value, base, environment)
            for base in bases
        )
    )


def _base(name: str, value: str) -> str | None:
    """The link whose existence this variable proves, if any."""
    port, url = _PORT.fullmatch(name), _URL.fullmatch(value)
    is_proof = port is not None and url is not None and (url[1].upper(), url[2]) == (port[3], port[2])
    return port[1] if is_proof and port is not None else None


def _belongs(rest: str, value: str, base: str, environment: Mapping[str, str]) -> bool:
    if rest.startswith(_DOCKER_ENV):
        return _DOCKER_NAME.fullmatch(environment.get(f"{base}_NAME", "")) is not None
    return any(name.fullmatch(rest) and held.fullmatch(value) for name, held in _MEMBERS)
