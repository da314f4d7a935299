"""Importers: other people's routing traces as a `Trace`. One file per format; this one is the list of them."""

from foregate.traces.importers import moe_beyond, records, route_trace, router_logits, vllm_logger
from foregate.traces.importers.interface import Importer

IMPORTERS: dict[str, Importer] = {
    "records": records.read,
    "moe-beyond": moe_beyond.read,
    "route-trace": route_trace.read,
    "vllm-logger": vllm_logger.read,
    "router-logits": router_logits.read,
}
