"""An operator's EA07 tables: from the text of their file to tables that have proven themselves.

Enters: JSON text with `s1`, `s2`, `p` and a `self_test`. Leaves: tables. Never: files, which the caller opens;
tables that are no permutations or do not give the token of their own test; a table entry in a message.

Standard: IEC 62055-41, EA07. The form of the file is our own.
"""

import json
import re

from vending.sts.errors import InvalidCipherTables
from vending.sts.sta import BLOCK_BITS, IEC_SAMPLE_TABLES, NIBBLES, Sta, StaTables
from vending.sts.tokens import TOKEN_DIGITS, TokenNumber, split_class

# A file of three tables has some 500 characters; the rest is room for blanks.
TABLES_CHARS_MAX = 16_384
OPERATOR_TABLES_NAME = "the operator's tables"
_SELF_TEST_FORMS = {
    "decoder_key": re.compile("[0-9A-Fa-f]{16}"),
    "block": re.compile("[0-9A-Fa-f]{16}"),
    "token": re.compile(f"[0-9]{{{TOKEN_DIGITS}}}"),
}
_ENCRYPTED_CLASSES = (0, 2)


def parse_sta_tables(text: str) -> StaTables:
    """Read an operator's tables and run their self-test.

    Raises: InvalidCipherTables.
    """
    fields = _parse_object(text)
    tables = StaTables(
        name=OPERATOR_TABLES_NAME,
        s1=_numbers(fields, "s1", NIBBLES),
        s2=_numbers(fields, "s2", NIBBLES),
        p=_numbers(fields, "p", BLOCK_BITS),
    )
    _run_self_test(tables, fields.get("self_test"))
    # The samples in an operator's file stay what they are, and stay marked so.
    return IEC_SAMPLE_TABLES if tables.is_iec_sample else tables


def _parse_object(text: str) -> dict[str, object]:
    if len(text) > TABLES_CHARS_MAX:
        raise InvalidCipherTables(f"EA07 tables: expected at most {TABLES_CHARS_MAX} characters, got {len(text)}")
    try:
        fields = json.loads(text, object_pairs_hook=_unique_fields)
    except (ValueError, RecursionError) as error:
        raise InvalidCipherTables("EA07 tables: expected a JSON object, got text that is none") from error
    if not isinstance(fields, dict):
        raise InvalidCipherTables("EA07 tables: expected a JSON object, got another JSON value")
    return fields


def _unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _numbers(fields: dict[str, object], name: str, count: int) -> tuple[int, ...]:
    listed = fields.get(name)
    if not isinstance(listed, list) or len(listed) != count:
        raise InvalidCipherTables(f"EA07 table {name}: expected a list of {count} numbers, got none of that length")
    if any(type(each) is not int for each in listed):
        raise InvalidCipherTables(f"EA07 table {name}: expected whole numbers, got something else among them")
    return tuple(listed)


def _run_self_test(tables: StaTables, told: object) -> None:
    if not isinstance(told, dict):
        raise InvalidCipherTables("EA07 tables: expected a self_test with decoder_key, block and token, got none")
    texts = {}
    for name, form in _SELF_TEST_FORMS.items():
        text = told.get(name)
        if not isinstance(text, str) or not form.fullmatch(text := text.replace(" ", "")):
            raise InvalidCipherTables(f"EA07 self_test {name}: expected the form {form.pattern}, got another")
        texts[name] = text
    if int(texts["token"]) >> 66:
        raise InvalidCipherTables("EA07 self_test token: expected a number below 2^66, got a larger one")
    token_class, encrypted = split_class(TokenNumber(texts["token"]))
    cipher, block = Sta(bytes.fromhex(texts["decoder_key"]), tables), int(texts["block"], 16)
    if token_class not in _ENCRYPTED_CLASSES or cipher.encrypt(block) != encrypted:
        raise InvalidCipherTables("EA07 tables: expected the token of their self_test, got another")
    if cipher.decrypt(encrypted) != block:
        raise InvalidCipherTables("EA07 tables: expected the block of their self_test back, got another")
