"""What a config needs: shards, weights, teacher and places, checked as `wsss train` does before it starts."""

from collections.abc import Sequence
from pathlib import Path

from launcher.doctor.finding import Check, Finding
from launcher.errors import ConfigError, RunError
from shards.schema import DataError


def checks_of(path: Path, overrides: Sequence[str]) -> list[Check]:
    """The check of one config."""

    def config() -> list[Finding]:
        from launcher.config.file import load_config
        from launcher.training.inputs import Inputs
        from launcher.training.preflight import preflight

        what = f"config {path}"
        try:
            settings = load_config(path, overrides)
            processes = preflight(settings)
        except (ConfigError, DataError, RunError) as error:
            return [Finding("fail", what, str(error))]
        inputs = Inputs(settings)
        found = [Finding("ok", what, f"can start on {processes} process{'es' if processes > 1 else ''}")]
        for split, shards in (("train", inputs.train), ("val", inputs.val), ("tune", inputs.tune)):
            if shards is not None:
                index = shards.index
                images = sum(len(shard.keys) for shard in index.shards)
                found.append(Finding("ok", f"data.{split}", f"{images:,} images in {len(index.shards)} shards"))
            elif split != "train":
                found.append(Finding("warn", f"data.{split}", "not set", "no metrics without it"))
        return found

    return [config]
