"""Names of XMLVend 2.1: its namespaces, its use cases and the requests that ask for them.

Stage: beside the reader and the writer of messages. Facts only.

Source: NRS 009-6-10 (XMLVend 2.1) as public integrations show its schemas; use cases by name as the reference page of
the project lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
BASE = "http://www.nrs.eskom.co.za/xmlvend/base/2.1/schema"
REVENUE = "http://www.nrs.eskom.co.za/xmlvend/revenue/2.1/schema"
METER = "http://www.nrs.eskom.co.za/xmlvend/meter/2.1/schema"
NAMESPACES = frozenset({BASE, REVENUE, METER})


class UseCase(StrEnum):
    """A use case that is offered here; the value is its name as documents and logs have it."""

    CONFIRM_CUSTOMER = "confirmCustomer"
    CONFIRM_METER = "confirmMeter"
    CREDIT_VEND = "creditVend"
    TRIAL_CREDIT_VEND = "trialCreditVend"
    FREE_ISSUE = "freeIssue"
    CANCEL_VEND = "cancelVend"
    REPRINT = "reprint"
    VERIFY = "verify"
    UPDATE_METER_KEY = "updateMeterKey"
    METER_SPECIFIC_ENG = "meterSpecificEng"
    NON_METER_SPECIFIC_ENG = "nonMeterSpecificEng"
    REPORT_FAULT = "custReportFault"
    CONFIRMATION = "advice.confirmation"
    REVERSAL = "advice.reversal"
    LAST_RESPONSE = "advice.lastResponse"
    VENDOR_STATEMENT = "vendorStatement"
    START_BATCH = "startBatch"
    END_BATCH = "endBatch"
    TOTAL_BATCH = "totalBatch"
    REPRINT_END_BATCH = "reprintEndBatch"


# Requests by namespace and name; the three advices share one.
ADVICE = (BASE, "adviceReq")
USE_CASE_OF: Mapping[tuple[str, str], UseCase] = {
    (REVENUE, "confirmCustomerReq"): UseCase.CONFIRM_CUSTOMER,
    (METER, "confirmMeterReq"): UseCase.CONFIRM_METER,
    (REVENUE, "creditVendReq"): UseCase.CREDIT_VEND,
    (REVENUE, "trialCreditVendReq"): UseCase.TRIAL_CREDIT_VEND,
    (REVENUE, "freeIssueReq"): UseCase.FREE_ISSUE,
    (REVENUE, "cancelVendReq"): UseCase.CANCEL_VEND,
    (REVENUE, "reprintReq"): UseCase.REPRINT,
    (REVENUE, "verifyReq"): UseCase.VERIFY,
    (METER, "updateMeterKeyReq"): UseCase.UPDATE_METER_KEY,
    (METER, "meterSpecificEngReq"): UseCase.METER_SPECIFIC_ENG,
    (METER, "nonMeterSpecificEngReq"): UseCase.NON_METER_SPECIFIC_ENG,
    (METER, "custReportFaultReq"): UseCase.REPORT_FAULT,
    (REVENUE, "vendorStatementReq"): UseCase.VENDOR_STATEMENT,
    (REVENUE, "startBatchReq"): UseCase.START_BATCH,
    (REVENUE, "endBatchReq"): UseCase.END_BATCH,
    (REVENUE, "totalBatchReq"): UseCase.TOTAL_BATCH,
    (REVENUE, "reprintEndBatchReq"): UseCase.REPRINT_END_BATCH,
}
ADVICE_OF_KIND: Mapping[str, UseCase] = {
    "ConfirmationAdviceReq": UseCase.CONFIRMATION,
    "ReversalAdviceReq": UseCase.REVERSAL,
    "LastRespAdviceReq": UseCase.LAST_RESPONSE,
}
# Use cases of the schemas that are refused by name: fbe, meterCreditTransfer, payAcc, login, deposit, reprintDeposit,
# and what makers and regions have added.
REQUEST_SUFFIX = "Req"

# Engineering requests by type: the order as `vending.engines.orders` names it.
ENGINEERING_OF_KIND: Mapping[str, str] = {
    "PwrLmtReq": "power_limit",
    "PhUnbalReq": "unbalance_limit",
    "ClearCreditReq": "clear_credit",
    "ClearTamperReq": "clear_tamper",
    "SetWaterFactorReq": "water_factor",
}
# Test and display requests by type: the test number of IEC 62055-41, the element of the answer and its type.
TEST_OF_KIND: Mapping[str, tuple[int, str]] = {
    "TestAllReq": (0, "testAll"),
    "TestBreakerReq": (1, "testBreaker"),
    "TestDisplayReq": (2, "testDisp"),
    "DispConsTotReq": (3, "dispConsTot"),
    "DispKRNReq": (4, "dispKRN"),
    "DispTIReq": (5, "dispTI"),
    "DispPwrLmtReq": (7, "dispPwrLmt"),
    "DispTamperReq": (8, "dispTamper"),
    "DispInstPwrReq": (9, "dispInstPwr"),
    "DispVerReq": (10, "dispVer"),
    "DispPhUnbalanceReq": (11, "dispPhUnbalance"),
}
