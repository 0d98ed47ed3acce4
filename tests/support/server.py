"""A fork server of the tests' own, with imports that take seconds; the product's has those of loaders alone."""

import multiprocessing
from multiprocessing import forkserver
from unittest import mock

context = multiprocessing.get_context("forkserver")


class Server:
    """Starts processes of `context` that have imported these modules."""

    def __init__(self, *modules):
        self.server = forkserver.ForkServer()
        self.server.set_forkserver_preload(list(modules))

    def start(self, process):
        with mock.patch.object(forkserver, "connect_to_new_process", self.server.connect_to_new_process):
            process.start()
