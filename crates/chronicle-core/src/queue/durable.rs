//! What is on disk for certain, and how to get there.
//!
//! The watermark in the control block is stored after the data it speaks of was synced, and is
//! itself synced after that; so whichever version of the control page a power loss leaves behind,
//! it never promises too much.
//!
//! All syncs of a queue go through here, so that the power-loss test knows of each.

use crate::error::{Error, Result};
use crate::failpoint;
use crate::os::{fs::Dir, map::Map};
use crate::queue::dir::{self, QueueDir, store_max};
use crate::queue::segment;
use crate::sync::Ordering;
use std::fs::File;

/// Syncs every segment from the durable position to `position`, then moves the watermark.
/// `next_sequence` is the sequence number at `position`.
pub fn flush_to(queue: &QueueDir, position: u64, next_sequence: u64) -> Result<()> {
    let control = queue.control();
    // Acquire: as `store_max`.
    let from = control.durable_position.load(Ordering::Acquire);
    if position > from {
        let first = queue.geometry.segment_of(from).max(queue.floor_segment());
        for index in first..=queue.geometry.segment_of(position) {
            sync_segment(queue, index)?;
            failpoint::hit("flush.segment");
        }
        // New segments are new names.
        sync_names(&queue.segments)?;
        failpoint::hit("flush.names");
        sync_table(queue)?;
        failpoint::hit("flush.synced");
        store_max(&control.durable_sequence, next_sequence - 1);
        failpoint::hit("flush.sequence");
        store_max(&control.durable_position, position);
        failpoint::hit("flush.position");
    }
    sync_control(queue)?;
    failpoint::hit("flush.control");
    Ok(())
}

/// Syncs control block and segment table.
pub fn sync_maps(queue: &QueueDir) -> Result<()> {
    sync_table(queue)?;
    sync_control(queue)
}

fn sync_table(queue: &QueueDir) -> Result<()> {
    let map = queue.table_map();
    sync_range(&queue.root, dir::TABLE_FILE, map, 0, map.len())
}

/// Syncs the control block alone.
pub fn sync_control(queue: &QueueDir) -> Result<()> {
    let map = queue.control_map();
    sync_range(&queue.root, dir::CONTROL_FILE, map, 0, map.len())
}

/// Writes a range of a mapped file back and waits for the device.
pub fn sync_range(dir: &Dir, name: &str, map: &Map, offset: usize, len: usize) -> Result<()> {
    map.sync(offset, len).map_err(|e| Error::io("sync", dir.join(name), e))?;
    failpoint::synced(dir, name, offset, len);
    Ok(())
}

/// Writes a file back, its size included, and waits for the device.
pub fn sync_file(dir: &Dir, name: &str, file: &File) -> Result<()> {
    file.sync_all().map_err(|e| Error::io("sync", dir.join(name), e))?;
    failpoint::synced(dir, name, 0, usize::MAX);
    Ok(())
}

/// Makes renames and removals in a directory durable.
pub fn sync_names(dir: &Dir) -> Result<()> {
    dir.sync()?;
    failpoint::names_synced(dir);
    Ok(())
}

fn sync_segment(queue: &QueueDir, index: u64) -> Result<()> {
    let name = segment::file_name(index);
    match queue.segments.open_file(&name, false) {
        Ok(file) => {
            file.sync_data().map_err(|e| Error::io("sync", queue.segments.join(&name), e))?;
            failpoint::synced(&queue.segments, &name, 0, usize::MAX);
            Ok(())
        }
        // Deleted by retention in the meantime: nobody needs it to be durable.
        Err(e) if e.is_not_found() && index < queue.floor_segment() => Ok(()),
        Err(e) => Err(e),
    }
}
