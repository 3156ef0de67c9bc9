"""The entry point that makes "LarderConnector" a name vLLM knows, without a module path and under MultiConnector.

vLLM calls it in each of its processes, whether Larder is used or not: so nothing is imported here without need, and
whatever is wrong with an installation is reported and breaks nothing.
"""

import logging

logger = logging.getLogger("vllm.larder")  # below "vllm": the engine's own handlers print it

NAME = "LarderConnector"


def register() -> None:
    """Tell vLLM where the connector is. Calling it again changes nothing."""
    try:
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        if NAME not in KVConnectorFactory._registry:
            KVConnectorFactory.register_connector(NAME, "larder.vllm.connector", NAME)
    except Exception as error:
        logger.warning("%s could not be registered with this vLLM, other connectors work: %r", NAME, error)
