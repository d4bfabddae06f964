"""Durations and values as text, without slow imports."""


def format_duration(seconds: float) -> str:
    """A duration: under a second, 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole == 0 and seconds > 0:
        return "under a second"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_count(count: int, limit: int | None) -> str:
    """A number of things, with their limit if there is one: 3/20, or 3."""
    return str(count) if limit is None else f"{count}/{limit}"


def format_metric(metric: str, value: float | None) -> str:
    """The value of a metric: accuracies in percent, others with three decimals."""
    if value is None:
        return "-"
    return f"{value:.1%}" if "accuracy" in metric else f"{value:.3f}"


def format_value(value: object) -> str:
    """The value of a parameter, with two significant digits."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)
