"""Is a gain from a critic's feedback more than a stronger teacher would have given?

After Sharma et al., “A Critical Evaluation of AI Feedback for Aligning Large Language Models” (arXiv 2402.12366): where
the critic is a stronger model than the one whose completions SFT copied, SFT on completions of the critic itself is the
comparison to make, and there it often did as well as feedback. What is said here is about the items compared, by paired
intervals; it is an audit of one study and no forecast for another.
"""

from typing import Literal

from app.stats.comparisons import Difference

Reading = Literal["no gain", "not measured", "teacher missing", "explained", "beyond", "undecided"]


def read_gain(gain: Difference | None, over_teacher: Difference | None, has_teacher: bool) -> Reading:
    """How to read an arm that was trained on a critic's feedback.

    Parameters
    ----------
    gain : the arm minus what it started from, on the same items; None where one of them was not scored.
    over_teacher : the arm minus SFT on completions of a model as strong as the critic; None where not scored.
    has_teacher : whether there is such an SFT arm at all.

    Returns
    -------
    "not measured": a score is missing, or an interval (one prompt says nothing).
    "no gain": the interval of the gain is not above 0, so there is nothing to explain.
    "teacher missing": a gain, and no SFT arm to compare with: a stronger teacher may explain all of it.
    "beyond": a gain, and the arm does better than SFT on the critic's completions.
    "explained": a gain, and SFT on the critic's completions does better still.
    "undecided": a gain, and an interval around 0 against SFT on the critic's completions: SFT may have given it.
    """
    if gain is None or gain.low is None:
        return "not measured"
    if gain.low <= 0:
        return "no gain"
    if not has_teacher:
        return "teacher missing"
    if over_teacher is None or over_teacher.low is None or over_teacher.high is None:
        return "not measured"
    if over_teacher.low > 0:
        return "beyond"
    return "explained" if over_teacher.high <= 0 else "undecided"


SAID: dict[Reading, str] = {
    "not measured": "not measured on the same items",
    "no gain": "no gain over its start that the interval tells from 0: nothing to explain",
    "teacher missing": "a gain, but no SFT on the critic’s own completions: a stronger teacher may explain it",
    "explained": "a gain that SFT on the critic’s own completions matches: here a stronger teacher explains it",
    "beyond": "a gain beyond what SFT on the critic’s own completions gave here",
    "undecided": "a gain, not told apart from what SFT on the critic’s own completions gave: more items would decide",
}
