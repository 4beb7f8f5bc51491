"""The API against its own OpenAPI document, by schemathesis: what that allows or forbids gets no other answer than it says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from vramplan.web.server import application

schemathesis = pytest.importorskip("schemathesis", reason="pip install 'vramplan[browser]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", application())


@schema.exclude(path_regex="/(plan|buy|max|fix)$").parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_as_the_document_says(case: Any) -> None:
    """Searches, which take up to seconds each, are left to `schemathesis run`."""
    case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance])
