"""What would stop a training, found in one process before several start."""

import sys
from contextlib import suppress

from launcher.config.whole import Config
from launcher.errors import ConfigError, user_error_as
from launcher.jobs.infer import try_cams
from launcher.processes.accelerator import joins_norms, process_count
from launcher.processes.buffers import refuse_unequal_state
from launcher.processes.surroundings import require_batch
from launcher.processes.zero_settings import settings_for
from launcher.run.build import build_method
from launcher.run.folder import run_folder
from launcher.run.lock import require_writable
from launcher.training.inputs import Inputs
from wsss.methods.base import Frozen, Method
from wsss.models.base import Network
from wsss.models.dry_run import refuse_lone_cell


def preflight(config: Config) -> int:
    """Find, in one process, errors that would otherwise stop all of them, some after hours: wrong data, a missing
    teacher, weights that do not fit, buffers that would differ between processes, a kind of CAM that the method does
    not have, a batch that cannot be divided. Weights are downloaded here, before several processes need them at once.

    Returns:
        How many processes train: what launch.processes says, else as many GPUs as the batch divides into.

    Raises:
        ConfigError: settings that contradict each other; and see Inputs.check.
    """
    require_writable(run_folder(config))
    inputs = Inputs(config)
    inputs.check()
    if not config.tracking.to and "to" not in config.tracking.model_fields_set:
        print("metrics are written only to the run's folder; for MLflow: pip install 'wsss[mlflow]'", file=sys.stderr)
    method = build_method(config, inputs.class_set, inputs.teacher)
    check_begun(method)
    check_image_size(method, config.data.image_size)
    processes = choose_processes(config, method)
    settings_for(config, processes)
    check_memory(config, processes)
    inputs.loaders_from(0, rank=0, ranks=processes)
    refuse_unequal_state(method, processes)
    if method.gives_maps:
        try_cams(method, config)
    return processes


def networks_of(method: Method) -> list[Network]:
    """The networks that a method trains."""
    return [module for module in method.modules() if isinstance(module, Network)]


def check_images(method: Method, images: int) -> None:
    """Raise ValueError if the method, or a network that it trains, cannot learn from this number of images at a
    time."""
    method.check_images(images)
    for network in networks_of(method):
        network.check_images(images)


def check_begun(method: Method) -> None:
    """Raise ConfigError if a network of the method lacks a part that is not trained, such as encoded texts."""
    with user_error_as(ConfigError):
        for network in networks_of(method):
            network.check_begun()


def check_norms(config: Config, method: Method, images: int, processes: int) -> None:
    """Raise ValueError if a BatchNorm that the method trains would get one value per channel.

    Args:
        images: of one process and micro-batch.
    """
    if images > 1 or joins_norms(config, processes):
        return
    method.train()
    for network in networks_of(method):
        refuse_lone_cell(network, config.data.image_size)
    method.train()


def check_memory(config: Config, processes: int) -> None:
    """Raise ConfigError if the images of a process and micro-batch do not fit into this machine's memory."""
    data, micro_batches = config.data, processes * config.train.accumulate
    require_batch(
        f"data.global_batch_size {data.global_batch_size}", data.global_batch_size // micro_batches, data.image_size
    )
    if data.pixel is not None:
        require_batch(
            f"data.pixel_batch_size {data.pixel_batch_size}", data.pixel_batch_size // micro_batches, data.image_size
        )


def check_image_size(method: Method, side: int) -> None:
    """Raise ConfigError if the method, a network of it or its teacher cannot work with images of data.image_size."""
    frozen = [part.network for part in vars(method).values() if isinstance(part, Frozen)]
    for network in [*networks_of(method), *frozen]:
        try:
            network.check_size(side, side)
        except ValueError as error:
            raise ConfigError(f"data.image_size: {error}") from error
    with user_error_as(ConfigError):
        method.check_size(side)


def choose_processes(config: Config, method: Method) -> int:
    """See preflight."""
    available, machines = process_count(config), config.launch.machines
    if config.launch.processes is None:
        for fewer in range(available, machines - 1, -machines):
            with suppress(ValueError):
                check_share(config, method, fewer)
                return fewer
    with user_error_as(ConfigError):
        check_share(config, method, available)
    return available


def check_share(config: Config, method: Method, processes: int, accumulate: int | None = None) -> int:
    """Images of one process and micro-batch. Raises ValueError if the batch cannot be divided like this.

    Args:
        accumulate: micro-batches of an update; None: the config's.
    """
    accumulate = accumulate or config.train.accumulate
    images, rest = divmod(config.data.global_batch_size, processes * accumulate)
    if rest:
        raise ValueError(
            f"data.global_batch_size {config.data.global_batch_size} does not divide into {processes} processes x "
            f"{accumulate} micro-batches: set launch.processes, train.accumulate or the batch"
        )
    of_images = f"{config.data.global_batch_size} images"
    try:
        check_images(method, images)
        if config.data.pairs and images % 2:
            raise ValueError("data.pairs: these do not form pairs of frames; wanted an even number")
        check_norms(config, method, images, processes)
        if config.data.pixel is not None:
            of_images = f"data.pixel_batch_size: {config.data.pixel_batch_size} images"
            check_norms(config, method, config.data.pixel_batch_size // (processes * accumulate), processes)
    except ValueError as error:
        raise ValueError(f"{of_images} over {processes} processes x {accumulate} micro-batches: {error}") from None
    return images
