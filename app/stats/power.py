"""What N can show: the smallest difference a study of n prompts finds, and the prompts a difference asks for.

Source: the textbook formula (quantile(1 - alpha/2) + quantile(power)) * sd / sqrt(n), with t for the quantiles as the
variance is estimated: Cohen, Statistical Power Analysis (1988); Miller, arXiv:2411.00640 (2024), section 5, for evals.
"""

import math

from app.stats.distributions import normal_quantile, t_quantile


def detectable_difference(n_prompts: int, sd: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The mean paired difference that a two-sided test of `n_prompts` prompts finds with the given power.

    `sd` is the standard deviation of the prompts' differences, in the unit of the answer. Raises ValueError for fewer
    than 2 prompts or a negative sd.
    """
    if n_prompts < 2 or sd < 0:
        raise ValueError("at least 2 prompts and an sd of 0 or more are needed")
    df = n_prompts - 1
    return (t_quantile(1 - alpha / 2, df) + t_quantile(power, df)) * sd / math.sqrt(n_prompts)


def prompts_needed(difference: float, sd: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """The number of prompts after which a true `difference` is found with the given power; at least 2."""
    if difference == 0 or sd < 0:
        raise ValueError("a difference other than 0 and an sd of 0 or more are needed")
    z = normal_quantile(1 - alpha / 2) + normal_quantile(power)
    n = max(2, math.ceil((z * sd / abs(difference)) ** 2))
    while detectable_difference(n, sd, power, alpha) > abs(difference):
        n += 1
    return n


def detectable_win_rate(n_prompts: int, tie_rate: float = 0.0, power: float = 0.8, alpha: float = 0.05) -> float:
    """The win rate above one half that `n_prompts` graded prompts tell from one half; 1 if none can.

    Ties shrink the spread: a prompt's outcome has variance (1 - tie_rate) / 4 at an even race.
    """
    if not 0 <= tie_rate < 1:
        raise ValueError("the share of ties must lie in 0..1, 1 excluded")
    sd = math.sqrt((1 - tie_rate) / 4)
    return min(1.0, 0.5 + detectable_difference(n_prompts, sd, power, alpha)) if n_prompts > 1 else 1.0


def paired_rate_sd(rate_a: float, rate_b: float, correlation: float = 0.0) -> float:
    """Standard deviation of the difference of two yes/no outcomes of one prompt with these rates and correlation."""
    if not (0 <= rate_a <= 1 and 0 <= rate_b <= 1 and -1 <= correlation <= 1):
        raise ValueError("rates lie in 0..1, a correlation in -1..1")
    var_a, var_b = rate_a * (1 - rate_a), rate_b * (1 - rate_b)
    return math.sqrt(max(0.0, var_a + var_b - 2 * correlation * math.sqrt(var_a * var_b)))
