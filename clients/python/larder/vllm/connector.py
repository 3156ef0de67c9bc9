"""LarderConnector: vLLM's hooks, each passed on to the half it concerns.

vLLM makes one connector in its scheduler and one in every worker. Only this file and those it names below `vllm` know
vLLM's classes; it decides nothing. What it holds to: a hook never waits for bytes, and a failure of the store never
leaves it as an exception (invariant 16). What cannot be served right (a layout, a kind of cache) is refused at start.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, resolve_dcp_kv_block_size
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from larder import aio
from larder.vllm.counts import UP
from larder.vllm.fingerprint import facts, group_facts
from larder.vllm.identity import hooks
from larder.vllm.identity.engine import EngineIdentity
from larder.vllm.identity.watch import WATCH
from larder.vllm.introduction import introduce
from larder.vllm.jobs import StepPlan, WorkerNames, WorkerReport
from larder.vllm.keys import Chunk, namespace
from larder.vllm.layout import allow_amx, check_supported, chunk_plan, owned_layers, window
from larder.vllm.link import AsyncStore, StoreLink
from larder.vllm.lookup import Part, matched_chunks
from larder.vllm.memory import KVMemory, rows_of
from larder.vllm.plugin import register
from larder.vllm.scheduler import StoreScheduler
from larder.vllm.settings import ConnectorSettings, parse
from larder.vllm.stats import LarderPromMetrics, LarderStats, role_of
from larder.vllm.transfer import DirectPath, StagedPath
from larder.vllm.worker import Ended, StoreWorker

logger = logging.getLogger("vllm.larder")
register()  # where the connector was named by its module: MultiConnector finds its children's statistics by their names

YIELD_S: Final = 1e-4
"""A step that computes nothing waits for lookups or transfers. It lets their threads run for a moment: an engine that
steps in a loop keeps the interpreter, and every turn of theirs would take its switch interval (5 ms)."""
MATCH_WAIT_SHARE: Final = 0.8
"""Of a lookup's time, what the master may wait for a put under way; the rest is for its answer to arrive."""


class LarderConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]  # vLLM has no types for mypy
    """KV cache through Larder; see larder.vllm for how to name it to vLLM."""

    _cache_hit_source = CacheHitSource.HOST

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._settings = parse(self._kv_transfer_config.kv_connector_extra_config)
        check_supported(vllm_config, kv_cache_config)
        self._plan = chunk_plan(vllm_config, kv_cache_config, self._settings)
        self._scheduler: StoreScheduler | None = None
        self._worker: StoreWorker | None = None
        self._link: StoreLink | None = None
        self._names: WorkerNames | None = None
        self._told_up: bool | None = None  # to those who read the statistics
        self._bad_blocks: set[int] = set()
        self._told: dict[tuple[int, int], WorkerNames] = {}  # to the scheduler, by rank
        self._untold: dict[tuple[int, int], WorkerNames] = {}  # by this worker
        self._facts: dict[str, object] = {}  # to be said when the name is known
        self._identity: EngineIdentity | None = None
        if role == KVConnectorRole.SCHEDULER:
            self._link = StoreLink(lambda: _connect(self._settings, self._settings.lookup_timeout_ms / 1e3))
            self._identity = EngineIdentity(vllm_config, kv_cache_config, self._settings)
            self._scheduler = self._make_scheduler(
                _Matcher(self._link, self._settings.lookup_timeout_ms / 1e3), self._identity
            )
            if self._kv_transfer_config.is_kv_consumer and self._kv_transfer_config.kv_load_failure_policy == "fail":
                logger.warning(
                    "kv_load_failure_policy is 'fail', vLLM's default: what fails to load fails its request. "
                    'Set "kv_load_failure_policy": "recompute" in --kv-transfer-config to have it computed instead.'
                )

    def _make_scheduler(self, matcher: "_Matcher", identity: EngineIdentity) -> StoreScheduler:
        parallel = self._vllm_config.parallel_config
        dcp = parallel.decode_context_parallel_size
        groups = self._kv_cache_config.prefix_cacheable_groups
        hash_function = get_hash_fn_by_name(self._vllm_config.cache_config.prefix_caching_hash_algo)
        hasher = get_request_block_hasher(self._plan.hash_tokens, hash_function)
        scheduler = StoreScheduler(
            self._plan,
            group_block_tokens=[resolve_dcp_kv_block_size(group.kv_cache_spec, dcp) for group in groups],
            group_windows=[window(group.kv_cache_spec) for group in groups],
            matcher=matcher,
            workers=parallel.tensor_parallel_size * parallel.pipeline_parallel_size,
            lookup_timeout_s=self._settings.lookup_timeout_ms / 1e3,
            consumer=self._kv_transfer_config.is_kv_consumer and identity.useless is None,
            producer=self._kv_transfer_config.is_kv_producer and identity.useless is None,
            naming=identity.naming(self._plan.hash_tokens, hasher),
        )
        scheduler.set_weights(None)
        return scheduler

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a save that did not happen is a later miss, no reason to compute a request twice."""
        return False

    # ---- scheduler

    @property
    def _planner(self) -> StoreScheduler:
        if self._scheduler is None:
            raise RuntimeError("a scheduler's hook was called on a worker's connector")
        return self._scheduler

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        """Take every worker's namespaces; vLLM collects them once the KV caches exist.

        MultiConnector hands one child's to all: those of others are nothing to us, and ours come with the first step.
        """
        if all(isinstance(names, WorkerNames) for names in metadata.values()):
            self._take_names(metadata)
        if self._identity is not None:
            self._identity.wait(self._planner)
            self._introduce()

    def _take_names(self, names: dict[tuple[int, int], WorkerNames]) -> None:
        self._told.update(names)
        parallel = self._vllm_config.parallel_config
        if len(self._told) == parallel.tensor_parallel_size * parallel.pipeline_parallel_size:
            self._planner.set_namespaces([name for rank in sorted(self._told) for name in self._told[rank].namespaces])
            self._facts = dict(self._told[min(self._told)].facts)

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        """Take the pool in which blocks under a save are held."""
        self._planner.bind_pool(gpu_block_pool)
        # vLLM refuses to reset a pool with blocks in use, and fails to sleep; it asks no connector before.
        gpu_block_pool.reset_prefix_cache = self._planner.beside_saves(gpu_block_pool.reset_prefix_cache)

    def on_new_request(self, request: Any) -> None:
        """Start the request's lookup."""
        self._learn()
        self._planner.arrived(request)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens the store adds to the local hit, to be loaded asynchronously; None while the lookup is under way."""
        tokens = self._planner.external_tokens(request, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Plan the load into the blocks that were allocated."""
        table = blocks.get_block_ids()
        groups = self._kv_cache_config.prefix_cacheable_group_ids
        self._planner.allocated(request, [table[group] for group in groups], num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> StepPlan:
        """This step's loads and saves."""
        state = scheduler_output.kv_connector_block_state
        groups = self._kv_cache_config.prefix_cacheable_group_ids

        def block_table(request_id: str) -> Sequence[Sequence[int]] | None:
            table = None if state is None else state.get_block_ids(request_id)
            return None if table is None else [table[group] for group in groups]

        self._learn()
        if not scheduler_output.num_scheduled_tokens:
            time.sleep(YIELD_S)
        return self._planner.step(scheduler_output.num_scheduled_tokens, block_table)

    def update_connector_output(self, connector_output: Any) -> None:
        """Hear which saves ended and which loads failed."""
        if isinstance(report := connector_output.kv_connector_worker_meta, WorkerReport):
            if any(self._told.get(rank) != names for rank, names in report.names.items()):
                self._take_names(report.names)
            self._planner.report(report)
            WATCH.adapters.update(report.adapters)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Never keeps a request's blocks: saves hold theirs in the pool."""
        self._planner.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """See request_finished."""
        return self.request_finished(request, [])

    def has_pending_push_work(self) -> bool:
        """Keep the engine stepping until saves have ended and let go of their blocks."""
        return self._planner.saving

    def has_pending_block_frees(self) -> bool:
        """Whether blocks come free without preempting anyone."""
        return self._planner.frees_soon()

    # ---- worker

    @property
    def _carrier(self) -> StoreWorker:
        if self._worker is None:
            raise RuntimeError("a worker's hook was called on a connector without KV caches")
        return self._worker

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Take the engine's KV memory, and with it everything a namespace is made of."""
        settings, config = self._settings, self._kv_cache_config
        layers = [owned_layers(group.layer_names, kv_caches) for group in config.prefix_cacheable_groups]
        memory = KVMemory(
            tuple(tuple(rows_of(name, kv_caches[name], config.num_blocks) for name in names) for names in layers)
        )
        shared = facts(self._vllm_config, config, kv_caches, vllm_version=vllm.__version__) | {
            "chunk_tokens": self._plan.chunk_tokens,
            "namespace": settings.namespace,
            "tp_rank": get_tp_group().rank_in_group,
            "pp_rank": get_pp_group().rank_in_group,
        }
        groups = config.prefix_cacheable_groups
        self._names = WorkerNames(
            tuple(
                namespace(shared | group_facts(index, group.kv_cache_spec, names, kv_caches))
                for index, (group, names) in enumerate(zip(groups, layers, strict=True))
            ),
            shared,
        )
        self._untold = {(get_pp_group().rank_in_group, get_tp_group().rank_in_group): self._names}
        path: DirectPath | StagedPath
        if memory.device.type == "cpu":
            allow_amx()
            path = DirectPath(memory, copies=settings.copies)
        else:
            dcp = self._vllm_config.parallel_config.decode_context_parallel_size
            blocks = [self._plan.chunk_tokens // resolve_dcp_kv_block_size(g.kv_cache_spec, dcp) for g in groups]
            path = StagedPath(memory, chunk_blocks=blocks, copies=settings.copies)
        load_timeout_s, save_timeout_s = settings.load_timeout_ms / 1e3, settings.save_timeout_ms / 1e3
        self._worker = StoreWorker(
            # A call's own time-out ends it; the store's is the longest of them.
            StoreLink(lambda: _connect(settings, max(load_timeout_s, save_timeout_s), path.buffers)),
            path,
            namespaces=self._names.namespaces,
            load_timeout_s=load_timeout_s,
            save_timeout_s=save_timeout_s,
            watch=hooks.watch_engine(),
        )

    def get_handshake_metadata(self) -> WorkerNames | None:
        """This worker's namespaces, for the scheduler."""
        return self._names

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Start this step's loads; none of them is waited for."""
        plan = self._get_connector_metadata()
        self._carrier.follow(plan.weights)
        self._carrier.give_up(plan.given_up)
        self._carrier.start_loads(plan.loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous: a request runs only when its blocks are there."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Whole blocks are saved after the step, not layer by layer."""

    def wait_for_save(self) -> None:
        """Start this step's saves; waits, bounded, until the master knows of them."""
        self._carrier.save(self._get_connector_metadata().saves)

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Loads that ended. Bad blocks belong to the same snapshot and follow by the next hook."""
        ended = self._carrier.take_ended() if self._worker else Ended()
        one_group = len(self._kv_cache_config.kv_cache_groups) == 1
        self._bad_blocks = ended.bad_blocks if one_group else set()
        return KVConnectorTransferResults(
            finished_recving=ended.received, failed_recving=set() if one_group else ended.failed
        )

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks of the loads just named that hold nothing usable."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def build_connector_worker_meta(self) -> WorkerReport | None:
        """For the scheduler's half: saves that ended, loads that failed."""
        report = self._carrier.take_report() if self._worker else None
        if self._untold:
            report = report or WorkerReport()
            report.names, self._untold = self._untold, {}
        return report

    # ---- both

    def get_kv_connector_stats(self) -> LarderStats | None:
        """What happened since it was last asked."""
        half = self._scheduler or self._worker
        counts = half.take_counts() if half else {}
        if self._link is not None and self._link.ready() is not self._told_up:
            self._told_up = self._link.ready()
            counts[UP] = self._told_up
        return LarderStats(data={role_of(self._kv_transfer_config): counts}) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> LarderStats:
        """Stats from what was sent between processes."""
        return LarderStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> LarderPromMetrics:
        """The counters on the engine's /metrics."""
        return LarderPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def reset_cache(self) -> bool | None:
        """True: what engines share is not emptied by one of them, but this one no longer looks there or saves there.

        Its weights may be others now, nobody can say which: until it is started again it shares with itself alone.
        """
        if self._scheduler is None:
            return None
        self._scheduler.renew()
        logger.info("Larder: the cache was reset; until it is started again this engine shares with itself alone")
        return True

    def _learn(self) -> None:
        if self._identity is not None:
            self._identity.learn(self._planner)
            self._introduce()

    def _introduce(self) -> None:
        """Say once under what name this engine shares, and what is in that name: two engines can be compared."""
        if self._facts and self._identity is not None and (name := self._planner.shared_name):
            facts = {key: value for key, value in self._facts.items() if key not in ("tp_rank", "pp_rank")}
            facts["model"] = self._identity.model
            logger.info("%s", introduce(name, facts))
            self._facts = {}

    def shutdown(self) -> None:
        """Let puts under way end, bounded, and close the store."""
        if self._worker is not None:
            self._worker.close()
        if self._link is not None:
            self._link.close()
        if self._identity is not None:
            self._identity.close()


class _Matcher:
    """The scheduler's lookups over the link. One that had no answer in time puts the store in doubt."""

    def __init__(self, link: StoreLink, timeout_s: float) -> None:
        self._link = link
        self._wait_s = timeout_s * MATCH_WAIT_SHARE

    def ready(self) -> bool:
        return self._link.ready()

    def match(self, parts: Sequence[Part], chunks: Sequence[Chunk], hold_s: float) -> Future[int]:
        return self._link.call(lambda store: matched_chunks(store, parts, chunks, wait_s=self._wait_s, hold_s=hold_s))

    def timed_out(self) -> None:
        self._link.doubt()


async def _connect(settings: ConnectorSettings, timeout_s: float, buffers: Sequence[memoryview] = ()) -> AsyncStore:
    store = aio.connect(
        settings.master,
        timeout_s=timeout_s,
        verify=settings.verify,
        transports=settings.transports,
        zone=settings.zone,
        engine_ports=settings.engine_ports,
    )
    for buffer in buffers:
        await store.register_buffer(buffer)
    return store
