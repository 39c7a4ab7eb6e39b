"""The figures that the project promises, and what each is measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Results = Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """One promise.

    Attributes
    ----------
    name
        Its key in `notes.toml`.
    bound
        Whether the judged value must be at most or at least `target`.
    judged
        Key of the value that is compared with the target.
    measured, floor
        Keys of what was measured and of what it was measured against, to be shown.
    unit
        Of `measured` and `floor`.
    """

    name: str
    text: str
    bound: Literal["max", "min"]
    target: float
    target_text: str
    judged: str
    measured: str
    unit: str
    floor: str | None = None

    def value(self, results: Results) -> float | None:
        """Return what is judged, if it was measured."""
        return results.get(self.judged)

    def is_met(self, results: Results) -> bool | None:
        """Whether the promise holds; None if it was not measured."""
        value = self.value(results)
        if value is None:
            return None
        return value <= self.target if self.bound == "max" else value >= self.target


FIGURES = (
    Figure(
        "one_way_rust",
        "one-way latency between two cores, Rust to Rust, p50, against half a cache-line trip",
        "max",
        2.5,
        "≤ 2.5 ×",
        "one_way_rust_p50_over_half_round_trip_ratio",
        "one_way_rust_p50_median_ns",
        "ns",
        "cache_line_half_round_trip_median_ns",
    ),
    Figure(
        "append_rust",
        "append, Rust, no checksum, against copying the same bytes into fresh, prefaulted memory",
        "max",
        3.0,
        "≤ 3 ×",
        "append_rust_over_copy_ratio",
        "append_rust_median_ns",
        "ns",
        "copy_floor_median_ns",
    ),
    Figure(
        "append_python",
        "append, Python, `bytes`, against an empty native call with the same arguments",
        "max",
        2.0,
        "≤ 2 ×",
        "append_python_over_empty_ratio",
        "append_python_median_ns",
        "ns",
        "empty_append_python_median_ns",
    ),
    Figure(
        "next_python",
        "next + payload view, Python, against an empty native call",
        "max",
        3.0,
        "≤ 3 ×",
        "next_payload_python_over_empty_ratio",
        "next_payload_python_median_ns",
        "ns",
        "empty_next_python_median_ns",
    ),
    Figure(
        "throughput",
        "sustained throughput, one writer, one reader, two cores, tmpfs",
        "min",
        15e6,
        "≥ 15 million/s",
        "throughput_append_median_per_s",
        "throughput_append_median_per_s",
        "/s",
    ),
    Figure(
        "frames_arrow",
        "a million messages as an Arrow table, against copying the same columns with NumPy",
        "max",
        4.0,
        "≤ 4 ×",
        "frames_arrow_over_copy_ratio",
        "frames_arrow_median_ms",
        "ms",
        "frames_copy_median_ms",
    ),
    Figure(
        "column_sum",
        "column sum over one million typed records, Python",
        "min",
        100e6,
        "≥ 100 million/s",
        "column_sum_python_median_per_s",
        "column_sum_python_median_per_s",
        "/s",
        "column_sum_floor_median_per_s",
    ),
    Figure(
        "fan_in",
        "fan-in cost per message, 512 active sources against 8",
        "max",
        3.0,
        "≤ 3 ×",
        "fan_in_512_over_8_ratio",
        "fan_in_512_sources_median_ns",
        "ns",
        "fan_in_8_sources_median_ns",
    ),
    Figure(
        "open",
        "open for reading, 1,000 segments against 1 (the worst of four kinds of open)",
        "max",
        1.5,
        "≤ 1.5 ×",
        "open_many_over_1_worst_ratio",
        "open_earliest_registered_many_segments_median_ns",
        "ns",
        "open_earliest_registered_1_segment_median_ns",
    ),
    Figure(
        "seek_sequence",
        "seek by sequence in 100 million messages, p50",
        "max",
        50_000,
        "≤ 50 µs",
        "seek_by_sequence_p50_ns",
        "seek_by_sequence_p50_ns",
        "ns",
    ),
    Figure(
        "seek_time",
        "seek by time in 100 million messages, p50",
        "max",
        50_000,
        "≤ 50 µs",
        "seek_by_time_p50_ns",
        "seek_by_time_p50_ns",
        "ns",
    ),
    Figure(
        "roll",
        "roll with provisioner: worst append at a roll against p99.9 elsewhere",
        "max",
        2.0,
        "≤ 2 ×",
        "append_at_roll_worst_over_p999_ratio",
        "append_at_roll_worst_of_repetition_median_ns",
        "ns",
        "append_elsewhere_p999_ns",
    ),
    Figure(
        "guard_idle",
        "a turn of a guarded thread that makes no system call, against one without a guard",
        "max",
        1.01,
        "≤ 1.01 ×",
        "guard_enforce_over_off_turn_ratio",
        "guard_enforce_turn_median_ns",
        "ns",
        "guard_off_turn_median_ns",
    ),
    Figure(
        "hot_hops",
        "queue, compiled handler, queue, reader: both hops between two cores, p50, against one hop",
        "max",
        2.3,
        "≤ 2.3 ×",
        "hot_two_hops_over_one_ratio",
        "hot_two_hops_p50_median_ns",
        "ns",
        "hot_one_hop_p50_median_ns",
    ),
    Figure(
        "hot_dispatch",
        "dispatch of a compiled handler, over a bare loop in Rust that does the same",
        "max",
        10.0,
        "≤ 10 ns",
        "compiled_dispatch_over_bare_ns",
        "compiled_message_median_ns",
        "ns",
        "hot_bare_median_ns",
    ),
    Figure(
        "hot_command_poll",
        "a look at an empty command channel",
        "max",
        3.0,
        "≤ 3 ns",
        "hot_command_poll_median_ns",
        "hot_command_poll_median_ns",
        "ns",
    ),
    Figure(
        "hot_log",
        "a log call with three numbers, in a compiled handler",
        "max",
        25.0,
        "≤ 25 ns",
        "compiled_log_ns",
        "compiled_log_ns",
        "ns",
        "compiled_message_median_ns",
    ),
    Figure(
        "hot_counter",
        "a counter, in a compiled handler",
        "max",
        2.0,
        "≤ 2 ns",
        "compiled_counter_ns",
        "compiled_counter_ns",
        "ns",
        "compiled_message_median_ns",
    ),
    Figure(
        "hot_independence",
        "the worst of six disturbances: loop gap p99.9 with it, against without",
        "max",
        1.2,
        "≤ 1.2 ×",
        "independence_worst_turn_over_calm_ratio",
        "independence_worst_turn_p999_median_ns",
        "ns",
        "independence_worst_turn_calm_p999_median_ns",
    ),
    Figure(
        "hot_independence_moments",
        "the same, each gap counted by its length: what a moment meets once in a thousand times",
        "max",
        1.2,
        "≤ 1.2 ×",
        "independence_worst_moment_over_calm_ratio",
        "independence_worst_moment_p999_median_ns",
        "ns",
        "independence_worst_moment_calm_p999_median_ns",
    ),
    Figure(
        "hot_guard",
        "a message of a compiled handler, guarded (enforce), against without a guard",
        "max",
        1.02,
        "≤ 1.02 ×",
        "compiled_guard_enforce_over_off_ratio",
        "compiled_message_median_ns",
        "ns",
        "compiled_message_unguarded_median_ns",
    ),
    Figure(
        "hot_compile_cold",
        "a handler of 300 lines compiles, in a fresh process with an empty cache",
        "max",
        3_000.0,
        "≤ 3 s",
        "hot_compile_cold_median_ms",
        "hot_compile_cold_median_ms",
        "ms",
    ),
    Figure(
        "hot_compile_warm",
        "the same from the cache",
        "max",
        300.0,
        "≤ 300 ms",
        "hot_compile_warm_median_ms",
        "hot_compile_warm_median_ms",
        "ms",
    ),
    Figure(
        "import",
        "`import chronicle`, over the bare interpreter",
        "max",
        60.0,
        "≤ 60 ms",
        "start_import_over_bare_median_ms",
        "start_import_over_bare_median_ms",
        "ms",
        "start_bare_median_ms",
    ),
    Figure(
        "help",
        "`chronicle --help`",
        "max",
        200.0,
        "≤ 200 ms",
        "start_help_median_ms",
        "start_help_median_ms",
        "ms",
        "start_bare_median_ms",
    ),
    Figure(
        "handoff",
        "hand-off: from a queue that is ready on disk to its first message handled, p50",
        "max",
        5.0,
        "≤ 5 ms",
        "handoff_p50_median_ms",
        "handoff_p50_median_ms",
        "ms",
    ),
    Figure(
        "idle_sources",
        "a message through the order router beside 200 sources with nothing to say, against beside "
        "one",
        "max",
        2.0,
        "≤ 2 ×",
        "sources_many_over_few_ratio",
        "sources_many_message_ns",
        "ns",
        "sources_few_message_ns",
    ),
    Figure(
        "one_way_python",
        "Python to Python, one-way p50: the best of iceoryx2, pyzmq, multiprocessing, faster-fifo "
        "against this library",
        "min",
        8.0,
        "≥ 8 × faster",
        "one_way_python_best_peer_over_chronicle_ratio",
        "one_way_python_chronicle_p50_median_ns",
        "ns",
        "one_way_python_best_peer_p50_median_ns",
    ),
    Figure(
        "decode_deep",
        "a DEEP message in a handler, decoded and published, against the same message published as "
        "it is on the wire",
        "max",
        1.5,
        "≤ 1.5 ×",
        "decode_deep_over_copy_ratio",
        "decode_deep_median_ns",
        "ns",
        "decode_deep_copy_median_ns",
    ),
    Figure(
        "wire_to_queue",
        "a packet in the ring until the feed handler has published its messages, p50, against the "
        "bare read of the same packets",
        "max",
        2.0,
        "≤ 2 ×",
        "wire_committed_over_bare_read_ratio",
        "wire_committed_p50_median_ns",
        "ns",
        "wire_floor_p50_median_ns",
    ),
    Figure(
        "tick_to_order",
        "tick to order: feed handler, strategy and router, hop by hop, p50, against three times a "
        "relay that only passes a message on; with an append and a poll in Python",
        "max",
        2.0,
        "≤ 2 ×",
        "tick_to_order_over_floor_ratio",
        "tick_to_order_p50_median_ns",
        "ns",
        "tick_floor_p50_median_ns",
    ),
    Figure(
        "import_deep",
        "messages into the queue from the unpacked DEEP capture, Python",
        "min",
        1e6,
        "≥ 1 million/s",
        "import_deep_median_per_s",
        "import_deep_median_per_s",
        "/s",
    ),
)
