"""The settings of the `proxy` command."""

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from services.common.settings import Host, Names, Port, ServiceSettings
from services.proxy.addresses import PRIVATE
from services.proxy.core.discovery import File, source_of
from services.proxy.core.endpoint import canonical
from services.proxy.core.engine import Role
from services.proxy.core.router import CONCURRENCY
from services.proxy.core.scheduling import POLICIES
from services.proxy.engine_http.tls import context_of

_ORIGIN: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#\s]+")


def _canonical(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(canonical(address) for address in addresses)


def _check_sources(sources: tuple[str, ...]) -> tuple[str, ...]:
    for source in sources:
        source_of(source)
    return tuple(dict.fromkeys(sources))


def _check_networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f"{network!r} is not a network such as 10.0.0.0/8 or fd00::/8 ({error})") from error
    return networks


def _check_authorities(path: Path) -> Path:
    try:
        context_of(path)
    except OSError as error:  # SSLError is one
        raise ValueError(f"not a file of certificates in PEM that can be read ({error.strerror or error})") from error
    return path


def _check_key(key: SecretStr) -> SecretStr:
    if not (key.get_secret_value().isascii() and key.get_secret_value().isprintable()):
        raise ValueError("a key that goes into a header must be printable ASCII, without line breaks")
    return key


def _from_json(value: Any) -> Any:
    """A JSON list, as vLLM's flags take; or what Names takes."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) != 1 or not str(texts[0]).lstrip().startswith("["):
        return value
    try:
        return json.loads(texts[0])
    except ValueError as error:
        raise ValueError(f'not a JSON list such as ["*"] ({error})') from error


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin such as https://app.example.com:8443, and not *")
    return origins


Engines = Annotated[Names, AfterValidator(_canonical)]
JsonNames = Annotated[Names, BeforeValidator(_from_json)]
PolicyName = Literal["round_robin", "least_loaded", "power_of_two", "prefix_affinity", "session"]
Networks = Annotated[Names, AfterValidator(_check_networks)]
Key = Annotated[SecretStr, Field(min_length=1), AfterValidator(_check_key)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ProxySettings(ServiceSettings):
    """Speaks the OpenAI API; has each request prefilled by one engine and decoded by another.

    PREFILL_ENDPOINTS, DECODE_ENDPOINTS, ADMIN_API_KEY and OPENAI_API_KEY are read from the environment and .env too.
    """

    other_env: ClassVar = {
        "PREFILL_ENDPOINTS": "prefill",
        "DECODE_ENDPOINTS": "decode",
        "ADMIN_API_KEY": "admin_api_key",
        "OPENAI_API_KEY": "openai_api_key",
        "VLLM_MOONCAKE_BOOTSTRAP_PORT": "mooncake_bootstrap_port",
    }

    host: Host = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8000, description="HTTP port of the API, /health, /ready and /metrics; 0 takes a free one")
    workers: int = Field(
        1, ge=1, le=256, description="processes that serve; --max-concurrency and --max-queue are divided among them"
    )
    model: str = Field("", description="the model that engines added by operators must serve; empty: any")
    prefill: Engines = Field((), description="prefill engines: HOST:PORT, or https://HOST:PORT/BASE")
    decode: Engines = Field((), description="decode engines, likewise")
    discover: Annotated[Names, AfterValidator(_check_sources)] = Field(
        (),
        description="where to keep looking for more engines: prefill=dns://NAME:PORT and decode=dns://NAME:PORT, or "
        "file:///PATH, a YAML or JSON file with lists of prefill and decode engines",
    )
    engine_ca_file: Annotated[Path, AfterValidator(_check_authorities)] | None = Field(
        None, description="certificates (PEM) to check https engines against, instead of this system's"
    )
    handover: Literal["auto", "store", "pull", "push", "none"] = Field(
        "auto", description="how KV reaches decode: store, pull (NIXL), push (Mooncake), none; auto finds out"
    )
    mooncake_bootstrap_port: Port = Field(8998, description="port of the bootstrap server beside an engine that pushes")
    scheduling: PolicyName = Field("round_robin", description="how engines are chosen: " + ", ".join(POLICIES))
    prefill_scheduling: PolicyName | None = Field(None, description="--scheduling for prefill engines")
    decode_scheduling: PolicyName | None = Field(None, description="--scheduling for decode engines")
    session_header: str = Field("X-Session-Id", min_length=1, description="header that --scheduling session goes by")
    prefill_min_tokens: int = Field(
        0,
        ge=0,
        description="prompts below this (at 4 characters a token), without images or sounds, go straight to decode",
    )
    max_concurrency: int = Field(CONCURRENCY, ge=1, description="requests served at once")
    max_queue: int = Field(2048, ge=0, description="requests that may wait for their turn; any more get a 429")
    queue_timeout: Seconds = Field(30, description="seconds a request may wait for its turn")
    connect_timeout: Seconds = Field(2, description="seconds to wait for an engine to take a connection")
    first_token_timeout: Seconds = Field(
        60,
        description="seconds to wait for a prefill, or for a stream's first byte, before asking another healthy engine",
    )
    request_timeout: Seconds = Field(600, description="seconds to wait for an answer, and for each further byte of it")
    slow_client_timeout: Seconds = Field(30, description="seconds a client may read nothing of its answer")
    allowed_origins: Annotated[JsonNames, AfterValidator(_check_origins)] = Field(
        (),
        description='origins whose pages may read answers, as JSON: ["*"] for all; none: engines\' own headers pass',
    )
    allowed_methods: JsonNames = Field(("*",), description="methods that those pages may use, as JSON")
    allowed_headers: JsonNames = Field(("*",), description="headers that those pages may send, as JSON")
    allow_credentials: bool = Field(False, description="those pages may send the user's cookies and keys")
    admin_api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="X-API-Key that lists, adds, drains and removes engines; without it nobody can",
    )
    instance_allow: Networks = Field(
        PRIVATE,
        description="networks that engines added by operators may be in; by default this host and private ones",
    )
    state_file: Path | None = Field(
        None,
        description="file in which added, drained and removed engines survive a restart; it overrides --prefill, "
        "--decode and --discover",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+(/\S*)?$",
        description="OpenTelemetry collector to send traces to, such as http://localhost:4318; needs the extra otel",
    )
    openai_api_key: Key | None = Field(None, description="key sent to engines, instead of the client's")

    @model_validator(mode="after")
    def _check_engines(self) -> "ProxySettings":
        for role in ("prefill", "decode"):
            engines = getattr(self, role)
            twice = {engine for engine in engines if engines.count(engine) > 1}
            if twice:
                raise ValueError(f"--{role} lists {', '.join(sorted(twice))} more than once")
        found = [source_of(text) for text in self.discover]
        is_found = any(isinstance(source, File) or source.role is Role.DECODE for source in found)
        if not (self.decode or is_found) and self.admin_api_key is None:
            raise ValueError(
                "no decode engine: give --decode HOST:PORT (or DECODE_ENDPOINTS), or --discover with decode engines, "
                "or set ADMIN_API_KEY so that one can be added"
            )
        return self
