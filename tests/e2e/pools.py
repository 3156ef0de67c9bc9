"""What bad memory does: bytes in pools change behind everybody's back."""

from larder.pool_file import HEADER_BYTES

from demo.cluster import Cluster


def zero_pools(cluster: Cluster, node: str = "*") -> None:
    """Of this node, or of all; the headers stay."""
    for pool in cluster.pool_dir.glob(f"larder-{node}.pool"):
        with pool.open("r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(bytes(pool.stat().st_size - HEADER_BYTES))
