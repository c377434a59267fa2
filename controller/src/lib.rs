//! The system controller: what there should be (`model`), kept ([`store`]), asked and changed ([`api`]),
//! and handed to directors and hosts ([`reconcile`]).
//!
//! The data path never waits for it: programs go on with the last lab file they were given.
#![forbid(unsafe_code)]

mod access;
pub mod api;
mod controller;
mod model;
pub mod reconcile;
mod states;
pub mod store;

pub use access::Caller;
pub use controller::{Controller, StartError, one};
