"""A plan as lines for a terminal."""

from launcher.plan.estimate import GIB, Plan, Range


def format_plan(plan: Plan) -> str:
    """What a run costs, whether it fits, what to change, and what was assumed."""
    config, gpu = plan.config, plan.gpu
    batch = config.data.global_batch_size
    epochs = f", {plan.epochs:.1f} epochs of {plan.train_images:,} images" if plan.epochs is not None else ""
    how = "measured" if plan.measured else "estimated"
    lines = [
        f"{config.name} on {plan.processes} x {gpu.title}, {config.train.precision}",
        f"  network      {plan.parameters / 1e6:.1f} M parameters; {plan.flops / 1e9:,.0f} GFLOP a step in "
        f"{plan.launches:,} launches",
        f"  steps        {config.train.steps:,} of {batch} images{epochs}",
        f"  memory       {plan.needed / GIB:.1f} of {gpu.memory_gib:.1f} GiB a process with {plan.images} images: "
        + ", ".join(f"{name} {value / GIB:.2f}" for name, value in plan.memory.items()),
        f"  fits         {describe_fit(plan)}",
        f"  a step       {format_range((plan.step_s[0] * 1e3, plan.step_s[1] * 1e3))} ms {how}, "
        f"{format_range((batch / plan.step_s[1], batch / plan.step_s[0]))} images/s",
        f"  its floor    {describe_floor(plan)}",
        f"  validations  {describe_validations(plan)}",
        f"  saves        {plan.saves} of {plan.save_s:.1f} s",
        f"  in all       {describe_hours(plan)}{describe_price(plan)}",
        "  disk         " + ", ".join(f"{name} {value / 1e9:.2f} GB" for name, value in plan.disk.items()),
        "assumed:",
    ]
    return "\n".join([*lines, *(f"  - {one}" for one in plan.assumed)])


def describe_floor(plan: Plan) -> str:
    """How long a step would take if every operator ran at the peak of the data sheet."""
    parts = ", ".join(f"{what} {format_ms(seconds)}" for what, seconds in plan.floor_s.items())
    return f"{format_ms(sum(plan.floor_s.values()))} ms on one {plan.gpu.title}: {parts}"


def format_ms(seconds: float) -> str:
    return format_range((1e3 * seconds, 1e3 * seconds))


def describe_fit(plan: Plan) -> str:
    largest = f"the largest micro-batch is {plan.largest} image{'s' * (plan.largest > 1)}"
    largest = largest if plan.largest else "not even one image does"
    if plan.fits:
        return f"yes; {largest}"
    ways = [f"train.accumulate={plan.accumulate} instead of {plan.config.train.accumulate}"] * bool(plan.accumulate)
    ways += ["model.checkpointing=true"] * plan.can_checkpoint
    if not plan.accumulate:
        ways += ["a larger GPU", "a smaller data.image_size or network"]
    return f"no; {largest}: {', or '.join(ways)}"


def describe_validations(plan: Plan) -> str:
    if not plan.validations:
        return "none"
    if plan.validation_s is None:
        return f"{plan.validations}, of an unknown number of images: their time is left out"
    return (
        f"{plan.validations} of {format_range(plan.validation_s)} s on the device, before reading images and pictures"
    )


def describe_hours(plan: Plan) -> str:
    low, high = plan.hours
    if high < 1:
        return f"{format_range((60 * low, 60 * high))} minutes"
    return f"{format_range((low, high))} hours"


def describe_price(plan: Plan) -> str:
    if plan.price is None:
        return ""
    low, high = (hours * plan.processes * plan.price for hours in plan.hours)
    return f", {format_range((low, high))} at {plan.price:g} a GPU and hour"


def format_range(found: Range) -> str:
    low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in found)
    return low if low == high else f"{low} to {high}"
