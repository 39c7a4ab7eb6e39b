//! What a hot thread has taken over: native readers, writers and rings out of their Python objects,
//! and back into them.

use super::{HotCore, lock};
use crate::errors::to_py;
use crate::packets::PacketRing;
use crate::provision::Provisioner;
use crate::reader::{self, QueueReader};
use crate::writer::QueueWriter;
use chronicle_core::hot::command::What;
use chronicle_core::hot::run::Ended;
use chronicle_core::hot::thread::Cargo;
use chronicle_core::queue::provision::{Chores, Endpoint};
use chronicle_core::sync::Arc;
use chronicle_core::{Reader, Writer};
use pyo3::prelude::*;
use std::collections::HashMap;

/// The Python objects whose readers and writers are with the hot thread, and the endpoints of
/// those.
#[derive(Default)]
pub(super) struct Lent {
    /// By the ticket that each was handed over with.
    pub(super) readers: HashMap<u64, (Py<QueueReader>, Arc<Endpoint>)>,
    /// By output.
    pub(super) writers: HashMap<u32, (Py<QueueWriter>, Arc<Endpoint>)>,
    /// By ticket: on their way to an output.
    pub(super) writers_sent: HashMap<u64, (Py<QueueWriter>, Arc<Endpoint>)>,
    /// By their places.
    pub(super) rings: Vec<Py<PacketRing>>,
    pub(super) journal: Option<(Py<QueueWriter>, Arc<Endpoint>)>,
}

/// The Python objects that a thread starts with: readers, writers, rings, the journal.
pub(super) type Objects = (
    Vec<(u64, u32, Py<QueueReader>)>,
    Vec<(u32, Py<QueueWriter>)>,
    Vec<Py<PacketRing>>,
    Option<(Py<QueueWriter>, Vec<u8>)>,
);

impl HotCore {
    /// Everything that the thread starts with. What was taken before an error stays in `lent`'s
    /// objects as `Moved` until it is given back, so the error path gives all of it back.
    pub(super) fn load(
        &self,
        py: Python<'_>,
        objects: Objects,
        provisioner: &Bound<'_, Provisioner>,
    ) -> PyResult<Cargo> {
        let mut cargo = Cargo::default();
        match self.load_into(py, &mut cargo, objects, provisioner) {
            Ok(()) => Ok(cargo),
            Err(error) => {
                self.give_back(py, cargo);
                Err(error)
            }
        }
    }

    fn load_into(
        &self,
        py: Python<'_>,
        cargo: &mut Cargo,
        (readers, writers, rings, journal): Objects,
        provisioner: &Bound<'_, Provisioner>,
    ) -> PyResult<()> {
        for (ticket, tag, object) in readers {
            let native = self.take_reader(py, object.bind(py), provisioner)?;
            lock(&self.lent).readers.insert(ticket, (object, Arc::clone(native.endpoint())));
            cargo.readers.push((ticket, tag, native));
        }
        for (output, object) in writers {
            let native = self.take_writer(py, object.bind(py), provisioner)?;
            lock(&self.lent).writers.insert(output, (object, Arc::clone(native.endpoint())));
            cargo.writers.push((output, native));
        }
        for object in rings {
            let ring = &object.get().inner;
            ring.with(py, |ring| ring.check_owner().map_err(to_py))?;
            cargo.rings.push(ring.take(py, self.owner())?);
            lock(&self.lent).rings.push(object);
        }
        if let Some((object, head)) = journal {
            let native = self.take_writer(py, object.bind(py), provisioner)?;
            lock(&self.lent).journal = Some((object, Arc::clone(native.endpoint())));
            cargo.journal = Some((native, head));
        }
        Ok(())
    }

    /// Takes the native reader out of its object, served by the provisioner if by no other.
    pub(super) fn take_reader(
        &self,
        py: Python<'_>,
        object: &Bound<'_, QueueReader>,
        provisioner: &Bound<'_, Provisioner>,
    ) -> PyResult<Reader> {
        object.get().inner.with(py, |inner| inner.reader.check_owner().map_err(to_py))?;
        let mut reader = object.get().inner.take(py, self.owner())?.reader;
        if !reader.endpoint().is_attached() {
            let attached = provisioner.get().inner.with(py, |p| {
                p.attach_reader(&reader);
                Ok(())
            });
            if let Err(error) = attached {
                object.get().inner.restore_surely(py, reader::Inner::new(reader));
                return Err(error);
            }
        }
        reader.set_hot(true);
        Ok(reader)
    }

