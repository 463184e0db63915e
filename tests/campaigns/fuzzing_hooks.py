"""What schemathesis is told beside its options: it reads this file itself."""

import schemathesis
from schemathesis import Case, HookContext

from tests.conftest import ADMINISTRATOR_ID


@schemathesis.hook
def filter_case(_context: HookContext, case: Case) -> bool:
    """Leave out what disables the very account that asks: all answers after it would be 401."""
    disables = case.operation.path == "/accounts/{account_id}/disable"
    # A number or, where what goes into an address was written already, a text.
    return not (disables and str(case.path_parameters.get("account_id")) == str(ADMINISTRATOR_ID))


@schemathesis.hook
def map_case(_context: HookContext, case: Case) -> Case:
    """Have webhooks lead nowhere: what a made-up address names is not to be sent anything."""
    if case.operation.path == "/webhooks" and isinstance(case.body, dict):
        url = case.body.get("url")
        if isinstance(url, str) and url.startswith("http"):
            case.body["url"] = "http://127.0.0.1:9/"
    return case
