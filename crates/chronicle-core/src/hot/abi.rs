//! The C ABI between the loop and a handler, version 1.
//!
//! Compiled handlers use these structures by offset, so the offsets are asserted here; a change of
//! one is a new version. All pointers are valid for the duration of one call. A handler calls back
//! through the two functions at the end, [`chr_hot_append`] and [`chr_hot_log`], and nothing else.

use crate::hot::log::ARGUMENTS_MAX;
use crate::hot::services::Services;
use crate::hot::shared::Shared;
use std::ffi::c_void;
use std::mem::offset_of;

pub const ABI_VERSION: u32 = 1;

/// [`Message::kind`] of a record of a queue.
pub const KIND_DATA: u16 = 0;
/// [`Message::kind`] of a command: what `send` was given.
pub const KIND_COMMAND: u16 = 1;
/// [`Message::kind`] of an event that the loop makes itself.
pub const KIND_EVENT: u16 = 2;
/// [`Message::kind`] of a datagram: the payload stands in its ring, `type_id` is the line, `source`
/// the place of the ring. The numbers between are those of calls without a message, in a journal
/// ([`crate::hot::journal`]): one number has one meaning.
pub const KIND_DATAGRAM: u16 = 8;
/// [`Message::source`] of what comes from no source.
pub const NO_SOURCE: u32 = u32::MAX;

/// Event `{ source: u32 }`.
pub const EVENT_SOURCE_ADDED: u16 = 65_001;
/// Event `{ source: u32, reason: u32 }`; the reason is one of `REMOVED_*`.
pub const EVENT_SOURCE_REMOVED: u16 = 65_002;
/// Event `{ first_missing: u64, next: u64, source: u32, reason: u32 }`; the reason is one of
/// `GAP_*`.
pub const EVENT_SOURCE_GAP: u16 = 65_003;

pub const REMOVED_ASKED: u32 = 0;
pub const REMOVED_FAILED: u32 = 3;

pub const GAP_RETENTION: u32 = 1;
pub const GAP_CUT: u32 = 2;
pub const GAP_DAMAGE: u32 = 3;

/// What a handler returns.
pub const HANDLED: i32 = 0;
pub const UNHANDLED: i32 = 1;
pub const FAILED: i32 = 2;

/// Bit of [`Context::flags`]: the handler asks to stop.
pub const CONTEXT_STOP: u32 = 1;

/// Bits of [`HandlerTable::flags`].
pub const TABLE_USES_CLOCK: u32 = 1;
pub const TABLE_UNAUDITED: u32 = 2;
pub const TABLE_BATCHED: u32 = 4;
pub const TABLE_FLAGS_KNOWN: u32 = TABLE_USES_CLOCK | TABLE_UNAUDITED | TABLE_BATCHED;

/// One input of a handler.
#[repr(C)]
pub struct Message {
    pub payload: *const u8,
    pub len_bytes: u32,
    pub selector: Selector,
    pub source: u32,
    /// What the application gave the source as its tag; 0 without one.
    pub tag: u32,
    /// Of the record; of a command its ticket; of an event 0; datagrams of a ring count from 1.
    pub sequence: u64,
    pub timestamp_ns: u64,
}

/// What a handler switches on: type id (the low half, which comes first) and kind of a message.
///
/// One word, so that it is stored as one: compiled handlers load both at once, and a load that
/// needs two stores waits until both have left the CPU's store buffer, which takes longer than the
/// call.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector(u32);

impl Selector {
    #[inline(always)]
    pub const fn new(kind: u16, type_id: u16) -> Self {
        Self((kind as u32) << 16 | type_id as u32)
    }

    #[inline(always)]
    pub const fn kind(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    pub const fn type_id(self) -> u16 {
        self.0 as u16
    }
}

impl Message {
    #[inline(always)]
    pub fn kind(&self) -> u16 {
        self.selector.kind()
    }

