"""Named SQL as it is sent."""

import re

from db.named import numbered, sql


def test_numbered_query_gives_each_name_one_number() -> None:
    """Parameters become $1, $2 and so on in the order of their names, each name the same number wherever it stands."""
    text, names = numbered("post_sale")
    again = re.sub(rb"\$(\d+)", lambda found: f"%({names[int(found[1]) - 1]})s".encode(), text)
    assert again == sql("post_sale")
    assert len(set(names)) == len(names)


def test_numbered_query_halves_a_doubled_percent_sign() -> None:
    """What psycopg wants doubled is sent as it is meant."""
    assert b"%%" in sql("day_demands")
    assert b" % 1800" in numbered("day_demands")[0]
