//! What is on disk for certain, and how to get there.
//!
//! The watermark in the control block is stored after the data it speaks of was synced, and is itself synced after that;
//! so whichever version of the control page a power loss leaves behind, it never promises too much.

use crate::error::{Error, Result};
use crate::failpoint;
use crate::queue::dir::{self, QueueDir, store_max};
use crate::queue::segment;
use crate::sync::Ordering;

/// Syncs every segment from the durable position to `position`, then moves the watermark. `next_sequence` is the sequence
/// number at `position`.
pub fn flush_to(queue: &QueueDir, position: u64, next_sequence: u64) -> Result<()> {
    let control = queue.control();
    // Acquire: as `store_max`.
    let from = control.durable_position.load(Ordering::Acquire);
    if position > from {
        let first = queue.geometry.segment_of(from).max(queue.floor_segment());
        for index in first..=queue.geometry.segment_of(position) {
            sync_segment(queue, index)?;
        }
        // New segments are new names.
        queue.segments.sync()?;
        let table = queue.table_map();
        table.sync(0, table.len()).map_err(|e| Error::io("sync", queue.root.join(dir::TABLE_FILE), e))?;
        failpoint::hit("flush.synced");
        store_max(&control.durable_sequence, next_sequence - 1);
        failpoint::hit("flush.sequence");
        store_max(&control.durable_position, position);
        failpoint::hit("flush.position");
    }
    sync_control(queue)
}

/// Syncs control block and segment table.
pub fn sync_maps(queue: &QueueDir) -> Result<()> {
    let table = queue.table_map();
    table.sync(0, table.len()).map_err(|e| Error::io("sync", queue.root.join(dir::TABLE_FILE), e))?;
    sync_control(queue)
}

fn sync_control(queue: &QueueDir) -> Result<()> {
    let map = queue.control_map();
    map.sync(0, map.len()).map_err(|e| Error::io("sync", queue.root.join(dir::CONTROL_FILE), e))
}

fn sync_segment(queue: &QueueDir, index: u64) -> Result<()> {
    let name = segment::file_name(index);
    match queue.segments.open_file(&name, false) {
        Ok(file) => {
            file.sync_data().map_err(|e| Error::io("sync", queue.segments.join(&name), e))
        }
        // Deleted by retention in the meantime: nobody needs it to be durable.
        Err(e) if e.is_not_found() && index < queue.floor_segment() => Ok(()),
        Err(e) => Err(e),
    }
}
