"""The figures of an evaluation as text for the terminal."""


def table_of(report: dict) -> str:
    """The figures of an evaluation as text, one line per source and threshold."""
    lines = [f"{report['run']}: {report['dataset']['images']} images of {report['dataset']['folder']}"]
    for source, figures in report["sources"].items():
        for choice in ("fixed", "tuned"):
            at = figures[choice]
            if at is None:
                continue
            chosen = f"threshold {at['threshold']:.2f} ({choice:5s})" if "threshold" in at else f"{'masks':22s}"
            line = f"  {source:20s} {chosen}"
            if "miou" in at:
                low, high = at["miou_interval"]
                lines.append(f"{line}  mIoU {100 * at['miou']:.2f} [{100 * low:.2f}, {100 * high:.2f}]")
                lines.append(f"    {figures['protocol']}")
                continue
            low, high = at["per_image_iou_interval"]
            areas = [
                f"{n.replace('_', ' ')} {100 * at[n]:.1f} %" for n in at if n.endswith("_area") and at[n] is not None
            ]
            iou = f"per-image IoU {100 * at['per_image_iou']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            lines.append(f"{line}  {iou}  {', '.join(areas)}")
    return "\n".join(lines)
