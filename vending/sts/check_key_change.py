"""The key change cases of a vector file.

Enters: a case with the meter before and after. Leaves: both decoder keys and the tokens of the set. Never: a
verdict (see check).
"""

from vending.sts.check_inputs import Case, CaseBroken, CaseInputs, Computed, Reading
from vending.sts.check_tokens import derive_for_case, hangs_on_tables
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.key_change import key_change_sections, pack_section
from vending.sts.tokens import seal_frame

_CLASS = 2
_TOKENS = frozenset({"tokens"})


def read_key_change(case: Case, dkga: str, ea: EncryptionAlgorithm) -> tuple[Reading, ...]:
    """Make the set of a case from its vending keys."""
    inputs = case.inputs
    inputs.agree_ea(ea)
    old_inputs, new_inputs = inputs.part("old"), inputs.part("new")
    ken = new_inputs.number("ken") if new_inputs.has("ken") and not inputs.has("ken") else inputs.number("ken")
    # A change of derivation within one set is told by the meters themselves.
    old_key, old = derive_for_case(case, old_inputs, _dkga_of(old_inputs, dkga), ea, ken=255)
    new_key, new = derive_for_case(case, new_inputs, _dkga_of(new_inputs, dkga), ea, ken=ken)
    if old.pan != new.pan:
        raise CaseBroken("inputs old.pan and new.pan are two meters")
    sections = key_change_sections(
        new,
        new_key,
        roll_over=inputs.flag("ro"),
        third_section=inputs.flag("res_3kct"),
    )
    computed: Computed = {
        "old_decoder_key": int.from_bytes(old_key.key, "big"),
        "new_decoder_key": int.from_bytes(new_key.key, "big"),
        "tokens": tuple(seal_frame(_CLASS, *pack_section(each), old_key).digits for each in sections),
    }
    return (Reading(computed=computed, unsure=_TOKENS if hangs_on_tables(case, ea) else frozenset()),)


def _dkga_of(inputs: CaseInputs, named: str) -> str:
    return inputs.dkga() if inputs.has("dkga") else named
