//! Deletes segments that the policy lets go and no live reader needs. No policy, no deletion.

use crate::error::{Error, Result};
use crate::failpoint;
use crate::layout::RECORD_ALIGN;
use crate::os::{clock, fs::ByteLock};
use crate::protocol::{self, Strong};
use crate::queue::dir::{LOCK_BYTE_RETENTION, LOCK_FILE, QueueDir};
use crate::queue::segment::{self, Segment, Slot};
use crate::queue::{cursor, durable, recovery};
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
        keep = keep.max(tail.saturating_add(1).saturating_sub(fit.max(1)));
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
    let keep = keep.min(tail);
    // A writer that dies in a roll leaves the last full segment without its marker, until the next
    // writer stores it. An unregistered reader at its end would wait for ever if the file were gone
    // by then.
    if keep == tail && tail > floor && !has_marker(queue, tail - 1) { keep - 1 } else { keep }
}

fn has_marker(queue: &QueueDir, index: u64) -> bool {
    let Some(entry) = queue.table_entry(index) else { return false };
    let end = entry.end_offset.load(Ordering::Acquire) as usize;
    let plausible = end.is_multiple_of(RECORD_ALIGN)
        && (queue.geometry.data_offset()..=queue.geometry.data_limit()).contains(&end);
    plausible && Segment::open(queue, index, false).is_ok_and(|s| s.slot(end) == Slot::Roll)
}

/// Applies a policy once. Two that run at the same time do no harm: the second does nothing. P6.
pub fn apply(queue: &QueueDir, policy: &RetentionPolicy) -> Result<RetentionReport> {
    let mut report = RetentionReport {
        allowed_segment: allowed(queue, policy, clock::wall_ns()),
        floor_segment: queue.floor_segment(),
        ..RetentionReport::default()
    };
    // After a power loss the control block may speak of segments that recovery will not find. Not
    // before a writer was here.
    if !recovery::is_same_boot(queue) {
        return Ok(report);
    }
    if report.allowed_segment <= report.floor_segment
        && !has_leftovers(queue, report.floor_segment)?
    {
        return Ok(report);
    }
    check_ends(queue)?;
    let file = queue.root.open_file(LOCK_FILE, true)?;
    let lock = ByteLock::try_take(file, LOCK_BYTE_RETENTION)
        .map_err(|e| Error::io("lock", queue.root.join(LOCK_FILE), e))?;
    let Ok(_lock) = lock else { return Ok(report) };
    let mut held = Ok(None);
    let control = queue.control();
    // Lower than the floor in force while a reader stands below it.
    let deletable =
        protocol::raise_floor::<Strong>(&control.floor_segment, report.allowed_segment, || {
            failpoint::hit("retention.look");
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
    let mut names = queue.segments.list()?;
    names.retain(|name| segment::index_of(name).is_some_and(|index| index < deletable));
    if !names.is_empty() {
        // After a power loss a file that is missing above the floor is a loss, so the floor must
        // reach the disk first.
        durable::sync_control(queue)?;
        failpoint::hit("retention.floor_synced");
    }
    // The highest last: it is what `has_leftovers` looks for if we die here.
    names.sort_unstable();
    for name in names {
        queue.segments.remove(&name)?;
        failpoint::hit("retention.removed");
        report.segments_deleted += 1;
    }
    report.floor_segment = queue.floor_segment();
    // Relaxed: a counter for people.
    control.segments_deleted.fetch_add(report.segments_deleted, Ordering::Relaxed);
    Ok(report)
}

/// What is deleted is gone, so the two words that decide about it must make sense: a damaged tail
/// would let everything go.
fn check_ends(queue: &QueueDir) -> Result<()> {
    let (floor, tail) = (queue.floor_segment(), queue.tail_segment());
    let why = if floor > tail {
        format!("the oldest segment is {floor}, but the newest is {tail}")
    } else if Segment::open(queue, tail, false)?.first_sequence() == 0 {
        format!("the newest segment is said to be {tail}, which holds nothing")
    } else {
        return Ok(());
    };
    Err(queue.corrupt(queue.geometry.position(tail, 0), why))
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
