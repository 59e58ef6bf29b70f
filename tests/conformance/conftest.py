"""`--against FILE.py`: whose functions the claims are tried on; without it our own."""

from pathlib import Path

import pytest

from tests.conformance.adapter import Adapter, load

OURS = Path(__file__).parent / "adapters" / "ours.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--against", metavar="FILE.py", help="adapter of the conformance suite; the default is our own")


def against(config: pytest.Config) -> str | None:
    return config.getoption("--against", None)  # where this file was not read at the start, there is no such option


@pytest.fixture(scope="session")
def adapter(request: pytest.FixtureRequest) -> Adapter:
    try:
        return load(against(request.config) or str(OURS))
    except ValueError as error:
        pytest.exit(f"error: {error}", returncode=2)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if against(config):  # of someone else's code only the claims are tested, not the suite
        items[:] = [item for item in items if item.path.name == "test_claims.py"]
