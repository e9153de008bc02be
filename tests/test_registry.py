import pytest

from robust_nc import registry
from robust_nc.exceptions import ConfigError, UnknownNameError
from robust_nc.registry import Registry

TABLES = [value for value in vars(registry).values() if isinstance(value, Registry)]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_registered_name_loads(table: Registry) -> None:
    assert table.names()
    for name in table.names():
        assert table.load(name) is not None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown head 'liner'; did you mean 'linear'"):
        registry.HEADS.load("liner")


def test_a_taken_name_is_refused() -> None:
    table = Registry("part", "parts-of-a-test", {"a": "json:dumps"})
    with pytest.raises(ConfigError, match="registered already"):
        table.register("a", "json:loads")
    with pytest.raises(ConfigError, match="module:attribute"):
        table.register("b", "json.loads")
    table.register("b", "json:loads")
    assert table.names() == ("a", "b")
    assert table.load("b")("1") == 1
