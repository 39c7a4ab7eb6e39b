//! Deletes segments that the policy lets go and no live reader needs. No policy, no deletion.

use crate::error::{Error, Result};
use crate::os::{clock, fs::ByteLock};
use crate::protocol::{self, Strong};
use crate::queue::cursor;
use crate::queue::dir::{LOCK_BYTE_RETENTION, LOCK_FILE, QueueDir};
use crate::queue::segment;
use crate::sync::Ordering;

/// What may go. A segment must be allowed to go by one of the limits; with neither, nothing goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Let the oldest segments go while all together take more than this.
    pub bytes_max: Option<u64>,
    /// Let segments go whose newest message is older than this.
    pub age_ns_max: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionReport {
    pub segments_deleted: u64,
    pub floor_segment: u64,
    /// The policy would let segments below this go.
    pub allowed_segment: u64,
    /// The live reader that holds the oldest segment which the policy would let go.
    pub held_by: Option<String>,
}

/// The first segment that the policy keeps. The segment that is being written always stays.
pub fn allowed(queue: &QueueDir, policy: &RetentionPolicy, now_ns: u64) -> u64 {
    let floor = queue.floor_segment();
    let tail = queue.tail_segment();
    let mut keep = floor;
    if let Some(bytes_max) = policy.bytes_max {
        // The tail counts as a whole: its file is.
        let fit = bytes_max >> queue.geometry.segment_shift;
        keep = keep.max((tail + 1).saturating_sub(fit.max(1)));
    }
    if let Some(age_ns_max) = policy.age_ns_max {
        let old = |index: u64| {
            queue.table_entry(index).is_some_and(|entry| {
                let sealed = entry.end_offset.load(Ordering::Acquire) != 0;
                // Relaxed: published by `end_offset`.
                let newest = entry.timestamp_max.load(Ordering::Relaxed);
                sealed && newest.saturating_add(age_ns_max) < now_ns
            })
        };
        let mut index = floor;
        while index < tail && old(index) {
            index += 1;
        }
        keep = keep.max(index);
    }
    keep.min(tail)
}

/// Applies a policy once. Two that run at the same time do no harm: the second does nothing. P6.
pub fn apply(queue: &QueueDir, policy: &RetentionPolicy) -> Result<RetentionReport> {
    let mut report = RetentionReport {
        allowed_segment: allowed(queue, policy, clock::wall_ns()),
        floor_segment: queue.floor_segment(),
        ..RetentionReport::default()
    };
    if report.allowed_segment <= report.floor_segment && !has_leftovers(queue, report.floor_segment)? {
        return Ok(report);
    }
    let file = queue.root.open_file(LOCK_FILE, true)?;
    let lock = ByteLock::try_take(file, LOCK_BYTE_RETENTION)
        .map_err(|e| Error::io("lock", queue.root.join(LOCK_FILE), e))?;
    let Ok(_lock) = lock else { return Ok(report) };
    let mut held = Ok(None);
    let control = queue.control();
    let floor = protocol::raise_floor::<Strong>(&control.floor_segment, report.allowed_segment, || {
        held = lowest_live(queue);
        match &held {
            Ok(Some((segment, _))) => Some(*segment),
            Ok(None) => None,
            // What cannot be read may need everything.
            Err(_) => Some(0),
        }
    });
    if let Some((segment, name)) = held?
        && segment < report.allowed_segment
    {
        report.held_by = Some(name);
    }
    for name in queue.segments.list()? {
        if segment::index_of(&name).is_some_and(|index| index < floor) {
            queue.segments.remove(&name)?;
            report.segments_deleted += 1;
        }
    }
    report.floor_segment = floor;
    // Relaxed: a counter for people.
    control.segments_deleted.fetch_add(report.segments_deleted, Ordering::Relaxed);
    Ok(report)
}

/// Files below the floor stay behind if whoever deleted them was killed.
fn has_leftovers(queue: &QueueDir, floor: u64) -> Result<bool> {
    if floor == 0 {
        return Ok(false);
    }
    match queue.segments.open_file(&segment::file_name(floor - 1), false) {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e),
    }
}

/// The lowest segment that a live reader still needs, and that reader's name.
fn lowest_live(queue: &QueueDir) -> Result<Option<(u64, String)>> {
    let mut lowest: Option<(u64, String)> = None;
    for name in cursor::names(queue)? {
        match cursor::is_live(queue, &name) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(e) if e.is_not_found() => continue,
            Err(e) => return Err(e),
        }
        let info = cursor::inspect(queue, &name)?;
        // A reader that has not placed itself yet will look at the floor when it does.
        let segment = if info.placed { queue.geometry.segment_of(info.next_position) } else { 0 };
        if lowest.as_ref().is_none_or(|(low, _)| segment < *low) {
            lowest = Some((segment, name));
        }
    }
    Ok(lowest)
}