    /// As `take_reader`.
    pub(super) fn take_writer(
        &self,
        py: Python<'_>,
        object: &Bound<'_, QueueWriter>,
        provisioner: &Bound<'_, Provisioner>,
    ) -> PyResult<Writer> {
        object.get().inner.with(py, |writer| writer.check_owner().map_err(to_py))?;
        let mut writer = object.get().inner.take(py, self.owner())?;
        if !writer.endpoint().is_attached() {
            let attached = provisioner.get().inner.with(py, |p| {
                p.attach_writer(&writer, Chores::default());
                Ok(())
            });
            if let Err(error) = attached {
                object.get().inner.restore_surely(py, writer);
                return Err(error);
            }
        }
        writer.set_hot(true);
        Ok(writer)
    }

    /// Puts what was not sent, or refused, back into its object, and gives that.
    pub(super) fn take_back(&self, py: Python<'_>, ticket: u64, what: What) -> Option<Py<PyAny>> {
        match what {
            What::AddReader { reader, .. } => self.restore_reader(py, ticket, reader),
            What::AddWriter { writer, .. } => {
                let lent = lock(&self.lent).writers_sent.remove(&ticket);
                lent.map(|(object, _)| restore_writer(py, object, writer))
            }
            What::Message { .. }
            | What::RemoveReader { .. }
            | What::RemoveWriter { .. }
            | What::Stop => None,
        }
    }

    pub(super) fn restore_reader(
        &self,
        py: Python<'_>,
        ticket: u64,
        mut reader: Reader,
    ) -> Option<Py<PyAny>> {
        let lent = lock(&self.lent).readers.remove(&ticket);
        let (object, _) = lent?;
        py.detach(|| reader.set_hot(false));
        object.get().inner.restore_surely(py, reader::Inner::new(reader));
        Some(object.into_any())
    }

    /// What a loop left behind, as cargo; commands that were not taken go back to their senders.
    pub(super) fn unload(
        &self,
        py: Python<'_>,
        ended: Ended,
        lost: &mut Vec<u64>,
        journal: Option<(Writer, Vec<u8>)>,
    ) -> Cargo {
        for command in ended.commands {
            lost.push(command.ticket);
            self.take_back(py, command.ticket, command.what);
        }
        let readers = ended.readers.into_iter().map(|(ticket, _, reader)| (ticket, 0, reader));
        let readers = readers.collect();
        Cargo { readers, writers: ended.writers, rings: ended.rings, journal }
    }

    /// Restores every object from the cargo.
    pub(super) fn give_back(&self, py: Python<'_>, cargo: Cargo) {
        for (ticket, _, reader) in cargo.readers {
            self.restore_reader(py, ticket, reader);
        }
        for (output, writer) in cargo.writers {
            self.return_writer(py, output, writer);
        }
        let rings = std::mem::take(&mut lock(&self.lent).rings);
        for (object, ring) in rings.into_iter().zip(cargo.rings) {
            object.get().inner.restore_surely(py, ring);
        }
        if let Some((writer, _)) = cargo.journal {
            let object = lock(&self.lent).journal.take();
            object.map(|(object, _)| restore_writer(py, object, writer));
        }
    }

    /// The writer that was sent is the output's now; the one before goes back into its object.
    pub(super) fn exchange_writer(
        &self,
        py: Python<'_>,
        ticket: u64,
        output: u32,
        old: Option<Writer>,
    ) -> Option<Py<PyAny>> {
        let before = {
            let mut lent = lock(&self.lent);
            let now = lent.writers_sent.remove(&ticket);
            match now {
                Some(now) => lent.writers.insert(output, now),
                None => None,
            }
        };
        let (object, _) = before?;
        old.map(|writer| restore_writer(py, object, writer))
    }

    /// The writer that an output had goes back into its object.
    pub(super) fn return_writer(
        &self,
        py: Python<'_>,
        output: u32,
        writer: Writer,
    ) -> Option<Py<PyAny>> {
        let lent = lock(&self.lent).writers.remove(&output);
        lent.map(|(object, _)| restore_writer(py, object, writer))
    }

    pub(super) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let lent = lock(&self.lent);
        let readers = lent.readers.values().map(|(_, endpoint)| endpoint);
        let writers = lent.writers.values().map(|(_, endpoint)| endpoint);
        let sent = lent.writers_sent.values().map(|(_, endpoint)| endpoint);
        let journal = lent.journal.iter().map(|(_, endpoint)| endpoint);
        readers.chain(writers).chain(sent).chain(journal).cloned().collect()
    }

    /// Late rolls, inline wake-ups and kept segments of everything that is with the thread.
    pub(super) fn endpoint_counts(&self) -> (u64, u64, usize) {
        self.endpoints().iter().fold((0, 0, 0), |(late, inline, kept), endpoint| {
            (late + endpoint.late(), inline + endpoint.wakes_inline(), kept + endpoint.kept_count())
        })
    }
}

fn restore_writer(py: Python<'_>, object: Py<QueueWriter>, mut writer: Writer) -> Py<PyAny> {
    py.detach(|| writer.set_hot(false));
    object.get().inner.restore_surely(py, writer);
    object.into_any()
}
