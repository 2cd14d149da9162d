"""What trials do before the first epoch, in words."""

from __future__ import annotations

from orchestrator.drivers.activity import Activity


def test_phases_are_named_with_the_number_of_their_trials_until_the_first_epoch() -> None:
    activity = Activity()
    assert str(activity) == ""
    for trial in "abcde":
        activity.on_assign(trial)
    assert str(activity) == "starting workers"

    for trial, phase in zip("abcd", ("decoding x", "loading y", "loading y", "loading z"), strict=True):
        activity.on_phase(trial, phase)
    assert str(activity) == "loading y (2 trials); decoding x; loading z", "that of e is not worth a word"
    activity.on_phase("e", "training on x")
    assert str(activity) == "loading y (2 trials); decoding x; loading z; and 1 more"
    activity.on_end("b")
    activity.on_end("c")
    assert str(activity) == "decoding x; loading z; training on x"

    activity.on_epoch()
    activity.on_assign("f")
    activity.on_phase("f", "decoding x")
    assert str(activity) == ""