    #[inline(always)]
    pub fn type_id(&self) -> u16 {
        self.selector.type_id()
    }
}

/// What a handler is called with.
#[repr(C)]
pub struct Context {
    pub abi_version: u32,
    pub flags: u32,
    pub state: *mut u8,
    /// The handler's clock: stands still within one call.
    pub now_ns: u64,
    pub counters: *mut u64,
    /// Set by a handler that failed; who made the handler knows what they mean.
    pub fail_info: *const c_void,
    pub fail_code: i64,
    pub(crate) services: *mut Services,
}

impl Context {
    /// Of a handler whose state and counters these are.
    pub(crate) fn new(shared: &Shared, services: *mut Services) -> Self {
        Self {
            abi_version: ABI_VERSION,
            flags: 0,
            state: shared.state.base(),
            now_ns: 0,
            counters: shared.counters.as_ptr().cast_mut().cast(),
            fail_info: std::ptr::null(),
            fail_code: 0,
            services,
        }
    }
}

pub type OnMessage = unsafe extern "C" fn(*mut Context, *const Message) -> i32;
pub type OnHook = unsafe extern "C" fn(*mut Context) -> i32;

/// A handler: what to call when.
#[derive(Clone, Copy, Default)]
pub struct HandlerTable {
    pub flags: u32,
    pub on_message: Option<OnMessage>,
    pub on_idle: Option<OnHook>,
    pub on_start: Option<OnHook>,
    pub on_stop: Option<OnHook>,
    pub on_batch_begin: Option<OnHook>,
    pub on_batch_end: Option<OnHook>,
    /// Called last, on the hot thread, however its loop ended, if that began at all. Only the core's
    /// own handlers have it: what it returns is not looked at.
    pub on_end: Option<OnHook>,
}

const _: () = {
    assert!(size_of::<Message>() == 40);
    assert!(offset_of!(Message, payload) == 0);
    assert!(offset_of!(Message, len_bytes) == 8);
    // The type id is at 12 and the kind at 14.
    assert!(offset_of!(Message, selector) == 12 && cfg!(target_endian = "little"));
    assert!(offset_of!(Message, source) == 16);
    assert!(offset_of!(Message, tag) == 20);
    assert!(offset_of!(Message, sequence) == 24);
    assert!(offset_of!(Message, timestamp_ns) == 32);
    assert!(offset_of!(Context, abi_version) == 0);
    assert!(offset_of!(Context, flags) == 4);
    assert!(offset_of!(Context, state) == 8);
    assert!(offset_of!(Context, now_ns) == 16);
    assert!(offset_of!(Context, counters) == 24);
    assert!(offset_of!(Context, fail_info) == 32);
    assert!(offset_of!(Context, fail_code) == 40);
    assert!(offset_of!(Context, services) == 48);
};

/// Appends a record to an output; returns its sequence number, 0 if the output has no writer
/// (counted), or a negative number if it cannot be written: the handler must then return
/// [`FAILED`].
///
/// No system call and no allocation while the output's provisioner keeps up.
///
/// # Safety
/// `context` is the one that the handler was called with, on the same thread, before that call
/// returns; `payload` is `len` readable bytes.
pub unsafe extern "C" fn chr_hot_append(
    context: *mut Context,
    output: u32,
    type_id: u32,
    payload: *const u8,
    len: u32,
) -> i64 {
    // SAFETY: the caller's promise. The loop holds no reference to either while a handler runs.
    let (context, services) = unsafe { (&*context, &mut *(*context).services) };
    let payload = if len == 0 {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(payload, len as usize) }
    };
    services.append(output, type_id, payload, context.now_ns)
}

/// Writes one log record: a site and up to five arguments, each with a tag of four bits. Drops and
/// counts when the ring is full. No system call, no allocation.
///
/// # Safety
/// As [`chr_hot_append`]; `args` is `count` readable words.
pub unsafe extern "C" fn chr_hot_log(
    context: *mut Context,
    site: u32,
    count: u32,
    tags: u64,
    args: *const u64,
) {
    // SAFETY: as in `chr_hot_append`.
    let (context, services) = unsafe { (&*context, &mut *(*context).services) };
    let count = (count as usize).min(ARGUMENTS_MAX);
    let args = if count == 0 {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(args, count) }
    };
    services.log(site, tags, args, context.now_ns);
}

/// What compiled handlers may call, by name.
pub fn symbols() -> [(&'static str, usize); 2] {
    [
        ("chr_hot_append", chr_hot_append as *const () as usize),
        ("chr_hot_log", chr_hot_log as *const () as usize),
    ]
}
