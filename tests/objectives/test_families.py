"""Which run is uncontrolled: the one rule that statistics, figures and the report share."""

from po_dynamics.objectives.families import UNCONTROLLED, is_uncontrolled, parent_of, uncontrolled_run
from po_dynamics.objectives.registry import OBJECTIVES


def runs(**objectives):
    return {name: {"objective": o, "family": OBJECTIVES[o].family} for name, o in objectives.items()}


def test_each_family_has_an_uncontrolled_objective_of_its_own():
    assert {name: OBJECTIVES[name].family for name in UNCONTROLLED.values()} == {
        objective: family for family, objective in UNCONTROLLED.items()
    }
    assert [name for name in OBJECTIVES if is_uncontrolled(name)] == ["dpo", "ppo"]


def test_a_variant_is_compared_with_the_first_uncontrolled_run_of_its_family():
    several = runs(late="dpo_no_pos", weak="dpo", strong="dpo", waves="hppo")
    assert {name: parent_of(name, several) for name in several} == {
        **{"late": "weak", "weak": None, "strong": "weak", "waves": None}
    }
    assert uncontrolled_run("offline", several) == "weak"
    assert uncontrolled_run("online", several) is None
