"""A short run of `make chaos`: everything at once, and nothing that must not be."""

from tests.chaos import __main__ as chaos

SEED = 7
STORM_SECONDS = 7  # of about 20 in all


def test_chaos_leaves_nothing_wrong_undue_or_behind(tmp_path):
    """Under all faults, no answer is wrong, every request ends, and nothing is left over."""
    scene, rows = chaos.run(chaos.SETUPS["redis-apart"], SEED, STORM_SECONDS, tmp_path)
    assert not scene.ledger.violations, "\n".join([f"seed {SEED}", *scene.ledger.violations, chaos.table(scene, rows)])
    answered = sum(count for outcomes in scene.ledger.outcomes.values() for outcome, count in outcomes.items()
                   if outcome.startswith("200 "))
    assert answered > 50, chaos.table(scene, rows)
