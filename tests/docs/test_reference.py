"""docs/configuration.md tells of what the programs take, all of it and nothing else."""

from dataclasses import fields

from larder import options
from larder.vllm import settings

from docs.reference import PAGE, page


def test_the_reference_is_what_the_settings_say() -> None:
    assert PAGE.read_text() == page(), "run make docs"


def test_every_option_is_described() -> None:
    assert settings.HELP.keys() == {field.name for field in fields(settings.ConnectorSettings)}
    assert {"masters" if name == "master" else name for name in options.HELP} == {
        field.name for field in fields(options.Options)
    }
