//! What runs on a hot thread, and what watches it.

pub mod guard;
